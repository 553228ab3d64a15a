// `hello PID` on the listening socket at descriptor 3; /slow takes two seconds. With the argument `shutdown` SIGTERM
// drains, without it ends the process.
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
			time.Sleep(2 * time.Second)
		}
		fmt.Fprintf(w, "hello %d\n", os.Getpid())
	})
	server := &http.Server{}
	drained := make(chan bool)
	if len(os.Args) > 1 && os.Args[1] == "shutdown" {
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		go func() {
			<-term
			server.Shutdown(context.Background())
			close(drained)
		}()
	}
	if err := server.Serve(listener); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-drained
}
