//! Requests to real servers, in what each of them speaks.

use super::case::Protocol;

/// What is asked for.
#[derive(Clone, Copy)]
pub enum Request {
    Plain,
    /// It takes the server 0.6 seconds.
    Slow,
}

impl Request {
    /// Its bytes; `script` is what FastCGI runs.
    pub fn bytes(self, protocol: Protocol, script: &str) -> Vec<u8> {
        match protocol {
            Protocol::Http => http(self),
            Protocol::FastCgi => fast_cgi(script, self),
        }
    }
}

fn http(request: Request) -> Vec<u8> {
    let path = match request {
        Request::Plain => "/",
        Request::Slow => "/slow",
    };
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into_bytes()
}

/// A request of the FastCGI protocol, without its empty body: PHP does not read that, and so it would seem to have
/// something unread all the time.
fn fast_cgi(script: &str, request: Request) -> Vec<u8> {
    let query = match request {
        Request::Plain => "",
        Request::Slow => "slow",
    };
    // php-cgi wants REDIRECT_STATUS, as proof that a server asks.
    let parameters =
        [("REQUEST_METHOD", "GET"), ("SCRIPT_FILENAME", script), ("QUERY_STRING", query), ("REDIRECT_STATUS", "200")];
    let pair = |(key, value): &(&str, &str)| {
        let lengths = [key.len(), value.len()].map(|length| u8::try_from(length).unwrap());
        [&lengths, key.as_bytes(), value.as_bytes()].concat()
    };
    let parameters: Vec<u8> = parameters.iter().flat_map(pair).collect();
    // 1 begins a request (as a responder, whose connection is then closed), 4 is parameters, an empty one their end.
    [record(1, &[0, 1, 0, 0, 0, 0, 0, 0]), record(4, &parameters), record(4, &[])].concat()
}

/// Version 1, type, request 1, length, no padding.
fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[1, kind, 0, 1, high, low, 0, 0], content].concat()
}
