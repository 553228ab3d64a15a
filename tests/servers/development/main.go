// On the socket that LISTEN_FDS announces, or else at the port given as the first argument.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
)

func listen() (net.Listener, error) {
	if os.Getenv("LISTEN_FDS") != "" {
		return net.FileListener(os.NewFile(3, "listener"))
	}
	return net.Listen("tcp", "127.0.0.1:"+os.Args[1])
}

func main() {
	listener, err := listen()
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from 1, pid %d\n", os.Getpid())
	})
	log.Fatal(http.Serve(listener, nil))
}
