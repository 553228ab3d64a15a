"""`hello PID` as WSGI (app:wsgi) and as ASGI (app:asgi); /slow takes two seconds."""

import asyncio
import os
import time

BODY = b"hello %d\n"


def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(2)
    body = BODY % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(2)
    body = BODY % os.getpid()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
