// `hello` by the own servers of Deno and Bun.
const answer = () => new Response('hello\n');
if (globalThis.Deno) Deno.serve({ port: @PORT@ }, answer);
else Bun.serve({ port: @PORT@, fetch: answer });
