// `hello PID` at the port given as the first argument, as most of them are written.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello %d\n", os.Getpid()) })
	log.Fatal(http.ListenAndServe(":"+os.Args[1], nil))
}
