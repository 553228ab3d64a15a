# `hello PID`; /slow takes 0.6 seconds.
use Time::HiRes;

sub {
    my $env = shift;
    if ($env->{PATH_INFO} eq '/slow') {
        my $end = Time::HiRes::time() + 0.6;  # a signal ends one sleep early
        while ((my $left = $end - Time::HiRes::time()) > 0) { Time::HiRes::sleep($left) }
    }
    [200, ['Content-Type' => 'text/plain'], ["hello $$\n"]];
}
