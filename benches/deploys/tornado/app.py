"""`hello PID` on the listening socket at the descriptor given as the first argument; /slow takes two seconds."""

import asyncio
import os
import socket
import sys

import tornado.httpserver
import tornado.web


class Hello(tornado.web.RequestHandler):
    async def get(self):
        if self.request.path == "/slow":
            await asyncio.sleep(2)
        self.write(f"hello {os.getpid()}\n")


async def main():
    server = tornado.httpserver.HTTPServer(tornado.web.Application([("/.*", Hello)]))
    server.add_sockets([socket.socket(fileno=int(sys.argv[1]))])
    await asyncio.Event().wait()


asyncio.run(main())
