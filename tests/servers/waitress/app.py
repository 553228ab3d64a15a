"""`hello` on the listening socket at the descriptor given as the first argument."""

import socket
import sys

import waitress


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello\n"]


waitress.serve(app, sockets=[socket.socket(fileno=int(sys.argv[1]))])
