//! Placeholders such as `{fd}` and `{addr:NAME}` in arguments and in values of `--env`. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail, ensure};

use crate::socket::endpoint::Endpoint;
use crate::socket::spec::FdName;

/// Text with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    Placeholder { what: What, name: Option<String> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Fd,
    Addr,
    Host,
    Port,
    Path,
    Generation,
    Pid,
}

/// The words that placeholders are made of.
const WORDS: [(&str, What); 7] = [
    ("fd", What::Fd),
    ("addr", What::Addr),
    ("host", What::Host),
    ("port", What::Port),
    ("path", What::Path),
    ("gen", What::Generation),
    ("pid", What::Pid),
];

/// A listener as a template sees it.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its name in LISTEN_FDNAMES.
    pub(crate) name: FdName,
    /// Its descriptor in the target, if it has one from the start.
    pub(crate) fd: Option<i32>,
    /// Where it listens.
    pub(crate) endpoint: Endpoint,
}

/// What the placeholders stand for.
#[derive(Debug)]
pub(crate) struct Values {
    pub(crate) places: Vec<Place>,
    /// Counted by a supervisor; 1 without one.
    pub(crate) generation: u64,
    /// The target's.
    pub(crate) pid: u32,
}

/// A variable to be set, from `KEY=TEMPLATE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) key: OsString,
    pub(crate) value: Template,
}

impl Setting {
    /// Read it; neither side has to be UTF-8.
    pub(crate) fn parse(text: &OsStr) -> Result<Setting> {
        let text = text.as_bytes();
        let end = text.iter().position(|byte| *byte == b'=').context("write KEY=VALUE")?;
        ensure!(end > 0, "the variable's name is empty");
        Ok(Setting { key: OsStr::from_bytes(&text[..end]).to_owned(), value: Template::strict(&text[end + 1..])? })
    }
}

impl Template {
    /// A value in which every brace means something: `{{` is a literal one, and an unknown placeholder an error.
    pub(crate) fn strict(text: &[u8]) -> Result<Template> {
        Template::parse(text, |word| {
            let meant = meant_by(word).map(|word| format!(", {{{word}}} is")).unwrap_or_default();
            bail!("{{{}}} is no placeholder{meant}; a literal brace is written {{{{", String::from_utf8_lossy(word))
        })
    }

    /// An argument of PROGRAM, left unchanged if it has no placeholder: braces are common in arguments.
    pub(crate) fn argument(text: &[u8]) -> Template {
        let literal = || Template(vec![Part::Literal(text.to_vec())]);
        let template = Template::parse(text, |_| Ok(())).unwrap_or_else(|_| literal());
        if template.is_literal() { literal() } else { template }
    }

    /// Has it no placeholder?
    pub(crate) fn is_literal(&self) -> bool {
        self.0.iter().all(|part| matches!(part, Part::Literal(_)))
    }

    /// `unknown` decides whether a brace that begins no placeholder may stay as it is.
    fn parse(text: &[u8], unknown: impl Fn(&[u8]) -> Result<()>) -> Result<Template> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text;
        while let Some((&byte, behind)) = rest.split_first() {
            // `${port}` is the shell's.
            let shells = literal.last() == Some(&b'$');
            if byte == b'{' && behind.first() == Some(&b'{') {
                literal.push(b'{');
                rest = &behind[1..];
            } else if byte == b'{' {
                let end = behind.iter().position(|byte| *byte == b'}');
                let word = &behind[..end.unwrap_or(behind.len())];
                if let (Some(end), Some(placeholder), false) = (end, placeholder(word), shells) {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                    parts.push(placeholder);
                    rest = &behind[end + 1..];
                } else {
                    if !shells {
                        unknown(word)?;
                    }
                    literal.push(byte);
                    rest = behind;
                }
            } else {
                literal.push(byte);
                rest = behind;
            }
        }
        parts.push(Part::Literal(literal));
        Ok(Template(parts))
    }

    /// The text with what the placeholders stand for. One without a name means the first listener.
    pub(crate) fn expand(&self, values: &Values) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        for part in &self.0 {
            match part {
                Part::Literal(literal) => text.extend(literal),
                Part::Placeholder { what, name } => {
                    let place = || find(&values.places, name.as_deref());
                    text.extend(stands_for(*what, place, values)?);
                }
            }
        }
        Ok(text)
    }
}

/// `WORD` or `WORD:NAME`, without the braces.
fn placeholder(text: &[u8]) -> Option<Part> {
    let text = str::from_utf8(text).ok()?;
    let (word, name) = text.split_once(':').map_or((text, None), |(word, name)| (word, Some(name)));
    let (_, what) = WORDS.iter().find(|(known, _)| *known == word)?;
    let named = !matches!(what, What::Generation | What::Pid);
    (named || name.is_none()).then(|| Part::Placeholder { what: *what, name: name.map(str::to_owned) })
}

/// What looks like a placeholder in an argument and is none, with the one that may be meant.
pub(crate) fn near_misses(argument: &[u8]) -> Vec<(String, &'static str)> {
    let inside = argument.split(|byte| *byte == b'{').skip(1);
    let words = inside.filter_map(|rest| Some(&rest[..rest.iter().position(|byte| *byte == b'}')?]));
    words.filter_map(|word| Some((String::from_utf8_lossy(word).into_owned(), meant_by(word)?))).collect()
}

/// The placeholder that differs from this word in one letter, or in the order of two. Not one of two or three letters:
/// those are near to too many words.
fn meant_by(text: &[u8]) -> Option<&'static str> {
    let word = text.split(|byte| *byte == b':').next()?;
    let long = WORDS.iter().map(|(known, _)| *known).filter(|known| known.len() > 3);
    long.filter(|known| is_near(word, known.as_bytes())).min()
}

fn is_near(one: &[u8], other: &[u8]) -> bool {
    let (short, long) = if one.len() < other.len() { (one, other) } else { (other, one) };
    // Behind what both begin with.
    let same = short.iter().zip(long).take_while(|(a, b)| a == b).count();
    let (short, long) = (&short[same..], &long[same..]);
    match (short, long) {
        ([], []) => false,
        ([a, b, short @ ..], [c, d, long @ ..]) if (a, b) == (d, c) && short == long => true,
        ([_, rest @ ..], _) if short.len() == long.len() => rest == &long[1..],
        _ => long.len() == short.len() + 1 && short == &long[1..],
    }
}

fn find<'a>(places: &'a [Place], name: Option<&str>) -> Result<&'a Place> {
    match name {
        None => places.first().context("there is no listener for a placeholder"),
        Some(name) => {
            let mut named = places.iter().filter(|place| place.name.as_str() == name);
            let first = named.next().with_context(|| format!("no listener is named {name}"))?;
            ensure!(named.next().is_none(), "two listeners are named {name}");
            Ok(first)
        }
    }
}

fn stands_for<'a>(what: What, place: impl Fn() -> Result<&'a Place>, values: &Values) -> Result<Vec<u8>> {
    let text = match what {
        What::Addr => return Ok(place()?.endpoint.to_bytes()),
        What::Path => return Ok(place()?.endpoint.path()?.as_os_str().as_bytes().to_vec()),
        What::Fd => {
            let fd =
                place()?.fd.context("{fd} has no meaning with --intercept, for the program opens its socket itself")?;
            fd.to_string()
        }
        What::Host => place()?.endpoint.host()?,
        What::Port => place()?.endpoint.port()?.to_string(),
        What::Generation => values.generation.to_string(),
        What::Pid => values.pid.to_string(),
    };
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::address::{UnixKind, UnixName};

    fn values() -> Values {
        let web =
            Endpoint::Inet { kind: crate::sys::Transport::Tcp, address: "[::1]:80".parse().unwrap(), v6only: false };
        let app = Endpoint::Unix { kind: UnixKind::Stream, name: UnixName::Path("/run/app".into()) };
        let place = |name, fd, endpoint| Place { name: FdName::announced(name).unwrap(), fd: Some(fd), endpoint };
        Values { places: vec![place("web", 3, web), place("app", 4, app)], generation: 2, pid: 77 }
    }

    fn argument(text: &str) -> String {
        String::from_utf8(Template::argument(text.as_bytes()).expand(&values()).unwrap()).unwrap()
    }

    #[test]
    fn a_placeholder_without_a_name_means_the_first_listener() {
        assert_eq!(argument("{fd} {addr} {host} {port} {gen} {pid}"), "3 [::1]:80 ::1 80 2 77");
        assert_eq!(argument("{fd:app}={path:app}={addr:app}"), "4=/run/app=/run/app");
    }

    #[test]
    fn an_argument_without_a_placeholder_is_left_unchanged() {
        for text in
            ["{{.Name}}", "{\"a\": 1}", "{", "}", "{{", "{fd", "{FD}", "{gen:web}", "a{}b", "${port}", "${fd:-none}"]
        {
            assert_eq!(argument(text), text);
        }
    }

    #[test]
    fn a_doubled_brace_is_a_literal_one_where_there_is_a_placeholder() {
        assert_eq!(argument("{{fd} is {fd}"), "{fd} is 3");
    }

    #[test]
    fn a_value_of_env_must_mean_something_with_each_brace() {
        assert_eq!(Template::strict(b"{{fd}").unwrap().expand(&values()).unwrap(), b"{fd}");
        let error = Template::strict(b"{fdd}").unwrap_err().to_string();
        assert_eq!(error, "{fdd} is no placeholder; a literal brace is written {{");
        let error = Template::strict(b"{prot:web}").unwrap_err().to_string();
        assert_eq!(error, "{prot:web} is no placeholder, {port} is; a literal brace is written {{");
    }

    #[test]
    fn a_placeholder_is_near_by_one_letter() {
        let meant = |text: &str| near_misses(text.as_bytes()).into_iter().map(|(_, meant)| meant).collect::<Vec<_>>();
        assert_eq!(
            meant("--port={prot} {hots:web} {add}{pathh} {ort} {pott}"),
            ["port", "host", "addr", "path", "port", "port"]
        );
        let others = "{port} {id} {FD} {} {{prot {pt} {name} {Port:x {portal} {tropp} {.Port}";
        assert_eq!(meant(others), [""; 0]);
    }

    #[test]
    fn what_a_listener_does_not_have_is_an_error() {
        let error = |text: &str| Template::argument(text.as_bytes()).expand(&values()).unwrap_err().to_string();
        assert_eq!(error("{path}"), "[::1]:80 has no path");
        assert_eq!(error("{port:app}"), "a Unix socket has no port");
        assert_eq!(error("{fd:nobody}"), "no listener is named nobody");
    }
}
