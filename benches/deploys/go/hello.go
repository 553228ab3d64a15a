// `hello PID` on the listening socket at descriptor 3, or on PORT if that is set; /slow takes two seconds. With the argument
// `shutdown` SIGTERM drains, without it ends the process.
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

func listen() (net.Listener, error) {
	if port := os.Getenv("PORT"); port != "" {
		return net.Listen("tcp", "127.0.0.1:"+port)
	}
	file := os.NewFile(3, "listener")
	defer file.Close() // FileListener makes its own copy
	return net.FileListener(file)
}

func main() {
	listener, err := listen()
	if err != nil {
		log.Fatal(err)
	}
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
