#!/usr/bin/env python3
"""handoff-run --listen 127.0.0.1:8000 -- examples/hello.py, with that very line in UPGRADE for SIGUSR2."""
# What it does not do: bound the number of threads, ignore a second SIGUSR2 while one is under way, take a second socket,
# or check LISTEN_PID.
import os, signal, socket, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

class Hello(BaseHTTPRequestHandler):
    timeout = 10  # for a client that sends nothing: draining waits no longer than this for it

    def do_GET(self):
        body = f"hello from {os.environ.get('HELLO_VERSION', '1')}, pid {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

def upgrade():
    ready, tell = os.pipe()  # READY_FD: the successor writes a byte there once it serves
    subprocess.Popen(os.environ["UPGRADE"], shell=True, pass_fds=(3, tell), env={**os.environ, "READY_FD": str(tell)})
    os.close(tell)
    if os.read(ready, 1):
        server.shutdown()
    else:
        os.close(ready)
        print("hello.py: the successor never served, serving on", file=sys.stderr)

server = ThreadingHTTPServer(("", 0), Hello, bind_and_activate=False)  # no bind, and no listen to shrink the backlog
server.socket = socket.socket(fileno=3)
server.socket.setblocking(False)  # another generation may be quicker to accept what both were woken for
os.set_inheritable(3, False)
server.daemon_threads = False  # server_close() then waits for every connection that was accepted
signal.signal(signal.SIGUSR2, lambda *_: Thread(target=upgrade).start())
signal.signal(signal.SIGTERM, lambda *_: Thread(target=server.shutdown).start())
if tell := os.environ.pop("READY_FD", None):
    os.write(int(tell), b"\n")
    os.close(int(tell))
server.serve_forever(poll_interval=0.05)
server.server_close()
