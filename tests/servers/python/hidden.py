"""`hello PID` on the socket at 3, by a process that others may not look into; which way, and what it says, in argv."""

import ctypes
import os
import socket
import sys

PR_SET_DUMPABLE = 4

listener = socket.socket(fileno=3)
if "worker" in sys.argv and os.fork() != 0:
    os.wait()
if "nobody" in sys.argv:
    os.setgid(65534)
    os.setuid(65534)
if "undumpable" in sys.argv:
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
if "notify" in sys.argv:
    address = os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1)
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", address)
while True:
    client, _ = listener.accept()
    client.recv(4096)
    body = "hello %d\n" % os.getpid()
    client.sendall(("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)).encode())
    client.close()
