#!/bin/sh
# error-rate.sh URL [PERCENT [SECONDS [REQUESTS [WAIT]]]]: a --check that lets a release on trial go on if at most PERCENT (1) of
# its answers are 5xx and they take SECONDS (0.5) in the mean.
#
# URL is the server's own metrics as Prometheus reads them, such as http://127.0.0.1:8000/metrics. From HANDOFF_SOURCE they
# are those of the new generation alone, which counts from its start on; a counter that is reset counts from there. (With
# several workers they have to be those of all.) REQUESTS (100) are waited for, at most WAIT seconds (30): less than
# --ready-timeout, which ends a check, too. What is not known fails: metrics that do not come within 5 seconds, that are
# missing, lack the status, or are no numbers.
set -eu
counter=http_requests_total timer=http_request_duration_seconds
fail() { echo "error-rate: $*" >&2; exit 1; }
[ $# -ge 1 ] || fail "usage: error-rate.sh URL [PERCENT [SECONDS [REQUESTS [WAIT]]]]"
[ "${HANDOFF_SOURCE-}" ] || fail "no HANDOFF_SOURCE: any generation might answer"

metrics() { curl -sS --fail --noproxy '*' --max-time 5 --interface "$HANDOFF_SOURCE" "$1" 2>&1; }
# Ends with 0 if they are good, 1 if not, and 3 if there are too few requests yet.
judge() {
    awk -v counter=$counter -v timer=$timer -v percent="${2:-1}" -v seconds="${3:-0.5}" -v requests="${4:-100}" '
        function unknown(why) { print why; is_over = 1; exit 1 }
        # NAME{LABEL="VALUE",...} NUMBER [TIMESTAMP]
        match($0, /^[ \t]*[a-zA-Z_:][a-zA-Z0-9_:]*/) {
            name = substr($0, 1, RLENGTH); rest = substr($0, RLENGTH + 1); status = ""
            gsub(/[ \t]/, "", name)
            if (name != counter && name != timer "_sum" && name != timer "_count") next
            if (sub(/^[ \t]*\{[ \t]*/, "", rest)) {
                while (match(rest, /^[a-zA-Z_][a-zA-Z0-9_]*[ \t]*=[ \t]*"([^"\\]|\\.)*"[ \t]*,?[ \t]*/)) {
                    label = substr(rest, 1, RLENGTH); rest = substr(rest, RLENGTH + 1)
                    if (label ~ /^(code|status|status_code)[ \t]*=/) { split(label, part, "\""); status = part[2] }
                }
                if (!sub(/^\}/, "", rest)) unknown("cannot read: " $0)
            }
            sub(/^[ \t]+/, "", rest); sub(/[ \t\r].*/, "", rest)
            if (rest !~ /^\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$/) unknown("no number: " $0)
            if (name == counter && status == "") unknown("no status: " $0)
            sum[name] += rest
            if (name == counter && status ~ /^5/) errors += rest
        }
        END {
            if (is_over) exit 1
            total = sum[counter] + 0; timed = sum[timer "_count"] + 0
            if (total < requests + 0 || total == 0) { printf "only %d of %d requests in %s\n", total, requests, counter; exit 3 }
            if (timed == 0) { print "nothing in " timer; exit 1 }
            mean = sum[timer "_sum"] / timed
            printf "%d of %d requests failed (at most %s %%), %.3f s in the mean (at most %s s)\n", errors, total, percent + 0, mean, seconds + 0
            exit errors * 100 > percent * total || mean > seconds + 0
        }'
}

wait=${5:-30}
while text=$(metrics "$1") || fail "$text"; status=0; verdict=$(printf '%s\n' "$text" | judge "$@") || status=$?
    [ $status -eq 3 ] && [ "$wait" -gt 0 ]
do
    wait=$((wait - 1))
    sleep 1
done
echo "error-rate: $verdict"
[ $status -eq 0 ] || exit 1
