<?php // `hello PID`; with the query string `/slow` after two seconds.
if (($_SERVER['QUERY_STRING'] ?? '') === '/slow') {
    $end = microtime(true) + 2; // a signal ends one sleep early
    while (($left = $end - microtime(true)) > 0) usleep((int) ($left * 1e6));
}
$body = 'hello ' . getmypid() . "\n";
header('Content-Type: text/plain');
header('Content-Length: ' . strlen($body));
echo $body;
