<?php // `hello PID`
header('Content-Type: text/plain');
$body = 'hello ' . getmypid() . "\n";
header('Content-Length: ' . strlen($body));
echo $body;
