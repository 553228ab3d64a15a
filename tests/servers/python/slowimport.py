"""The same application, but its import takes three seconds (slowimport:wsgi, slowimport:asgi)."""

import time

from app import asgi, wsgi  # noqa: F401

time.sleep(3)
