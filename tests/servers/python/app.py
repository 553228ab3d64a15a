"""`hello PID` as WSGI (app:wsgi) and as ASGI (app:asgi); /slow takes 0.6 seconds."""

import asyncio
import os
import time


def body():
    return b"hello %d\n" % os.getpid()


def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.6)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body())))])
    return [body()]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body()))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body()})
