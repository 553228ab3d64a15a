//! The grammar of `--listen`: `[NAME=]ADDRESS[,KEY[=VALUE]]...`. Pure.

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};

use crate::socket::address::Address;
use crate::socket::options::Options;

/// One listener as the user asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// As the user wrote it, for messages.
    text: String,
    /// Its name in LISTEN_FDNAMES.
    pub(crate) name: Option<FdName>,
    /// Where it listens.
    pub(crate) address: Address,
    /// How.
    pub(crate) options: Options,
}

/// A name for LISTEN_FDNAMES, as `sd_listen_fds_with_names(3)` allows it: printable ASCII, no colon, at most 255.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FdName(String);

impl Spec {
    /// The name for LISTEN_FDNAMES; `unknown` is the protocol's own word for none.
    pub(crate) fn fd_name(&self) -> FdName {
        self.name.clone().unwrap_or_default()
    }
}

impl FdName {
    /// Take a name from LISTEN_FDNAMES, where `/` and `=` are allowed too.
    pub(crate) fn announced(name: &str) -> Option<FdName> {
        let plain = name.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b':');
        (plain && name.len() <= 255).then(|| FdName(name.to_owned()))
    }

    /// The name as it stands in LISTEN_FDNAMES.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for FdName {
    fn default() -> FdName {
        FdName("unknown".to_owned())
    }
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Spec> {
        ensure!(!text.contains('\0'), "a NUL byte cannot be part of it");
        let pieces = split(text);
        let mut pieces = pieces.iter().map(String::as_str);
        let first = pieces.next().unwrap_or_default();
        let (name, address) = split_name(first)?;
        let address: Address = address.parse()?;
        let options = Options::parse(pieces, &address)?;
        Ok(Spec { text: text.to_owned(), name, address, options })
    }
}

/// Cut at the commas; `\,` is a comma and `\\` a backslash.
fn split(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let escaped = characters.next_if(|next| c == '\\' && matches!(next, ',' | '\\'));
        match (c, escaped) {
            (',', _) => pieces.push(String::new()),
            (_, Some(c)) | (c, None) => pieces.last_mut().expect("there is a first piece").push(c),
        }
    }
    pieces
}

/// `NAME=` is a name if no address could begin so: neither a path nor a type holds `=` before `/` or `:`.
fn split_name(text: &str) -> Result<(Option<FdName>, &str)> {
    match text.split_once('=') {
        Some((name, address)) if !name.contains(['/', ':']) => {
            ensure!(!name.is_empty(), "the name before = is empty");
            let name = FdName::announced(name)
                .with_context(|| format!("name {name:?} is not printable ASCII of at most 255 characters"))?;
            Ok((Some(name), address))
        }
        _ => Ok((None, text)),
    }
}

/// The text that the user wrote.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for FdName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
