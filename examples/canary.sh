#!/bin/sh
# canary.sh BUILD URL [LIMIT]...: deploy.sh for a release that has to prove itself first, on a share of new connections, by
# what error-rate.sh finds at URL, where the LIMITs are explained. A bad one is rolled back by itself; the status is that of
# --reload.
set -eu
stages=${STAGES:-5%:10m 50%:10m}
[ $# -ge 2 ] || { echo "canary: usage: canary.sh BUILD URL [LIMIT]..." >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
build=$1
shift
# The supervisor runs it with a shell.
quote() { printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"; }
check=$(quote "$here/error-rate.sh")
for word; do check="$check $(quote "$word")"; done
set --
for stage in $stages; do set -- "$@" --canary "$stage"; done
exec "$here/deploy.sh" "$build" "$@" --check "$check"
