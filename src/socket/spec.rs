//! The grammar of `--listen`: `[NAME=]ADDRESS[,KEY[=VALUE]]...`. Pure.

#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::socket::address::{Address, Family, Host, Inet, UnixName};
use crate::socket::options::Options;

/// One listener as the user asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// As the user wrote it, for messages; what is not UTF-8 is replaced.
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
    /// Does it leave the IP version to who binds it, as `:PORT` does?
    pub(crate) fn has_any_version(&self) -> bool {
        let is_open = |inet: &Inet| (&inet.host, inet.family) == (&Host::Every, Family::Either);
        matches!(&self.address, Address::Inet(inet) if is_open(inet)) && !self.options.has("v6only")
    }

    /// The path, of a Unix socket that has one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.address {
            Address::Unix { name: UnixName::Path(path), .. } => Some(path),
            _ => None,
        }
    }

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

impl Spec {
    /// Read it. Only a path or an abstract name may have bytes that are not UTF-8.
    pub(crate) fn parse(text: &OsStr) -> Result<Spec> {
        ensure!(!text.as_bytes().contains(&0), "a NUL byte cannot be part of it");
        let pieces = split(text.as_bytes());
        let (first, others) = pieces.split_first().expect("there is a first piece");
        let (name, address) = split_name(first)?;
        let address = Address::parse(OsStr::from_bytes(address))?;
        let others = others.iter().map(|piece| str::from_utf8(piece).context("its options are not UTF-8"));
        let others = others.collect::<Result<Vec<&str>>>()?;
        let options = Options::parse(others.into_iter(), &address)?;
        Ok(Spec { text: text.display().to_string(), name, address, options })
    }
}

/// Cut at the commas; `\,` is a comma and `\\` a backslash.
pub(super) fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces = vec![Vec::new()];
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let escaped = bytes.next_if(|next| byte == b'\\' && matches!(next, b',' | b'\\'));
        match (byte, escaped) {
            (b',', _) => pieces.push(Vec::new()),
            (_, Some(byte)) | (byte, None) => pieces.last_mut().expect("there is a first piece").push(byte),
        }
    }
    pieces
}

/// `NAME=` is a name if no address could begin so: neither a path nor a type holds `=` before `/` or `:`.
fn split_name(text: &[u8]) -> Result<(Option<FdName>, &[u8])> {
    let Some(end) = text.iter().position(|byte| *byte == b'=') else { return Ok((None, text)) };
    let (name, address) = (&text[..end], &text[end + 1..]);
    if name.iter().any(|byte| matches!(byte, b'/' | b':')) {
        return Ok((None, text));
    }
    ensure!(!name.is_empty(), "the name before = is empty");
    let name = String::from_utf8_lossy(name);
    let name = FdName::announced(&name)
        .with_context(|| format!("name {name:?} is not printable ASCII of at most 255 characters"))?;
    Ok((Some(name), address))
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
