"""On the socket that LISTEN_FDS announces, or else at the port given as the first argument; app is the same with Flask."""

import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def greeting():
    return f"hello from 1, pid {os.getpid()}\n"


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        body = greeting().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    is_handed = "LISTEN_FDS" in os.environ
    address = ("127.0.0.1", 0 if is_handed else int(sys.argv[1]))
    server = ThreadingHTTPServer(address, Hello, bind_and_activate=not is_handed)
    if is_handed:
        server.socket = socket.socket(fileno=3)
    server.serve_forever()
else:
    import flask

    app = flask.Flask(__name__)
    app.route("/")(greeting)
