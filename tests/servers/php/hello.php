<?php // `hello PID`; with the query string `slow` it takes 0.6 seconds.
if (($_SERVER['QUERY_STRING'] ?? '') === 'slow') {
    $end = microtime(true) + 0.6; // a signal ends one sleep early
    while (($left = $end - microtime(true)) > 0) usleep((int) ($left * 1e6));
}
header('Content-Type: text/plain');
echo 'hello ', getmypid(), "\n";
