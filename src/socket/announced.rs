//! The inherited descriptors as LISTEN_FDS and LISTEN_FDNAMES announce them, by `sd_listen_fds(3)`. Pure.

use std::ffi::CStr;

use anyhow::{Context, Result};

use crate::socket::spec::FdName;
use crate::sys::variable;

pub(crate) const LISTEN_FDS: &str = "LISTEN_FDS";
pub(crate) const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";

/// The inherited descriptors as the environment announces them. Hints: the pid may be a predecessor's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Announced {
    /// How many, from descriptor 3 on.
    pub(crate) count: usize,
    names: Vec<FdName>,
}

impl Announced {
    /// Read LISTEN_FDS and LISTEN_FDNAMES. Absent, empty and 0 announce nothing; what is no count is an error.
    pub(crate) fn read(environment: &[&CStr]) -> Result<Announced> {
        let count = variable(environment, LISTEN_FDS).unwrap_or_default();
        if count.is_empty() {
            return Ok(Announced::default());
        }
        let text = String::from_utf8_lossy(count);
        let digits = count.iter().all(u8::is_ascii_digit);
        let number = text.parse::<u32>().ok().filter(|_| digits);
        let number = number.with_context(|| format!("LISTEN_FDS={text} is not a count of descriptors"))?;
        let names = variable(environment, LISTEN_FDNAMES).map(read_names).unwrap_or_default();
        Ok(Announced { count: number as usize, names })
    }

    /// A name for each; `unknown` where LISTEN_FDNAMES has too few or too many to be right.
    pub(crate) fn names(&self) -> impl Iterator<Item = FdName> {
        (0..self.count).map_while(|at| self.name(at))
    }

    /// The name of the descriptor at this place, if it is announced.
    pub(crate) fn name(&self, at: usize) -> Option<FdName> {
        let believed = self.names.len() == self.count;
        (at < self.count).then(|| if believed { self.names[at].clone() } else { FdName::default() })
    }
}

fn read_names(value: &[u8]) -> Vec<FdName> {
    let name = |name: &[u8]| FdName::announced(str::from_utf8(name).ok()?);
    value.split(|byte| *byte == b':').map(|part| name(part).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(variables: &[&CStr]) -> Result<Announced> {
        Announced::read(variables)
    }

    #[test]
    fn nothing_is_announced_by_no_count_an_empty_one_or_zero() {
        for variables in [&[][..], &[c"LISTEN_FDS="], &[c"LISTEN_FDS=0"]] {
            assert_eq!(announced(variables).unwrap().count, 0);
        }
    }

    // As getenv(3) has it; it once hid the entry behind it.
    #[test]
    fn an_entry_without_an_equals_sign_has_no_value() {
        assert_eq!(announced(&[c"LISTEN_FDS", c"LISTEN_FDS=2"]).unwrap().count, 2);
    }

    #[test]
    fn a_count_that_is_no_number_is_an_error_that_quotes_it() {
        for text in [c"LISTEN_FDS=-1", c"LISTEN_FDS=+1", c"LISTEN_FDS=x", c"LISTEN_FDS=99999999999"] {
            let error = announced(&[text]).unwrap_err().to_string();
            assert_eq!(error, format!("{} is not a count of descriptors", text.to_str().unwrap()));
        }
    }

    #[test]
    fn names_count_only_if_there_are_as_many_as_descriptors() {
        let names = |variables: &[&CStr]| announced(variables).unwrap().names().collect::<Vec<_>>();
        let two = names(&[c"LISTEN_FDS=2", c"LISTEN_FDNAMES=web:admin"]);
        assert_eq!(two.iter().map(FdName::as_str).collect::<Vec<_>>(), ["web", "admin"]);
        let mismatch = names(&[c"LISTEN_FDS=2", c"LISTEN_FDNAMES=web"]);
        assert_eq!(mismatch, [FdName::default(), FdName::default()]);
    }
}
