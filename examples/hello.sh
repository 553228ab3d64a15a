#!/usr/bin/env bash
# handoff-run --listen 127.0.0.1:8000 -- examples/hello.sh, with that very line in UPGRADE for SIGUSR2.
# What it does not do: serve more than four clients at a time, read what they ask for, or give up on one that stays
# silent. perl accepts, one connection and only when nobody wants us to stop: a socat or an inetd with a loop of its own
# loses, when it is told to stop, what it has just accepted. bash, for the number in READY_FD may have two digits.
# shellcheck disable=SC2016  # perl expands it
accept='use Fcntl; open L, "+<&=3"; fcntl L, F_SETFL, O_RDWR | O_NONBLOCK; vec($r, 3, 1) = 1;
    select($r, undef, undef, 0.2) && accept(C, L) && open(STDIN, "<&C") && open(STDOUT, ">&C") && exec @ARGV'
answer() {
    while read -r line && [ "$line" != "$(printf '\r')" ]; do :; done
    body="hello from ${HELLO_VERSION:-1}, pid $SERVER"
    printf 'HTTP/1.1 200 OK\r\nContent-Length: %s\r\nConnection: close\r\n\r\n%s\n' $((${#body} + 1)) "$body"
}
# shellcheck disable=SC2086  # a list of words
upgrade() { # the successor writes a line to READY_FD, a pipe, once it serves
    [ "$stop" ] && return
    { READY_FD=4 sh -c "$UPGRADE" 4>&1 >&5 5>&- & } 5>&1 | read -r _ && kill $workers && stop=1 && return
    echo 'hello.sh: the successor never served, serving on' >&2
}
[ "$1" = answer ] && { answer; exit; }
export SERVER=$$ && trap upgrade USR2 && trap 'kill $workers; stop=1' TERM
for _ in 1 2 3 4; do # a worker looks at its signals only between two connections
    (trap 'stop=1' TERM; trap '' USR2; until [ "$stop" ]; do perl -e "$accept" "$0" answer; done) &
    workers="$workers $!"
done
[ "$READY_FD" ] && echo >&"$READY_FD" && exec {READY_FD}>&-
unset READY_FD
until [ "$stop" ]; do wait; done
wait
