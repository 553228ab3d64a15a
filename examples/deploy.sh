#!/bin/sh
# deploy.sh BUILD: make the folder BUILD the release that serves, or leave everything as it was and say why.
#
# The supervisor was started by:
#     handoff-run --listen :8000 --supervise --control /run/app.ctl -- /srv/app/current/server
# It need not run yet, and then starts the new release when it does. Two deploys at once are one, and one that says so.
# Releases are kept until you remove them; one that never served is not.
set -eu
app=${APP:-/srv/app} control=${CONTROL:-/run/app.ctl}
fail() { echo "deploy: $*" >&2; exit 1; }
[ $# -eq 1 ] && [ -d "$1" ] || fail "usage: deploy.sh BUILD, a folder"
command -v handoff-run >/dev/null || fail "handoff-run is not in PATH"

mkdir -p "$app/releases" || fail "cannot make $app/releases"
app=$(cd "$app" && pwd)
{ : >>"$app/lock"; } 2>/dev/null || fail "cannot write $app/lock"
exec 9>>"$app/lock" && flock --nonblock 9 || fail "another deploy is under way"

# No socket there: none runs yet. Any other failure is no answer, and nothing is changed.
runs=
if [ -e "$control" ]; then
    answer=$(handoff-run --status "$control" 2>&1 >/dev/null 9>&-) && runs=1 || case $answer in
        *ECONNREFUSED*) ;;
        *) fail "$answer" ;;
    esac
fi

release=$app/releases/$(date +%Y%m%d-%H%M%S)-$$
previous=$(readlink "$app/current") || previous=
cp -R "$1" "$release" || { rm -rf "$release"; fail "cannot copy $1 to $release"; }

# `current` is never missing, nor half a name.
switch() { ln -sfn "$1" "$app/next" && mv -T "$app/next" "$app/current"; }
# The release before serves on; the next start must not meet the broken one either.
take_back() {
    if [ "$previous" ]; then switch "$previous"; else rm -f "$app/current"; fi
    rm -rf "$release"
    fail "$release does not serve ($1), ${previous:-nothing} does"
}
# The reload goes on without its client: what has not settled is rolled back; what has, or never served, is told by --status.
interrupted() {
    [ -z "$runs" ] || handoff-run --rollback "$control" 2>/dev/null 9>&- || :
    take_back "it was interrupted"
}
trap interrupted HUP INT TERM
switch "$release" || fail "cannot switch to $release"
if [ -z "$runs" ]; then
    echo "deploy: no supervisor at $control: $release is what it will start"
    exit
fi
# The lock is not for the supervisor's children.
handoff-run --reload "$control" 9>&- && exit
take_back "--reload ended with $?"
