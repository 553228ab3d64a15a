# `hello PID`; /slow takes two seconds.
use Time::HiRes;

sub {
    my $env = shift;
    if ($env->{PATH_INFO} eq '/slow') {
        my $end = Time::HiRes::time() + 2;    # a signal ends one sleep early
        while ((my $left = $end - Time::HiRes::time()) > 0) { Time::HiRes::sleep($left) }
    }
    [200, ['Content-Type' => 'text/plain'], ["hello $$\n"]];
}
