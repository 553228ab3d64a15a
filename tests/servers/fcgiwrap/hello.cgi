#!/bin/sh
# `hello PID`; with the query string `slow` it takes two seconds.
[ "$QUERY_STRING" != slow ] || sleep 2
printf 'Content-Type: text/plain\r\n\r\nhello %d\n' $$
