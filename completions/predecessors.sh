# Prints what can be taken over, one a line: a word, a tab, and what it is. With the argument supervisors, these alone.

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
