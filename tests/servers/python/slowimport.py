"""The same application, but its import takes until the file `go` is there (slowimport:wsgi, slowimport:asgi)."""

import os
import time

from app import asgi, wsgi  # noqa: F401

open("importing", "w").close()
while not os.path.exists("go"):
    time.sleep(0.005)
