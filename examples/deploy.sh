#!/bin/sh
# deploy.sh BUILD [OPTION]...: make BUILD, a folder or an archive, the release that serves, or leave everything as it was and
# say why.
# deploy.sh --rollback [OPTION]...: the same with the release that was current before; once more, the one before that.
#
# The supervisor was started by:
#     handoff-run --listen :8000 --supervise --control /run/app.ctl -- /srv/app/current/server
# It need not run yet, and then starts the new release when it does. Two deploys at once are one, and one that says so;
# a trial that is under way ends by `handoff-run --rollback`, or with its deploy.
# Under systemd, with systemd/app.service:
#     CONTROL=/run/app/control deploy.sh build/
# OPTION is one of --reload, such as --canary. The status is that of --reload, and 1 where it did not come to that.
# Releases are kept until you remove them; one that failed is not, unless something drains then. KEEP=N removes, after a
# deploy, all but the current one and the N-1 that --rollback finds: more than are deployed within --drain-timeout, for they
# may still drain.
set -eu
app=${APP:-/srv/app} control=${CONTROL:-/run/app.ctl} keep=${KEEP:-} status=1 interrupted=
fail() { echo "deploy: $*" >&2; exit $status; }
case ${1-} in
    --rollback) build= ;;
    *) build=${1-}; [ -d "$build" ] || [ -f "$build" ] || fail "usage: deploy.sh BUILD|--rollback [OPTION]..." ;;
esac
shift
case " $* " in *" --wait "*) fail "without --wait: a release serves also where the one before does not end in time" ;; esac
case $keep in 0* | 1 | *[!0-9]*) fail "KEEP=$keep is no number from 2 on" ;; esac
command -v handoff-run >/dev/null || fail "handoff-run is not in PATH"

mkdir -p "$app/releases" "$app/before" || fail "cannot make $app/releases and $app/before"
app=$(cd "$app" && pwd)
{ : >>"$app/lock"; } 2>/dev/null || fail "cannot write $app/lock"
exec 9>>"$app/lock" && flock --nonblock 9 || fail "another deploy is under way"

# No socket there: none runs yet. Any other failure is no answer, and nothing is changed.
runs=
if [ -e "$control" ]; then
    [ -S "$control" ] || fail "$control is no control socket"
    answer=$(handoff-run --status "$control" 2>&1 >/dev/null 9>&-) && runs=1 || case $answer in
        *ECONNREFUSED*) ;;
        *) fail "$answer" ;;
    esac
fi

# `current` is never missing, nor half a name.
switch() { ln -sfn "$1" "$app/next" && mv -T "$app/next" "$app/current"; }
copy() { if [ -d "$build" ]; then cp -R "$build" "$release"; else mkdir "$release" && tar -xof "$build" -C "$release"; fi; }
# Where a link leads from a release to the one before. Written once: only `current` changes later, so the two always agree.
before() { echo "$app/before/${1##*/}"; }
discard() { [ -z "$build" ] || rm -rf "$release" "$(before "$release")"; }
# Of the generation in this state.
process() { handoff-run --status "$control" 2>/dev/null 9>&- | awk -v state="$1" '$3 == state { print $2 }'; }
# The release before serves on; the next start must not meet the broken one either.
take_back() {
    trap '' HUP INT TERM
    if [ -z "$previous" ]; then rm -f "$app/current"; else
        switch "$previous" || fail "$release does not serve ($1), but $app/current cannot lead to $previous again"
    fi
    # What it got before it was rolled back it still answers.
    [ "$(process draining)" ] || discard
    fail "$release does not serve ($1), ${previous:-nothing} does"
}
# What is starting is told to stop, and what has not settled is rolled back; what has settled stays.
cancel() {
    interrupted="it was interrupted" again=1
    starting=$(process starting)
    [ -z "$starting" ] || kill "$starting" || :
    handoff-run --rollback "$control" 2>/dev/null 9>&- || :
}
# Removes what no --rollback would find. Only what has our names.
prune() {
    kept=/ known=$release
    while [ "$keep" -gt 0 ] && [ -d "$known" ]; do
        kept=$kept${known##*/}/ keep=$((keep - 1))
        known=$(readlink "$(before "$known")") || known=
    done
    for old in "$app/releases"/[0-9]*-[0-9]*-[0-9]*; do
        case $kept in */"${old##*/}"/*) ;; *) rm -rf "$old" "$(before "$old")" || : ;; esac
    done
}

previous=$(readlink "$app/current") || previous=
if [ "$build" ]; then
    release=$app/releases/$(date +%Y%m%d-%H%M%S)-$$-$(basename "$build")
    trap 'take_back "it was interrupted"' HUP INT TERM
    copy || { discard; fail "cannot copy $build to $release"; }
    [ -z "$previous" ] || ln -s "$previous" "$(before "$release")" || { discard; fail "cannot write to $app/before"; }
else
    release=$(readlink "$(before "$previous")") || fail "no release is known that was before ${previous:-any}"
    [ -d "$release" ] || fail "$release, which was before $previous, is gone"
    trap 'take_back "it was interrupted"' HUP INT TERM
fi
switch "$release" || { discard; fail "cannot switch to $release"; }
if [ -z "$runs" ]; then
    echo "deploy: no supervisor at $control: $release is what it will start"
    exit
fi

trap cancel HUP INT TERM
# The reload would go on without its client, so that gets no signal; and the lock is not for the supervisor's children.
(trap '' HUP INT TERM && exec handoff-run --reload "$control" "$@" 9>&-) &
# A signal ends a wait, but not the reload, whose status decides.
while again='' status=0; wait $! || status=$?; [ "$again" ] && [ $status -gt 128 ]; do :; done
[ $status -eq 0 ] || take_back "${interrupted:-"--reload ended with $status"}"
trap - HUP INT TERM
[ -z "$keep" ] || [ -z "$build" ] || prune
