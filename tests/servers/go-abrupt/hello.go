// `hello PID` on the listening socket at descriptor 3; SIGTERM ends it at once, as it does where nobody calls Shutdown.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
)

func main() {
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello %d\n", os.Getpid()) })
	log.Fatal(http.Serve(listener, nil))
}
