# `hello PID`
run lambda { |env|
  body = "hello #{Process.pid}\n"
  [200, { "content-type" => "text/plain", "content-length" => body.bytesize.to_s }, [body]]
}
