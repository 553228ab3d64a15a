# Made from handoff-run.fish.in and the command line's definition by src/cli/current/completions.rs.

# Whether neither PROGRAM nor a request other than these is on the line yet.
function __handoff_run_after
    set -l allowed $argv
    # It fails while an option has no value: then it is this value that is completed.
    argparse -s l/listen= backlog= from= from-signal= fdstore stdin first-fd= no-pid C/chdir= env-file= env= as= lazy pid-file= supervise intercept shared control= ready= ready-timeout= stop-signal= drain-timeout= drain= settle= restart= reload= status= stop= promote= rollback= canary= check= wait json prometheus help-servers q/quiet v/verbose h/help V/version -- (commandline -opc)[2..] 2>/dev/null
    or return 0
    for request in reload status stop promote rollback
        set -q _flag_$request; and not contains $request $allowed; and return 1
    end
    not set -q argv[1]
end

# What PROGRAM would get on a line of its own.
function __handoff_run_program
    argparse -s l/listen= backlog= from= from-signal= fdstore stdin first-fd= no-pid C/chdir= env-file= env= as= lazy pid-file= supervise intercept shared control= ready= ready-timeout= stop-signal= drain-timeout= drain= settle= restart= reload= status= stop= promote= rollback= canary= check= wait json prometheus help-servers q/quiet v/verbose h/help V/version -- (commandline -opc)[2..] 2>/dev/null
    or return
    for request in reload status stop promote rollback
        set -q _flag_$request; and return
    end
    # With none yet, an option is ours.
    set -q argv[1]; or not string match -q -- '-*' (commandline -ct); or return
    complete -C "$(string join ' ' -- (string escape -- $argv) (commandline -ct))"
end

function __handoff_run_word
    switch $argv[1]
        case type
            printf '%s\t%s\n' 'tcp:' '' 'tcp4:' '' 'tcp6:' '' 'udp:' '' 'udp4:' '' 'udp6:' '' 'vsock:' '' 'fd:' '' 'unix:' '' 'unix-dgram:' '' 'unix-seqpacket:' ''
        case option
            printf '%s\t%s\n' 'backlog=' 'connections that may wait to be accepted, instead of --backlog' 'mode=' 'permissions of the socket\'s file, in octal; without it the umask decides' 'user=' 'owner of the socket\'s file, a name or a number' 'group=' 'group of the socket\'s file, a name or a number' 'v6only' 'IPv6 alone, no IPv4 through mapped addresses (IPV6_V6ONLY)' 'reuseport' 'let others of the same user bind the address too (SO_REUSEPORT)' 'freebind' 'bind an address that no interface has yet (IP_FREEBIND)' 'device=' 'only what comes in through this interface (SO_BINDTODEVICE)' 'defer-accept=' 'seconds that a connection may wait for its first data before it is given to the server (TCP_DEFER_ACCEPT)' 'keepalive' 'probe idle connections (SO_KEEPALIVE)' 'nodelay' 'send small segments at once (TCP_NODELAY)' 'rcvbuf=' 'receive buffer in bytes (SO_RCVBUF)' 'sndbuf=' 'send buffer in bytes (SO_SNDBUF)' 'nonblock' 'O_NONBLOCK, for servers which need it and do not set it'
        case signal
            printf '%s\t%s\n' 'HUP' '' 'INT' '' 'QUIT' '' 'ILL' '' 'TRAP' '' 'ABRT' '' 'BUS' '' 'FPE' '' 'KILL' '' 'USR1' '' 'SEGV' '' 'USR2' '' 'PIPE' '' 'ALRM' '' 'TERM' '' 'STKFLT' '' 'CHLD' '' 'CONT' '' 'STOP' '' 'TSTP' '' 'TTIN' '' 'TTOU' '' 'URG' '' 'XCPU' '' 'XFSZ' '' 'VTALRM' '' 'PROF' '' 'WINCH' '' 'IO' '' 'PWR' '' 'SYS' ''
        case as
            printf '%s\t%s\n' 'caddy' 'bind fd/3' 'fastcgi' 'any FastCGI program' 'flask' 'loses the requests it holds when stopped' 'gunicorn' 'without -b fd://' 'h2o' 'listen must equal the address' 'haproxy' 'bind fd@3' 'hypercorn' '' 'java' 'System.inheritedChannel(), for which a shutdown hook has to close the channel and wait' 'nghttpx' 'on a path --frontend=unix:{path}' 'nginx' 'listen must equal the address: listen 80 is :80, with listen [::]:80 beside it add -l [::]:80,v6only' 'node' 'server.listen({fd: Number(process.argv[2])}); SIGTERM has to call server.close()' 'php-fpm' 'the pool\'s listen must equal the address' 'puma' 'on a path -b unix://{path}' 'starlet' 'not on IPv6' 'starman' 'not on IPv6; not on a path' 'tornado' 'server.add_sockets([socket.socket(fileno=int(sys.argv[1]))]); loses the requests it holds when stopped' 'traefik' 'NAME= must be the entrypoint\'s; not on a path' 'twisted' 'on IPv6 domain=INET6, on a path domain=UNIX; loses the requests it holds when stopped' 'unicorn' '' 'uvicorn' '' 'uwsgi' '' 'waitress' 'serve(app, sockets=[socket.socket(fileno=int(sys.argv[1]))]); loses the requests it holds when stopped'
        case ready
            printf '%s\t%s\n' 'auto' 'it is seen waiting on every socket, or where that cannot be seen, sends READY=1 (sd_notify)' 'notify' 'it sends READY=1 and, where that can be seen, waits on every socket' 'accepting' 'it is seen waiting on every socket' 'fd:' 'it writes a byte to descriptor N' 'http:' 'it answers a GET of PATH on its first socket, which has to be steered, with 2xx or 3xx' 'check:' 'the command, run by sh, ends with status 0 and, where that can be seen, it waits on every socket' 'after:' 'that time has passed and, where that can be seen, it waits on every socket'
        case drain
            printf '%s\t%s\n' 'signal' 'as soon as no connection waits for it' 'idle' 'when its connections have ended, or at --drain-timeout; for servers that drop what they hold when they are asked to stop'
        case restart
            printf '%s\t%s\n' 'always' 'it is started again' 'on-failure' 'it is started again if its status is not 0, else the supervisor ends with 0' 'on-failure:' 'the same, at most N times in a row; a row ends when one has served for 10 seconds' 'no' 'the supervisor ends with its status'
    end
end

function __handoff_run_find
    sh -c '# Prints what can be taken over, one a line: a word, a tab, and what it is. With the argument supervisors, these alone.

# Their control sockets, as their command lines have them: PATH[,OPTION]..., from their working directories.
supervisors() {
    grep -slx handoff-run /proc/[0-9]*/comm | while read -r comm; do
        process=${comm%/comm}
        pid=${process#/proc/}
        path=$(tr "\\0" "\\n" <"$process/cmdline" | sed -n "
            /^--control\\(=\\|$\\)/ { s/^--control=//; t found; n; :found; s/\\([^\\\\]\\),.*/\\1/; s/\\\\\\\\\\(.\\)/\\1/g; p; q }")
        case $path in
            /*) ;;
            ?*) path=$(readlink "$process/cwd")/${path#./} ;;
        esac
        [ -S "$path" ] || continue
        child="" name=""
        # There is no newline at its end.
        read -r child _ <"$process/task/$pid/children"
        [ -z "$child" ] || read -r name <"/proc/$child/comm"
        printf "%s\\t%s\\n" "$path" "supervisor $pid${name:+ of $name}"
    done 2>/dev/null | sort -u
}

# The processes whose files we may see that listen on TCP or Unix sockets, or have an unconnected UDP socket.
listening() {
    {
        cat /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/udp6 /proc/net/unix
        find /proc/[0-9]*/fd -lname "socket:*" -printf "%l %h\\n"
    } 2>/dev/null | awk "
        \\$4 == \\"0A\\" || \\$4 == \\"07\\" { listening[\\"socket:[\\" \\$10 \\"]\\"] }
        \\$4 == \\"00010000\\" { listening[\\"socket:[\\" \\$7 \\"]\\"] }
        \\$1 in listening { split(\\$2, path, \\"/\\"); print path[3] }" | sort -nu | while read -r pid; do
        read -r name <"/proc/$pid/comm" && printf "%s\\t%s\\n" "$pid" "$name"
    done 2>/dev/null
}

supervisors
[ "$1" = supervisors ] || listening
' sh $argv[1]
end

function __handoff_run_supervisor
    __handoff_run_find supervisors
end

function __handoff_run_predecessor
    printf '%s\t%s\n' auto 'the process that has the address'
    __handoff_run_find all
end

function __handoff_run_spec
    set -l value (string replace -r -- '^(--listen=|-l)' '' (commandline -ct))
    if set -l before (string match -r -- '^.*,' $value)
        printf '%s\n' $before(__handoff_run_word option)
    else
        set before (string match -r -- '^[^/:=]+=' $value)
        printf '%s\n' "$before"(__handoff_run_word type)
    end
end

complete -c handoff-run -x -a '(__handoff_run_program)'
complete -c handoff-run -n '__handoff_run_after' -s l -l listen -d 'Listen here: [NAME=]ADDRESS[,KEY[=VALUE]]...' -r -F -k -a '(__handoff_run_spec)'
complete -c handoff-run -n '__handoff_run_after' -l backlog -d 'Connections that may wait to be accepted' -x
complete -c handoff-run -n '__handoff_run_after' -l from -d 'Take the sockets over from a running process, and retire it: a pid, a pid file, a control socket, or auto' -r -F -k -a '(__handoff_run_predecessor)'
complete -c handoff-run -n '__handoff_run_after' -l from-signal -d 'The signal that asks the process of --from to drain [default: --stop-signal, or TERM]' -x -k -a '(__handoff_run_word signal)'
complete -c handoff-run -n '__handoff_run_after' -l fdstore -d 'Also keep the sockets in the service manager\'s descriptor store'
complete -c handoff-run -n '__handoff_run_after' -l stdin -d 'Make the first socket descriptor 0 too'
complete -c handoff-run -n '__handoff_run_after' -l first-fd -d 'Number the sockets from N instead of 3' -x
complete -c handoff-run -n '__handoff_run_after' -l no-pid -d 'Leave LISTEN_PID out'
complete -c handoff-run -n '__handoff_run_after' -s C -l chdir -d 'Start PROGRAM in this directory' -x -a '(__fish_complete_directories)'
complete -c handoff-run -n '__handoff_run_after' -l env-file -d 'Set the variables of PROGRAM that this file has' -r -F
complete -c handoff-run -n '__handoff_run_after' -l env -d 'Set a variable of PROGRAM, placeholders replaced' -x
complete -c handoff-run -n '__handoff_run_after' -l as -d 'Do what this server needs to take a socket' -x -k -a '(__handoff_run_word as)'
complete -c handoff-run -n '__handoff_run_after' -l lazy -d 'Become PROGRAM only when the first client is waiting'
complete -c handoff-run -n '__handoff_run_after' -l pid-file -d 'Write the process id to this file before becoming PROGRAM' -r -F
complete -c handoff-run -n '__handoff_run_after' -l supervise -d 'Stay as the parent of PROGRAM and start its next generation on request'
complete -c handoff-run -n '__handoff_run_after' -l intercept -d 'Answer PROGRAM\'s own bind(2) to an address of --listen with our socket'
complete -c handoff-run -n '__handoff_run_after' -l shared -d 'Let all generations accept on one socket'
complete -c handoff-run -n '__handoff_run_after' -l control -d 'Take requests, such as --reload and --status, on this Unix socket: PATH[,OPTION]...' -r -F
complete -c handoff-run -n '__handoff_run_after' -l ready -d 'When a generation counts as ready [default: auto]' -x -k -a '(__handoff_run_word ready)'
complete -c handoff-run -n '__handoff_run_after' -l ready-timeout -d 'How long a generation may take to get ready [default: 60s]' -x
complete -c handoff-run -n '__handoff_run_after' -l stop-signal -d 'The signal that asks a generation to drain [default: TERM, or what --as knows]' -x -k -a '(__handoff_run_word signal)'
complete -c handoff-run -n '__handoff_run_after' -l drain-timeout -d 'How long a generation may take to drain [default: 30s]' -x
complete -c handoff-run -n '__handoff_run_after' -l drain -d 'When a generation that has a successor is asked to drain [default: signal]' -x -k -a '(__handoff_run_word drain)'
complete -c handoff-run -n '__handoff_run_after' -l settle -d 'How long the old generation stands by when the new one serves [default: 1s]' -x
complete -c handoff-run -n '__handoff_run_after' -l restart -d 'What follows when the generation that serves ends unasked [default: always]' -x -k -a '(__handoff_run_word restart)'
complete -c handoff-run -n '__handoff_run_after' -l reload -d 'Ask the supervisor at this control socket for a new generation' -r -F -k -a '(__handoff_run_supervisor)'
complete -c handoff-run -n '__handoff_run_after' -l status -d 'Show the generations of the supervisor at this control socket' -r -F -k -a '(__handoff_run_supervisor)'
complete -c handoff-run -n '__handoff_run_after' -l stop -d 'Drain and stop the supervisor at this control socket' -r -F -k -a '(__handoff_run_supervisor)'
complete -c handoff-run -n '__handoff_run_after' -l promote -d 'Let the new generation of the supervisor at this control socket take over now' -r -F -k -a '(__handoff_run_supervisor)'
complete -c handoff-run -n '__handoff_run_after' -l rollback -d 'Give up the new generation of the supervisor at this control socket, if it has not settled' -r -F -k -a '(__handoff_run_supervisor)'
complete -c handoff-run -n '__handoff_run_after reload' -l canary -d 'With --reload, try the new generation first: SHARE%:DURATION[,sticky]' -x
complete -c handoff-run -n '__handoff_run_after reload' -l check -d 'With --canary, a command that has to succeed at the end of each stage' -x -a '(__fish_complete_command)'
complete -c handoff-run -n '__handoff_run_after reload' -l wait -d 'With --reload, end when the old generation is gone'
complete -c handoff-run -n '__handoff_run_after status' -l json -d 'With --status, print JSON'
complete -c handoff-run -n '__handoff_run_after status' -l prometheus -d 'With --status, print metrics for the textfile collector of Prometheus\' node exporter'
complete -c handoff-run -n '__handoff_run_after reload status stop promote rollback' -l help-servers -d 'Show the servers that --as knows, with a line that works for each'
complete -c handoff-run -n '__handoff_run_after reload status stop promote rollback' -s q -l quiet -d 'Log less; twice: errors only'
complete -c handoff-run -n '__handoff_run_after reload status stop promote rollback' -s v -l verbose -d 'Log more; twice: everything'
complete -c handoff-run -n '__handoff_run_after reload status stop promote rollback' -s h -l help -d 'Print help: -h these lines, --help all of it'
complete -c handoff-run -n '__handoff_run_after reload status stop promote rollback' -s V -l version -d 'Print the version'
