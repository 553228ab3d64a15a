//! What the parts of a state that is handed on have in common: lists whose broken entries are left out, and paths as
//! text in which every byte that is no printable ASCII is escaped, so that any name survives.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use log::warn;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// For `deserialize_with`: the entries that can be read. One that cannot is reported and left out: a pid or a
/// descriptor that is missing has no default.
pub(crate) fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let entries = Vec::<Value>::deserialize(deserializer)?;
    let read = |entry: Value| serde_json::from_value(entry).map_err(|error| lost(&error)).ok();
    Ok(entries.into_iter().filter_map(read).collect())
}

/// What this JSON text says. All of it is read the same way, for the code of each other way would come on top.
///
/// # Errors
/// If it is no JSON, or another type's.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    serde_json::from_value(serde_json::from_slice(text)?)
}

/// Something could not be taken over.
static LOST: AtomicBool = AtomicBool::new(false);

/// For `deserialize_with`: the default where another version has something that makes no sense here.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).unwrap_or_default())
}

/// For `deserialize_with`: the number of a process that can be a child. 0 is none: to kill(2) it is our own group.
pub(crate) fn pid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    let pid = i32::deserialize(deserializer)?;
    if pid > 1 { Ok(pid) } else { Err(D::Error::custom(format_args!("{pid} is not the number of a child"))) }
}

/// Report what cannot be taken over from the predecessor.
pub(crate) fn lost(error: &dyn std::fmt::Display) {
    warn!("cannot take over a part of the state: {error:#}");
    LOST.store(true, Relaxed);
}

/// Was anything lost?
pub(crate) fn is_any_lost() -> bool {
    LOST.load(Relaxed)
}

/// A path in a saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SavedPath(pub(crate) PathBuf);

impl Serialize for SavedPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.as_os_str().as_bytes().escape_ascii())
    }
}

impl<'de> Deserialize<'de> for SavedPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SavedPath, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes =
            unescaped(text.as_bytes()).ok_or_else(|| D::Error::custom("a path is not escaped as it should be"))?;
        Ok(SavedPath(OsString::from_vec(bytes).into()))
    }
}

/// The opposite of `escape_ascii`.
fn unescaped(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    while let Some((&byte, rest)) = text.split_first() {
        let (byte, behind) = match (byte, rest) {
            (b'\\', [b'x', high, low, rest @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digits = [*high, *low];
                (u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?, rest)
            }
            (b'\\', [b't', rest @ ..]) => (b'\t', rest),
            (b'\\', [b'r', rest @ ..]) => (b'\r', rest),
            (b'\\', [b'n', rest @ ..]) => (b'\n', rest),
            (b'\\', [quoted @ (b'\\' | b'\'' | b'"'), rest @ ..]) => (*quoted, rest),
            (b'\\', _) => return None,
            (byte, rest) => (byte, rest),
        };
        text = behind;
        bytes.push(byte);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_survives() {
        let every: Vec<u8> = (1..=u8::MAX).collect();
        for bytes in [&b""[..], b"/run/app", b"/a\\x41\\\\", b"/\xe9 \"'\n\t\r", &every] {
            let path = SavedPath(OsString::from_vec(bytes.to_vec()).into());
            let text = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<SavedPath>(&text).unwrap(), path, "{text}");
        }
    }

    #[test]
    fn what_is_not_escaped_so_is_an_error() {
        for text in [r#""\\""#, r#""\\xg0""#, r#""\\x+1""#, "7"] {
            serde_json::from_str::<SavedPath>(text).expect_err(text);
        }
    }
}
