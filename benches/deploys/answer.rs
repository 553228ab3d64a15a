//! An answer of HTTP/1, as far as it has come.

/// What the bytes received so far are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    /// There is more to come.
    Partial,
    /// Status 200 and as much body as Content-Length promised.
    Whole(Next),
    /// Another status, a body of unknown length, or no HTTP.
    Other,
}

/// What may follow an answer on its connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    Request,
    /// The server has announced that it closes.
    Close,
}

impl Answer {
    pub fn of(received: &[u8]) -> Answer {
        let received = String::from_utf8_lossy(received);
        let Some((head, body)) = received.split_once("\r\n\r\n") else { return Answer::Partial };
        let mut lines = head.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (version, status) = (first.next(), first.next());
        let fields: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
        let field =
            |name: &str| fields.iter().find(|field| field.0.eq_ignore_ascii_case(name)).map(|field| field.1.trim());
        let connection =
            field("connection").unwrap_or(if version == Some("HTTP/1.1") { "keep-alive" } else { "close" });
        let next = if connection.eq_ignore_ascii_case("keep-alive") { Next::Request } else { Next::Close };
        match field("content-length").and_then(|length| length.parse::<usize>().ok()) {
            Some(length) if body.len() < length => Answer::Partial,
            Some(length) if body.len() == length && status == Some("200") => Answer::Whole(next),
            _ => Answer::Other,
        }
    }
}
