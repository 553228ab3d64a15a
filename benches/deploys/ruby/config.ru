# `hello PID`; /slow takes two seconds.
run lambda { |env|
  sleep 2 if env["PATH_INFO"] == "/slow"
  [200, { "content-type" => "text/plain" }, ["hello #{Process.pid}\n"]]
}
