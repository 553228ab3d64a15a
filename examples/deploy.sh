#!/bin/sh
# deploy.sh BUILD: make the folder BUILD the release that serves, or leave everything as it was and say why.
#
# The supervisor was started by:
#     handoff-run --listen :8000 --supervise --control /run/app.ctl -- /srv/app/current/server
# It need not run yet, and then starts the new release when it does. Two deploys at once are one, and one that says so.
set -eu
app=${APP:-/srv/app} control=${CONTROL:-/run/app.ctl}
fail() { echo "deploy: $*" >&2; exit 1; }
[ $# -eq 1 ] && [ -d "$1" ] || fail "usage: deploy.sh BUILD, a folder"

mkdir -p "$app/releases" || fail "cannot make $app/releases"
exec 9>"$app/lock" && flock --nonblock 9 || fail "another deploy is under way"
release=$app/releases/$(date +%Y%m%d-%H%M%S)-$$
previous=$(readlink "$app/current") || previous=
cp -R "$1" "$release" || { rm -rf "$release"; fail "cannot copy $1 to $release"; }

# `current` is never missing, nor half a name.
switch() { ln -sfn "$1" "$app/next" && mv -T "$app/next" "$app/current"; }
switch "$release" || fail "cannot switch to $release"
if ! handoff-run --status "$control" >/dev/null 2>&1; then
    echo "deploy: no supervisor at $control: $release is what it will start"
    exit
fi
# The lock is not for the supervisor's children.
handoff-run --reload "$control" 9>&- && exit
status=$?
# The release before serves on; the next start must not meet the broken one either.
if [ "$previous" ]; then switch "$previous"; else rm "$app/current"; fi
fail "$release does not serve (--reload ended with $status), ${previous:-nothing} does"
