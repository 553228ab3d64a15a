//! Reloads whose new generation is on trial first.

use nix::unistd::Pid;

use super::client::Client;
use super::process::exists;
use super::{Output, Running, Supervisor, log, wait_for};

/// A first stage that only a test ends.
pub const STAGE: &str = "20%:1h";

/// A check that reports where it is run, also by a file `begun-SHARE`, and ends with the status in a file `passed-SHARE` once
/// it is there.
pub const CHECK: &str = "echo stage $HANDOFF_SHARE of $HANDOFF_GENERATION
: > begun-$HANDOFF_SHARE
until test -e passed-$HANDOFF_SHARE; do sleep 0.01; done
exit $(cat passed-$HANDOFF_SHARE)";

/// Python of a server of which this generation does `act` once there is a file `leave`, between two clients.
pub fn leaving(generation: u64, act: &str) -> String {
    format!(
        "
def leave():
    {act}
    while True: signal.pause()
if gen == '{generation}':
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    s.setblocking(False)
    while True:
        if exists('leave'): leave()
        if select.select([s], [], [], 0.01)[0]:
            try: answer(s.accept()[0])
            except OSError: pass
serve()"
    )
}

impl Supervisor {
    /// `--reload` with these options, of which the first stage is 20 %; this generation is on trial then.
    #[track_caller]
    pub fn try_out(&self, generation: u64, options: &[&str]) -> Running {
        let reload = self.command("--reload", options).start();
        self.wait_log(&log::on_trial(generation, 20));
        reload
    }

    pub fn promote(&self) -> Output {
        self.command("--promote", &[]).output()
    }

    pub fn rollback(&self) -> Output {
        self.command("--rollback", &[]).output()
    }

    /// Wait until this process has ended, a child of the supervisor's that it reaps.
    #[track_caller]
    pub fn wait_end(&self, pid: i32) {
        wait_for("the process to end", || (!exists(Pid::from_raw(pid))).then_some(()));
    }

    /// A connection that this generation has accepted.
    #[track_caller]
    pub fn hold_of(&self, generation: u64) -> Client {
        wait_for("a connection to the generation", || {
            let (client, by) = self.hold();
            (by == generation).then_some(client)
        })
    }

    /// How many of a thousand connections this generation answers, in percent; another one answers the rest.
    #[track_caller]
    pub fn percent_of(&self, generation: u64, other: u64) -> f64 {
        let answers: Vec<u64> = (0..1000).map(|_| self.answer().generation).collect();
        let count = |wanted: u64| answers.iter().filter(|answered| **answered == wanted).count();
        assert_eq!(count(generation) + count(other), answers.len(), "{answers:?}");
        count(generation) as f64 / 10.0
    }

    /// Generations with their states and shares, in their order.
    pub fn shares(&self) -> Vec<(u64, String, String)> {
        let row = |line: &Vec<String>| Some((line.first()?.parse().ok()?, line.get(2)?.clone(), line.get(5)?.clone()));
        self.table().iter().filter_map(row).collect()
    }

    /// The first generation serves, and the second one is on trial with a fifth.
    #[track_caller]
    pub fn assert_on_trial(&self) {
        let state = |id, state: &str, share: &str| (id, state.to_owned(), share.to_owned());
        assert_eq!(self.shares(), [state(1, "serving", "80%"), state(2, "on-trial", "20%")], "{}", self.log());
        // Five standard deviations on either side.
        let percent = self.percent_of(2, 1);
        assert!((13.7..26.3).contains(&percent), "{percent} %");
    }
}
