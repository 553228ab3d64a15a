// go build examples/hello.go && handoff-run --listen 127.0.0.1:8000 -- ./hello, with that very line in UPGRADE.
// GET /upgrade runs it: once the successor serves, this one accepts no more, finishes its requests, and ends.
// What it does not do: keep /upgrade from those who may ask for /, take a second socket, or check LISTEN_PID.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

var socket = os.NewFile(3, "socket") // FileListener makes a copy of its own; this one stays open for a successor
var upgrading sync.Mutex

func hello(w http.ResponseWriter, _ *http.Request) {
	version, known := os.LookupEnv("HELLO_VERSION")
	if !known {
		version = "1"
	}
	fmt.Fprintf(w, "hello from %s, pid %d\n", version, os.Getpid())
}

// upgrade starts the successor and waits for the byte that it writes to READY_FD when it serves.
func upgrade() error {
	if !upgrading.TryLock() {
		return errors.New("already being succeeded")
	}
	ready, tell, _ := os.Pipe()
	// Not exec.Cmd, whose ExtraFiles would make the socket blocking for both of us.
	attributes := syscall.ProcAttr{Env: append(os.Environ(), "READY_FD=4"), Files: []uintptr{0, 1, 2, 3, tell.Fd()}}
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", os.Getenv("UPGRADE")}, &attributes)
	tell.Close()
	defer ready.Close()
	if _, ended := ready.Read(make([]byte, 1)); err == nil && ended != nil {
		syscall.Kill(pid, syscall.SIGKILL)
		syscall.Wait4(pid, nil, 0, nil)
		err = errors.New("the successor never served, serving on")
	}
	if err != nil {
		upgrading.Unlock()
	}
	return err
}

func main() {
	listener, err := net.FileListener(socket)
	if err != nil {
		log.Fatal("no socket: run me by handoff-run: ", err)
	}
	http.HandleFunc("/", hello)
	http.HandleFunc("/upgrade", func(w http.ResponseWriter, _ *http.Request) {
		if err := upgrade(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		listener.Close()
		fmt.Fprintln(w, "the successor serves")
	})
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() { <-term; listener.Close() }()
	if ready, err := strconv.Atoi(os.Getenv("READY_FD")); err == nil {
		syscall.Write(ready, []byte("\n"))
		syscall.Close(ready)
		os.Unsetenv("READY_FD")
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second}
	if err := server.Serve(listener); !errors.Is(err, net.ErrClosed) {
		log.Print(err)
	}
	server.Shutdown(context.Background()) // what was accepted is answered
}
