#!/bin/sh
# `hello PID`; with the query string `slow` it takes 0.6 seconds.
[ "$QUERY_STRING" != slow ] || sleep 0.6
printf 'Content-Type: text/plain\r\n\r\nhello %d\n' $$
