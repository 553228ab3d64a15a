//! Any entries that getdents64(2) could write.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fuzz::{hold, mutated, noise};

/// A struct linux_dirent64.
fn entry(name: &[u8]) -> Vec<u8> {
    let place = offset_of!(libc::dirent64, d_name);
    let length = (place + name.len() + 1).next_multiple_of(8);
    let mut bytes = vec![0xff; 16];
    bytes.extend((length as u16).to_ne_bytes());
    bytes.push(4);
    bytes.extend(name);
    bytes.resize(length, 0);
    bytes
}

#[test]
fn entries_are_read_as_they_were_written_and_any_others_end() {
    let names = || vec(vec(1..=u8::MAX, 1..60), 0..20);
    let page = |names: &[Vec<u8>]| names.iter().flat_map(|name| entry(name)).collect::<Vec<u8>>();
    let changed = prop_oneof![1 => noise(), 3 => mutated(names().prop_map(move |names| page(&names)))];
    hold((names(), changed), |(names, changed)| {
        let written = names.iter().map(|name| (libc::DT_DIR, name.as_slice()));
        assert!(entries(&page(&names)).map(|(kind, name)| (kind, name.to_bytes())).eq(written));
        check(&changed);
    });
}

/// What holds of any bytes.
pub(crate) fn check(page: &[u8]) {
    let least = |(_, name): (u8, &CStr)| offset_of!(libc::dirent64, d_name) + name.count_bytes() + 1;
    assert!(entries(page).map(least).sum::<usize>() <= page.len());
}
