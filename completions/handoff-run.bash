# shellcheck shell=bash
# Made from handoff-run.bash.in and the command line's definition by src/cli/current/completions.rs.

# The kind of value that an option takes, which is what completes it; fails for an option that takes none.
_handoff_run_takes() {
    case $1 in
        -l | --listen) echo spec ;;
        --backlog) echo nothing ;;
        --from) echo predecessor ;;
        --from-signal) echo word signal ;;
        --first-fd) echo nothing ;;
        -C | --chdir) echo directory ;;
        --env-file) echo file ;;
        --env) echo nothing ;;
        --as) echo word as ;;
        --pid-file) echo file ;;
        --control) echo file ;;
        --ready) echo word ready ;;
        --ready-timeout) echo nothing ;;
        --stop-signal) echo word signal ;;
        --drain-timeout) echo nothing ;;
        --drain) echo word drain ;;
        --settle) echo nothing ;;
        --restart) echo word restart ;;
        --reload) echo supervisor ;;
        --status) echo supervisor ;;
        --stop) echo supervisor ;;
        --promote) echo supervisor ;;
        --rollback) echo supervisor ;;
        --canary) echo nothing ;;
        --check) echo command ;;
        *) return 1 ;;
    esac
}

# The options that may follow a request, or without one, those that may be given.
_handoff_run_options() {
    case $1 in
        '') echo -l --listen --backlog --from --from-signal --fdstore --stdin --first-fd --no-pid -C --chdir --env-file --env --as --lazy --pid-file --supervise --intercept --shared --control --ready --ready-timeout --stop-signal --drain-timeout --drain --settle --restart --reload --status --stop --promote --rollback --canary --check --wait --json --prometheus --help-servers -q --quiet -v --verbose -h --help -V --version ;;
        --reload) echo --canary --check --wait --help-servers -q --quiet -v --verbose -h --help -V --version ;;
        --status) echo --json --prometheus --help-servers -q --quiet -v --verbose -h --help -V --version ;;
        --stop) echo --help-servers -q --quiet -v --verbose -h --help -V --version ;;
        --promote) echo --help-servers -q --quiet -v --verbose -h --help -V --version ;;
        --rollback) echo --help-servers -q --quiet -v --verbose -h --help -V --version ;;
    esac
}

_handoff_run_words() {
    case $1 in
        type) echo tcp: tcp4: tcp6: udp: udp4: udp6: vsock: fd: unix: unix-dgram: unix-seqpacket: ;;
        option) echo backlog= mode= user= group= v6only reuseport freebind device= defer-accept= keepalive nodelay rcvbuf= sndbuf= nonblock ;;
        signal) echo HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS ;;
        as) echo caddy fastcgi flask gunicorn h2o haproxy hypercorn java nghttpx nginx node php-fpm puma starlet starman tornado traefik twisted unicorn uvicorn uwsgi waitress ;;
        ready) echo auto notify accepting fd: http: check: after: ;;
        drain) echo signal idle ;;
        restart) echo always on-failure on-failure: no ;;
    esac
}

_handoff_run_find() {
    sh -c '# Prints what can be taken over, one a line: a word, a tab, and what it is. With the argument supervisors, these alone.

# Their control sockets, as their command lines have them: PATH[,OPTION]..., from their working directories.
supervisors() {
    grep -slx handoff-run /proc/[0-9]*/comm | while read -r comm; do
        process=${comm%/comm}
        pid=${process#/proc/}
        path=$(tr "\0" "\n" <"$process/cmdline" | sed -n "
            /^--control\(=\|$\)/ { s/^--control=//; t found; n; :found; s/\([^\\]\),.*/\1/; s/\\\\\(.\)/\1/g; p; q }")
        case $path in
            /*) ;;
            ?*) path=$(readlink "$process/cwd")/${path#./} ;;
        esac
        [ -S "$path" ] || continue
        child="" name=""
        # There is no newline at its end.
        read -r child _ <"$process/task/$pid/children"
        [ -z "$child" ] || read -r name <"/proc/$child/comm"
        printf "%s\t%s\n" "$path" "supervisor $pid${name:+ of $name}"
    done 2>/dev/null | sort -u
}

# The processes whose files we may see that listen on TCP or Unix sockets, or have an unconnected UDP socket.
listening() {
    {
        cat /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/udp6 /proc/net/unix
        find /proc/[0-9]*/fd -lname "socket:*" -printf "%l %h\n"
    } 2>/dev/null | awk "
        \$4 == \"0A\" || \$4 == \"07\" { listening[\"socket:[\" \$10 \"]\"] }
        \$4 == \"00010000\" { listening[\"socket:[\" \$7 \"]\"] }
        \$1 in listening { split(\$2, path, \"/\"); print path[3] }" | sort -nu | while read -r pid; do
        read -r name <"/proc/$pid/comm" && printf "%s\t%s\n" "$pid" "$name"
    done 2>/dev/null
}

supervisors
[ "$1" = supervisors ] || listening
' sh "$1"
}

# Offer those of these words that begin with the value; bash replaces only what is behind the last = or : of it.
_handoff_run_offer() {
    local word breaks=${COMP_WORDBREAKS//[^:=]/} before=""
    [[ $breaks ]] && before=${value%"${value##*["$breaks"]}"}
    for word; do
        [[ $word == "$value"* ]] && COMPREPLY+=("${word#"$before"}")
    done
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:=] ]] && compopt -o nospace
}

# What is offered for each kind of value. Where it is nothing, bash offers files.

_handoff_run_word() {
    local words
    compopt +o default +o bashdefault
    read -ra words < <(_handoff_run_words "$1")
    _handoff_run_offer "${words[@]}"
}

_handoff_run_nothing() {
    compopt +o default +o bashdefault
}

_handoff_run_file() {
    :
}

_handoff_run_directory() {
    compopt +o default +o bashdefault -o dirnames
}

_handoff_run_command() {
    mapfile -t COMPREPLY < <(compgen -c -- "$value")
}

_handoff_run_spec() {
    local before=${value%,*}, words
    if [[ $value != *,* ]]; then
        before=""
        [[ $value == *=* ]] && before=${value%%=*}=
        read -ra words < <(_handoff_run_words type)
    else
        compopt +o default +o bashdefault
        read -ra words < <(_handoff_run_words option)
    fi
    _handoff_run_offer "${words[@]/#/$before}"
}

_handoff_run_supervisor() {
    _handoff_run_found supervisors
}

_handoff_run_predecessor() {
    _handoff_run_offer auto
    _handoff_run_found all
}

# Offer what is found, and files too where a path is begun: then bash quotes what needs it.
_handoff_run_found() {
    local found
    mapfile -t found < <(_handoff_run_find "$1" | cut -f 1)
    if [[ $value == */* ]]; then
        compopt -o filenames
        mapfile -t -O ${#found[@]} found < <(compgen -f -- "$value")
    elif [[ ${found[*]} ]]; then
        mapfile -t found < <(printf '%q\n' "${found[@]}")
    fi
    _handoff_run_offer "${found[@]}"
}

# What PROGRAM, which is word $1 of COMP_WORDS, would get on a line of its own, or without bash-completion, a command or files.
_handoff_run_program() {
    local function
    for function in _comp_command_offset _command_offset; do
        if declare -F $function >/dev/null; then
            $function "$1"
            return
        fi
    done
    ((COMP_CWORD > $1)) || mapfile -t COMPREPLY < <(compgen -c -- "${COMP_WORDS[COMP_CWORD]}")
}

# The words of the line up to the cursor, which bash cuts at = and :, and where in COMP_WORDS each begins.
_handoff_run_split() {
    local line=${COMP_LINE:0:COMP_POINT} i word
    for ((i = 0; i <= COMP_CWORD; i++)); do
        if [[ $i -eq 0 || $line == [[:space:]]* ]]; then
            words+=("")
            starts+=("$i")
        fi
        line=${line#"${line%%[![:space:]]*}"}
        word=${COMP_WORDS[i]}
        ((i < COMP_CWORD)) || word=$line
        words[-1]+=$word
        line=${line#"$word"}
    done
}

# Read one word of options. What waits for a value, which may have begun with the word, is then in `option`.
_handoff_run_read() {
    local rest=${1#-}
    option="" value=""
    if [[ $1 == --* ]]; then
        option=${1%%=*}
        [[ $1 != *=* ]] || value=${1#*=}
        [[ $(_handoff_run_options "$option") ]] && request=$option
        _handoff_run_takes "$option" >/dev/null || option=""
        return
    fi
    while [[ $rest && ! $option ]]; do
        _handoff_run_takes "-${rest:0:1}" >/dev/null && option=-${rest:0:1} value=${rest:1}
        rest=${rest:1}
    done
}

_handoff_run() {
    local words=() starts=() i option="" value="" request="" current kind
    COMPREPLY=()
    _handoff_run_split
    current=${words[-1]}
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        if [[ $option ]]; then
            option=""
        elif [[ ${words[i]} == -- ]]; then
            _handoff_run_program "${starts[i + 1]}"
            return
        elif [[ ${words[i]} == -* ]]; then
            _handoff_run_read "${words[i]}"
            [[ ${words[i]} == --*=* || $value ]] && option=""
        else
            _handoff_run_program "${starts[i]}"
            return
        fi
    done
    if [[ $option ]]; then
        value=$current
    elif [[ $current == --*=* || $current == -[!-]?* ]]; then
        _handoff_run_read "$current"
    fi
    if [[ $option ]]; then
        kind=$(_handoff_run_takes "$option")
        "_handoff_run_${kind% *}" "${kind#* }"
    elif [[ $current == -* || $request ]]; then
        value=$current
        compopt +o default +o bashdefault
        read -ra words < <(_handoff_run_options "$request")
        _handoff_run_offer "${words[@]}"
    else
        _handoff_run_program "${starts[i]}"
    fi
}

complete -F _handoff_run -o bashdefault -o default handoff-run
