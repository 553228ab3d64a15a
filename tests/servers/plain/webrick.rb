# `hello PID` at the port given as the first argument.
require 'webrick'
server = WEBrick::HTTPServer.new(Port: ARGV[0].to_i, AccessLog: [])
server.mount_proc('/') { |request, response| response.body = "hello #{Process.pid}\n" }
trap('TERM') { server.shutdown }
server.start
