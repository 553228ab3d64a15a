"""`hello PID`; /slow takes two seconds."""

import logging
import os
import time

import flask

# Else it writes a line for each request.
logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = flask.Flask(__name__)


@app.route("/")
def hello():
    return f"hello {os.getpid()}\n"


@app.route("/slow")
def slow():
    time.sleep(2)
    return hello()
