#!/usr/bin/env ruby
# handoff-run --listen 127.0.0.1:8000 -- examples/hello.rb, with that very line in UPGRADE for SIGUSR2.
# What it does not do: bound the number of threads, take a second socket, or check LISTEN_PID.
require 'socket'
require 'timeout'

VERSION = ENV.fetch('HELLO_VERSION', '1')

def answer(client)
  Timeout.timeout(10) do # for a client that sends nothing: draining waits no longer than this for it
    until [nil, "\r\n"].include?(client.gets); end
    body = "hello from #{VERSION}, pid #{$$}\n"
    client.write("HTTP/1.1 200 OK\r\nContent-Length: #{body.bytesize}\r\nConnection: close\r\n\r\n#{body}")
  end
rescue Timeout::Error, SystemCallError, IOError
  # It went.
ensure
  client.close
end

# True once the successor serves: it writes a byte to READY_FD.
def upgraded?
  ready, tell = IO.pipe
  successor = spawn({ 'READY_FD' => '4' }, ENV.fetch('UPGRADE'), 3 => 3, 4 => tell)
  tell.close
  return true if ready.read(1)
  Process.kill('KILL', successor)
  Process.wait(successor)
  warn 'hello.rb: the successor never served, serving on'
end

listener = Socket.for_fd(3) # never told to listen again, which would change the backlog
wake, signals = IO.pipe
%w[TERM USR2].each { |name| trap(name) { signals.puts(name) } }
if (tell = ENV.delete('READY_FD'))
  IO.open(tell.to_i, 'w') { |ready| ready.puts }
end

clients = []
upgrade = nil
loop do
  readable, = IO.select([listener, wake])
  if readable.include?(wake)
    break if wake.gets == "TERM\n"
    upgrade = Thread.new { signals.puts('TERM') if upgraded? } unless upgrade&.alive?
  end
  # Another generation may be quicker to accept what both were woken for.
  client, = listener.accept_nonblock(exception: false) if readable.include?(listener)
  clients = clients.select(&:alive?).push(Thread.new(client) { |one| answer(one) }) if client.is_a?(Socket)
end
listener.close
clients.each(&:join)
