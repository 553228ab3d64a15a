complete -c handoff-run -s l -l listen -d 'Listen here: [NAME=]ADDRESS[,KEY[=VALUE]]...' -r
complete -c handoff-run -l backlog -d 'Connections that may wait to be accepted' -r
complete -c handoff-run -l from -d 'Take the sockets over from a running process, and retire it: a pid, a pid file, a control socket, or auto' -r -F -a '(echo auto; begin; ss -Hltnp; ss -Hlxp; end 2>/dev/null | grep -o "pid=[0-9]*" | cut -c5- | sort -un; ss -Hlxp 2>/dev/null | grep "^u_str.*handoff-run" | tr -s " " | cut -d " " -f 5 | grep "^/")'
complete -c handoff-run -l from-signal -d 'The signal that asks the process of --from to drain [default: --stop-signal, or TERM]' -r
complete -c handoff-run -l first-fd -d 'Number the sockets from N instead of 3' -r
complete -c handoff-run -s C -l chdir -d 'Start PROGRAM in this directory' -r -f -a "(__fish_complete_directories)"
complete -c handoff-run -l env-file -d 'Set the variables of PROGRAM that this file has' -r -F
complete -c handoff-run -l env -d 'Set a variable of PROGRAM, placeholders replaced' -r
complete -c handoff-run -l as -d 'Do what this server needs to take a socket' -r -f -a "caddy\t''
fastcgi\t''
flask\t''
gunicorn\t''
h2o\t''
haproxy\t''
hypercorn\t''
java\t''
nghttpx\t''
nginx\t''
node\t''
php-fpm\t''
puma\t''
starlet\t''
starman\t''
tornado\t''
traefik\t''
twisted\t''
unicorn\t''
uvicorn\t''
uwsgi\t''
waitress\t''"
complete -c handoff-run -l pid-file -d 'Write the process id to this file before becoming PROGRAM' -r -F
complete -c handoff-run -l control -d 'Take requests, such as --reload and --status, on this Unix socket: PATH[,OPTION]...' -r -F
complete -c handoff-run -l ready -d 'When a generation counts as ready [default: auto]' -r
complete -c handoff-run -l ready-timeout -d 'How long a generation may take to get ready [default: 60s]' -r
complete -c handoff-run -l stop-signal -d 'The signal that asks a generation to drain [default: TERM, or what --as knows]' -r
complete -c handoff-run -l drain-timeout -d 'How long a generation may take to drain [default: 30s]' -r
complete -c handoff-run -l drain -d 'When a generation that has a successor is asked to drain [default: signal]' -r
complete -c handoff-run -l settle -d 'How long the old generation stands by when the new one serves [default: 1s]' -r
complete -c handoff-run -l restart -d 'What follows when the generation that serves ends unasked [default: always]' -r
complete -c handoff-run -l reload -d 'Ask the supervisor at this control socket for a new generation' -r -F
complete -c handoff-run -l status -d 'Show the generations of the supervisor at this control socket' -r -F
complete -c handoff-run -l stop -d 'Drain and stop the supervisor at this control socket' -r -F
complete -c handoff-run -l promote -d 'Let the new generation of the supervisor at this control socket take over now' -r -F
complete -c handoff-run -l rollback -d 'Let the old generation of the supervisor at this control socket serve again' -r -F
complete -c handoff-run -l canary -d 'With --reload, try the new generation first: SHARE%:DURATION[,sticky]' -r
complete -c handoff-run -l check -d 'With --canary, a command that has to succeed at the end of each stage' -r
complete -c handoff-run -l fdstore -d 'Also keep the sockets in the service manager\'s descriptor store'
complete -c handoff-run -l stdin -d 'Make the first socket descriptor 0 too'
complete -c handoff-run -l no-pid -d 'Leave LISTEN_PID out'
complete -c handoff-run -l lazy -d 'Become PROGRAM only when the first client is waiting'
complete -c handoff-run -l supervise -d 'Stay as the parent of PROGRAM and start its next generation on request'
complete -c handoff-run -l intercept -d 'Answer PROGRAM\'s own bind(2) to an address of --listen with our socket'
complete -c handoff-run -l shared -d 'Let all generations accept on one socket'
complete -c handoff-run -l wait -d 'With --reload, end when the old generation is gone'
complete -c handoff-run -l json -d 'With --status, print JSON'
complete -c handoff-run -l help-servers -d 'Show the servers that --as knows, with a line that works for each'
complete -c handoff-run -s q -l quiet -d 'Log less; twice: errors only'
complete -c handoff-run -s v -l verbose -d 'Log more; twice: everything'
complete -c handoff-run -s h -l help -d 'Print help: -h these lines, --help all of it'
complete -c handoff-run -s V -l version -d 'Print the version'
