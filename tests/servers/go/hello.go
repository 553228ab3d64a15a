// `hello PID` on the listening socket at descriptor 3; /slow takes 0.6 seconds; SIGTERM drains.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	file := os.NewFile(3, "listener")
	listener, err := net.FileListener(file)
	if err != nil {
		log.Fatal(err)
	}
	file.Close() // FileListener made its own copy
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			time.Sleep(600 * time.Millisecond)
		}
		fmt.Fprintf(w, "hello %d\n", os.Getpid())
	})
	server := &http.Server{}
	term, drained := make(chan os.Signal, 1), make(chan bool)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		server.Shutdown(context.Background())
		close(drained)
	}()
	if err := server.Serve(listener); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-drained
}
