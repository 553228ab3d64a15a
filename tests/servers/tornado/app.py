"""`hello` on the listening socket at the descriptor given as the first argument."""

import asyncio
import socket
import sys

import tornado.httpserver
import tornado.web


class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write("hello\n")


async def main():
    server = tornado.httpserver.HTTPServer(tornado.web.Application([("/", Hello)]))
    server.add_sockets([socket.socket(fileno=int(sys.argv[1]))])
    await asyncio.Event().wait()


asyncio.run(main())
