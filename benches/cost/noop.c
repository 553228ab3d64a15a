/* The least a target can be. */
int main(void) { return 0; }
