# `hello PID`; /slow takes 0.6 seconds.
run lambda { |env|
  sleep 0.6 if env["PATH_INFO"] == "/slow"
  [200, { "content-type" => "text/plain" }, ["hello #{Process.pid}\n"]]
}
