"""`hello PID` with Django, the whole project in one file."""

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse
from django.urls import path

settings.configure(DEBUG=True, SECRET_KEY="none", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])


def hello(request):
    body = f"hello {os.getpid()}\n"
    return HttpResponse(body, headers={"Content-Type": "text/plain", "Content-Length": len(body)})


urlpatterns = [path("", hello)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
