"""`hello PID` as WSGI (app:wsgi), as ASGI (app:asgi) and with Flask (app)."""

import os

import flask

app = flask.Flask(__name__)


@app.route("/")
def hello():
    return f"hello {os.getpid()}\n"


wsgi = app


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b"hello %d\n" % os.getpid()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
