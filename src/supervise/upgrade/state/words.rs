//! The lines that a state is written in: words between spaces, text in hexadecimal, `-` for nothing. Pure.

use std::time::Duration;

use anyhow::{Context, Result};

/// A line being written.
pub(super) struct Line(pub(super) String);

impl Line {
    pub(super) fn of(key: &str) -> Line {
        Line(key.to_owned())
    }

    pub(super) fn word(mut self, word: impl ToString) -> Line {
        self.0.push(' ');
        self.0.push_str(&word.to_string());
        self
    }

    /// `-` stands for nothing.
    pub(super) fn maybe(self, word: Option<impl ToString>) -> Line {
        match word {
            Some(word) => self.word(word),
            None => self.word("-"),
        }
    }

    pub(super) fn text(self, text: &[u8]) -> Line {
        // `=` keeps an empty text from being no word.
        let hex: String = text.iter().map(|byte| format!("{byte:02x}")).collect();
        self.word(format!("={hex}"))
    }

    pub(super) fn maybe_text(self, text: Option<&[u8]>) -> Line {
        match text {
            Some(text) => self.text(text),
            None => self.word("-"),
        }
    }

    pub(super) fn time(self, time: Duration) -> Line {
        self.word(time.as_nanos())
    }
}

/// The words of a line being read.
pub(super) struct Words<'a>(pub(super) std::str::SplitAsciiWhitespace<'a>);

impl<'a> Words<'a> {
    pub(super) fn word(&mut self) -> Result<&'a str> {
        self.0.next().context("a line is too short")
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self) -> Result<T> {
        let word = self.word()?;
        word.parse().ok().with_context(|| format!("{word} is no number"))
    }

    pub(super) fn maybe<T: std::str::FromStr>(&mut self) -> Result<Option<T>> {
        match self.word()? {
            "-" => Ok(None),
            word => word.parse().ok().map(Some).with_context(|| format!("{word} is no number")),
        }
    }

    pub(super) fn flag(&mut self) -> Result<bool> {
        Ok(self.number::<u8>()? == 1)
    }

    pub(super) fn maybe_bytes(&mut self) -> Result<Option<Vec<u8>>> {
        let word = self.word()?;
        let Some(hex) = word.strip_prefix('=') else { return Ok(None) };
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(byte).collect();
        Ok(Some(bytes.context("text is not hexadecimal")?))
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>> {
        self.maybe_bytes()?.context("text is missing")
    }

    pub(super) fn maybe_text(&mut self) -> Result<Option<String>> {
        Ok(self.maybe_bytes()?.map(String::from_utf8).transpose()?)
    }

    pub(super) fn text(&mut self) -> Result<String> {
        self.maybe_text()?.context("text is missing")
    }

    pub(super) fn maybe_time(&mut self) -> Result<Option<Duration>> {
        Ok(self.maybe::<u64>()?.map(Duration::from_nanos))
    }

    pub(super) fn time(&mut self) -> Result<Duration> {
        Ok(Duration::from_nanos(self.number()?))
    }
}
