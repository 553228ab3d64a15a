//! The inherited descriptors as LISTEN_FDS and LISTEN_FDNAMES announce them, by `sd_listen_fds(3)`. Pure.

use std::ffi::CStr;
use std::ops::Range;
use std::os::fd::RawFd;

use anyhow::{Context, Result};

use crate::socket::spec::FdName;
use crate::sys::{FIRST_FD, variable};

pub(crate) const LISTEN_FDS: &str = "LISTEN_FDS";
pub(crate) const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// Not of `sd_listen_fds(3)`: watchexec and systemfd number theirs from there on.
pub(crate) const LISTEN_FDS_FIRST_FD: &str = "LISTEN_FDS_FIRST_FD";

/// The inherited descriptors as the environment announces them. Hints: the pid may be a predecessor's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    /// How many there are.
    pub(crate) count: usize,
    /// The number of the first.
    first: RawFd,
    names: Vec<FdName>,
    /// Other names for some numbers; none for those that concern nobody any more.
    renamed: Vec<(RawFd, Option<FdName>)>,
}

impl Default for Announced {
    /// Nothing is announced.
    fn default() -> Announced {
        Announced { count: 0, first: FIRST_FD, names: Vec::new(), renamed: Vec::new() }
    }
}

impl Announced {
    /// Read LISTEN_FDS and its like. Absent, empty and 0 announce nothing; what is no count is an error.
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
        let first = variable(environment, LISTEN_FDS_FIRST_FD).filter(|text| !text.is_empty());
        let first = first.map_or(Ok(FIRST_FD), read_first)?;
        Ok(Announced { count: number as usize, first, names, renamed: Vec::new() })
    }

    /// The numbers of the announced descriptors, as far as there are numbers.
    pub(crate) fn numbers(&self) -> Range<RawFd> {
        self.first..self.first.saturating_add(self.count.try_into().unwrap_or(RawFd::MAX))
    }

    /// The name of the descriptor at this number, if it is announced.
    pub(crate) fn name_of(&self, number: RawFd) -> Option<FdName> {
        if let Some((_, name)) = self.renamed.iter().find(|(of, _)| *of == number) {
            return name.clone();
        }
        self.name(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// Let this number have another name, or as if it were not announced.
    pub(crate) fn rename(&mut self, number: RawFd, name: Option<FdName>) {
        self.renamed.push((number, name));
    }

    /// The name of the descriptor at this place; `unknown` where LISTEN_FDNAMES has too few or too many to be right.
    fn name(&self, at: usize) -> Option<FdName> {
        let believed = self.names.len() == self.count;
        (at < self.count).then(|| if believed { self.names[at].clone() } else { FdName::default() })
    }
}

fn read_first(text: &[u8]) -> Result<RawFd> {
    let number = str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = number.and_then(|text| text.parse().ok()).filter(|number| *number >= FIRST_FD);
    let text = String::from_utf8_lossy(text);
    number.with_context(|| format!("{LISTEN_FDS_FIRST_FD}={text} is not the number of a descriptor from {FIRST_FD} on"))
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
    fn the_first_number_is_3_or_what_is_said() {
        let numbers = |first| announced(&[c"LISTEN_FDS=2", first]).map(|announced| announced.numbers());
        assert_eq!(numbers(c"A=").unwrap(), 3..5);
        assert_eq!(numbers(c"LISTEN_FDS_FIRST_FD=").unwrap(), 3..5);
        assert_eq!(numbers(c"LISTEN_FDS_FIRST_FD=200").unwrap(), 200..202);
        assert_eq!(numbers(c"LISTEN_FDS_FIRST_FD=2147483647").unwrap(), RawFd::MAX..RawFd::MAX);
        for text in [c"LISTEN_FDS_FIRST_FD=2", c"LISTEN_FDS_FIRST_FD=+3", c"LISTEN_FDS_FIRST_FD=99999999999"] {
            let error = numbers(text).unwrap_err().to_string();
            assert_eq!(error, format!("{} is not the number of a descriptor from 3 on", text.to_str().unwrap()));
        }
    }

    #[test]
    fn a_number_that_is_not_announced_has_no_name() {
        let announced = announced(&[c"LISTEN_FDS=1", c"LISTEN_FDS_FIRST_FD=7", c"LISTEN_FDNAMES=web"]).unwrap();
        assert_eq!(announced.name_of(7).unwrap().as_str(), "web");
        assert!([RawFd::MIN, 0, 3, 6, 8, RawFd::MAX].into_iter().all(|number| announced.name_of(number).is_none()));
    }

    #[test]
    fn names_count_only_if_there_are_as_many_as_descriptors() {
        let names = |variables: &[&CStr]| {
            let announced = announced(variables).unwrap();
            announced.numbers().map(|number| announced.name_of(number).unwrap()).collect::<Vec<_>>()
        };
        let two = names(&[c"LISTEN_FDS=2", c"LISTEN_FDNAMES=web:admin"]);
        assert_eq!(two.iter().map(FdName::as_str).collect::<Vec<_>>(), ["web", "admin"]);
        let mismatch = names(&[c"LISTEN_FDS=2", c"LISTEN_FDNAMES=web"]);
        assert_eq!(mismatch, [FdName::default(), FdName::default()]);
    }
}
