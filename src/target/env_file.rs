//! The variables of `--env-file`: lines `KEY=VALUE` as `docker run --env-file` has them. What is wrong with a line is
//! reported without its text, which may be a secret.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::failure::plain;

/// More than exec(3) takes of arguments and environment together, so that reading ends whatever the file is.
const LONGEST: u64 = 8 << 20;

/// The variables in the file at `path`, `KEY=VALUE` each, in their order.
pub(crate) fn read(path: &Path) -> Result<Vec<CString>> {
    let read = || {
        let mut text = Vec::new();
        File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut text)).map_err(plain)?;
        ensure!(text.len() as u64 <= LONGEST, "it is larger than any environment may be");
        parse(&text)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// Refuse a file that would be empty when it is read again.
pub(crate) fn check_rereadable(path: &Path) -> Result<()> {
    let is_pipe = fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
    ensure!(!is_pipe, "cannot read {}: it is a pipe, which can be read only once", path.display());
    Ok(())
}

/// Lines that are empty or begin with `#` are left out, and so is a name without `=`, which stands for the inherited
/// variable. Everything behind the `=` is the value, quotes and blanks included.
fn parse(text: &[u8]) -> Result<Vec<CString>> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if !line.is_empty() && line[0] != b'#' {
            variables.extend(variable(line).with_context(|| format!("line {number}"))?);
        }
    }
    Ok(variables)
}

fn variable(line: &[u8]) -> Result<Option<CString>> {
    let end = line.iter().position(|byte| *byte == b'=');
    let name = &line[..end.unwrap_or(line.len())];
    if name.starts_with(b"export ") {
        bail!("write KEY=VALUE without export");
    }
    ensure!(!name.is_empty(), "there is no name before =");
    ensure!(!name.iter().any(u8::is_ascii_whitespace), "a name has no blanks: write KEY=VALUE");
    let variable = CString::new(line).ok().context("a NUL byte cannot be part of it")?;
    Ok(end.map(|_| variable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_docker_reads_them() {
        let text = b"\xef\xbb\xbfA=1\r\n\n  # a comment\n  B= two # words \"and\" 'quotes' \nC=\nINHERITED\nD=a=b\n#E=5\nF=\xff";
        let expected = [c"A=1", c"B= two # words \"and\" 'quotes' ", c"C=", c"D=a=b", c"F=\xff"];
        assert_eq!(parse(text).unwrap(), expected.map(CString::from));
        assert!(parse(b"").unwrap().is_empty());
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_alone() {
        for (text, expected) in [
            (&b"A=1\n=secret"[..], "line 2: there is no name before ="),
            (b"A: secret", "line 1: a name has no blanks: write KEY=VALUE"),
            (b"A =secret", "line 1: a name has no blanks: write KEY=VALUE"),
            (b"\nexport A=secret", "line 2: write KEY=VALUE without export"),
            (b"A=sec\0ret", "line 1: a NUL byte cannot be part of it"),
        ] {
            assert_eq!(format!("{:#}", parse(text).unwrap_err()), expected);
        }
    }
}
