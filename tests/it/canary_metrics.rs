//! examples/canary.sh and error-rate.sh: a release is judged by its own metrics, while it gets a share of the load.

use crate::harness::case::{CASE, Case, is_installed};
use crate::harness::deploy::{build, current, example, script, supervisor_of_current};
use crate::harness::{Folder, Output, Run, Supervisor, python};
use crate::load::{Load, Report};

const CURL: Case = Case { needs: &["curl"], ..CASE };

/// A server that counts its requests but those for its metrics. Its argument is what is wrong with it.
const COUNTING: &str = r#"
fault = sys.argv[1]
counts, took, total, unanswered = {'200': 0, '500': 0}, 0, 0, []
def metrics():
    lines = ['# HELP http_requests_total Of all paths.', '# TYPE http_requests_total counter']
    lines += [f'http_requests_total{{path="/",code="{code}"}} {count:e}' for code, count in counts.items()]
    lines += [f'http_request_duration_seconds_sum {took}', f'http_request_duration_seconds_count {sum(counts.values())}']
    return '\n'.join(lines) + '\n'
def answer(client):
    global took, total
    client.setblocking(True)
    begun, request, code = time.time(), client.recv(1000), '200'
    if b' /metrics ' in request:
        if fault == 'hangs': return unanswered.append(client)
        body = metrics()
        if fault == 'lacks-them': code = '404'
    else:
        total += 1
        body = f'hello from {gen}, pid {os.getpid()}\n'
        if fault == 'slow': time.sleep(0.02)
        if fault == 'fails' and total % 20 == 0: code = '500'
        if fault == 'reset' and total == 60: counts['200'] = 0
        counts[code] += 1
        took += time.time() - begun
    client.sendall(f'HTTP/1.1 {code} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}'.encode())
    client.close()
serve()"#;

/// Deploy a release with this fault by canary.sh, under load or not: what became of it, and of the clients.
fn deploy(supervisor: &Supervisor, fault: &str, limits: &[&str], connections: usize) -> (Output, Report) {
    let server = python::write(&supervisor.folder, COUNTING);
    build(&supervisor.folder, fault, &format!("exec {} -IS {} {fault}", python::python().display(), server.display()));
    // curl sends no fragment; the shell has to pass on the quote.
    let url = format!("http://{}/metrics#it's", supervisor.address());
    let canary = script(&supervisor.folder, "canary.sh", &[&[fault, &url], limits].concat());
    let canary = canary.env("STAGES", "20%:100ms 50%:100ms");
    Load { connections, ..Load::lasting(supervisor.address().parse().unwrap()) }.during(|| canary.output())
}

/// One is not promoted, for this reason, and the one before serves as if nothing had been.
#[track_caller]
fn assert_rolled_back(fault: &str, limits: &[&str], connections: usize, options: &[&str], reason: &str) -> Report {
    let supervisor = supervisor_of_current(options);
    let before = current(&supervisor.folder);
    let (output, report) = deploy(&supervisor, fault, limits, connections);
    assert_eq!(output.code(), 1, "{}", output.stderr);
    let log = supervisor.log();
    assert!(log.contains(reason), "{log}");
    assert_eq!(current(&supervisor.folder), before);
    supervisor.wait_gone(2);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
    report
}

#[test]
fn a_release_whose_metrics_are_good_is_promoted_under_load_and_loses_no_request() {
    // A counter that is reset is waited for again.
    for fault in ["none", "reset"] {
        if is_installed(&CURL) {
            let supervisor = supervisor_of_current(&[]);
            let (output, report) = deploy(&supervisor, fault, &["1%", "0.5"], 4);
            assert_eq!(output.failure(), (0, ""), "{}", supervisor.log());
            let verdict = "handoff-run: check: error-rate: 0 of ";
            assert_eq!(supervisor.log().matches(verdict).count(), 2, "{}", supervisor.log());
            assert_eq!(report.failed(), 0, "{report:?}");
            supervisor.wait_gone(1);
            assert_eq!(supervisor.states(), [(2, "serving".into())]);
        }
    }
}

#[test]
fn a_release_that_answers_five_percent_with_errors_is_rolled_back_by_itself() {
    if is_installed(&CURL) {
        let report = assert_rolled_back("fails", &["1%"], 4, &[], "requests failed (at most 1 %)");
        // Those with an error, and no others.
        assert_eq!(report.failed(), report.other, "{report:?}");
        assert!(report.other > 0, "{report:?}");
    }
}

#[test]
fn a_release_that_answers_slowly_is_rolled_back() {
    if is_installed(&CURL) {
        let report = assert_rolled_back("slow", &["1%", "0.01"], 4, &[], "in the mean (at most 0.01 s)");
        assert_eq!(report.failed(), 0, "{report:?}");
    }
}

#[test]
fn a_release_of_which_nothing_is_known_is_rolled_back() {
    if is_installed(&CURL) {
        assert_rolled_back("none", &["1%", "0.5", "100", "1"], 0, &[], "error-rate: only 0 of 100 requests in ");
        // Where it would wait longer than a check may take.
        assert_rolled_back("none", &[], 0, &["--ready-timeout", "1s"], "generation 2: ");
        assert_rolled_back("lacks-them", &[], 4, &[], "The requested URL returned error: 404");
        // It does not serve its clients then, either.
        assert_rolled_back("hangs", &[], 0, &[], "timed out after 5");
    }
}

/// What error-rate.sh makes of a text with these limits: 2 %, 0.1 s, 10 requests and no time to wait.
fn judge(folder: &Folder, text: &str) -> (i32, String) {
    folder.write("metrics", text);
    let url = format!("file://{}", folder.text("metrics"));
    let run = Run::of(example("error-rate.sh")).args(&[&url, "2", "0.1", "10", "0"]).env("HANDOFF_SOURCE", "127.0.0.2");
    let output = run.output();
    (output.code(), format!("{}{}", output.stdout, output.stderr))
}

#[test]
fn metrics_are_read_in_every_form_that_they_may_have() {
    if !is_installed(&CURL) {
        return;
    }
    let folder = Folder::new();
    let time = "http_request_duration_seconds_sum 1e0\nhttp_request_duration_seconds_count 1e+2\n";
    let is_judged = |text: &str, status: i32, verdict: &str| {
        let judged = judge(&folder, &format!("{text}{time}"));
        assert_eq!(judged, (status, format!("error-rate: {verdict}\n")), "{text}");
    };
    let fine = |failed, total| {
        format!("{failed} of {total} requests failed (at most 2 %), 0.010 s in the mean (at most 0.1 s)")
    };
    let counter = |labels: &str, value: &str| format!("http_requests_total{labels} {value}\n");
    let good = counter("{code=\"200\"}", "98");
    is_judged(&good, 0, &fine(0, 98));
    is_judged(&(good.clone() + &counter("{code=\"500\"}", "2")), 0, &fine(2, 100));
    is_judged(&(good.clone() + &counter("{code=\"500\"}", "3")), 1, &fine(3, 101));
    // A time stamp, an exponent, a class of statuses, a last comma, spaces, labels in which there is anything.
    is_judged(&counter("{status=\"2xx\",}", "1.0E+02 1395066363000"), 0, &fine(0, 100));
    is_judged(&counter("{ method = \"get\", status_code=\"503\" }", "\t.5e2\r"), 1, &fine(50, 50));
    is_judged(&counter(r#"{path="} 9 \" code=\"500\",{",code="200"}"#, "50"), 0, &fine(0, 50));
    // Others of a similar name.
    is_judged(
        &(good.clone() + "http_requests_total_created{code=\"500\"} 1e9\n#http_requests_total 7\n"),
        0,
        &fine(0, 98),
    );
    let few = |count| format!("only {count} of 10 requests in http_requests_total");
    is_judged("", 1, &few(0));
    is_judged(&counter("{code=\"200\"}", "9"), 1, &few(9));
    is_judged(&counter("", "98"), 1, "no status: http_requests_total 98");
    for value in ["NaN", "+Inf", "-1", "1e", "", "0x10"] {
        let line = counter("{code=\"200\"}", value);
        is_judged(&(good.clone() + &line), 1, &format!("no number: {}", line.trim_end_matches('\n')));
    }
    let broken = counter("{code=\"200}", "98");
    is_judged(&broken, 1, &format!("cannot read: {}", broken.trim_end()));
    assert_eq!(judge(&folder, &good), (1, "error-rate: nothing in http_request_duration_seconds\n".into()));
}

// Which generation had answered would be in doubt.
#[test]
fn metrics_of_no_certain_generation_are_not_judged() {
    let output = Run::of(example("error-rate.sh")).args(&["file:///dev/null"]).output();
    let line = "error-rate: no HANDOFF_SOURCE: any generation might answer\n";
    assert_eq!(output.failure(), (1, line));
}
