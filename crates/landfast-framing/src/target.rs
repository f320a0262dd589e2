//! The request target (RFC 9112, 3.2): its form, and whether its path has one reading.

use std::ops::Range;

use crate::{
    Refusal,
    bytes::{self, METHOD, PATH, QUERY},
    host,
};

/// The longest target. Longer ones are answered 414.
pub(crate) const TARGET_BYTES_MAX: usize = 32 << 10;

/// Checks the parts of a request that no scanner saw, because it came by HTTP/2: what the scanner refuses in a
/// request line or a `Host` is refused here. `target` is path and query.
///
/// # Errors
/// What has two readings.
pub fn check_request(method: &[u8], target: &[u8], authority: &[u8]) -> Result<(), Refusal> {
    if method.is_empty() || bytes::run(METHOD, method) != method.len() {
        return Err(Refusal::Method);
    }
    if !host::is_valid(authority) {
        return Err(Refusal::HostInvalid);
    }
    check(method, target).map(|_none| ())
}

/// Checks a target, and gives the place of its authority where it has one.
pub(crate) fn check(method: &[u8], target: &[u8]) -> Result<Option<Range<usize>>, Refusal> {
    if target.len() > TARGET_BYTES_MAX {
        return Err(Refusal::TargetTooLong);
    }
    if target.first() == Some(&b'/') {
        return check_path_and_query(target).map(|()| None);
    }
    if target == b"*" && method == b"OPTIONS" {
        return Ok(None);
    }
    let Some(begin) = scheme_length(target) else {
        return Err(Refusal::Target);
    };
    let rest = target.get(begin..).unwrap_or_default();
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
    if !host::is_valid(authority) || path.first() == Some(&b'?') {
        return Err(Refusal::Target);
    }
    check_path_and_query(path)?;
    Ok(Some(begin..begin + authority.len()))
}

/// The length of `http://` or `https://` at the beginning.
fn scheme_length(target: &[u8]) -> Option<usize> {
    let schemes: [&[u8]; 2] = [b"http://", b"https://"];
    let found = schemes.iter().find(|scheme| {
        let begin = target.get(..scheme.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
    });
    found.map(|scheme| scheme.len())
}

/// Where a segment of a path stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Segment {
    Empty,
    Dot,
    DotDot,
    Other,
}

impl Segment {
    /// Takes the next byte, decoded. An encoded slash separates where a reader decodes first, and what follows
    /// a `;` is no part of the name where a reader knows path parameters; so both count as ends of a name.
    fn take(&mut self, byte: u8) -> Result<(), Refusal> {
        *self = match (byte, *self) {
            (b'/' | b'\\', _) => {
                self.end()?;
                Self::Empty
            }
            (b';', _) => {
                self.end()?;
                Self::Other
            }
            (b'.', Self::Empty) => Self::Dot,
            (b'.', Self::Dot) => Self::DotDot,
            _ => Self::Other,
        };
        Ok(())
    }

    fn end(self) -> Result<(), Refusal> {
        match self {
            Self::Dot | Self::DotDot => Err(Refusal::DotSegment),
            Self::Empty | Self::Other => Ok(()),
        }
    }
}

/// A path with `..` leads one reader elsewhere than the next, past the rules of a route; clients resolve such
/// segments before they send (RFC 3986, 5.2.4). Escapes must be whole, and none may hide the end of a text.
fn check_path_and_query(target: &[u8]) -> Result<(), Refusal> {
    let query = target.iter().position(|byte| *byte == b'?');
    let (path, query) = target.split_at(query.unwrap_or(target.len()));
    let mut segment = Segment::Empty;
    let mut left = path.iter();
    while let Some(&byte) = left.next() {
        if !bytes::is(PATH, byte) {
            return Err(Refusal::Target);
        }
        let decoded = if byte == b'%' {
            let digits = (left.next().copied(), left.next().copied());
            let (Some(high), Some(low)) = (digit(digits.0), digit(digits.1)) else {
                return Err(Refusal::Target);
            };
            high << 4 | low
        } else {
            byte
        };
        if decoded == 0 {
            return Err(Refusal::Target);
        }
        segment.take(decoded)?;
    }
    segment.end()?;
    // A query is the application's own; only what ends or splits a line, or begins a fragment, is refused.
    if bytes::run(QUERY, query) != query.len() {
        return Err(Refusal::Target);
    }
    Ok(())
}

fn digit(byte: Option<u8>) -> Option<u8> {
    let value = char::from(byte?).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_reading() {
        for good in [
            "/",
            "/a/b",
            "/a//b",
            "/...",
            "/.well-known/x",
            "/a..b",
            "/a/b.",
            "/%2f",
            "/group%2Fproject",
            "/a;b=c",
            "/?q=../..",
            "/?{'a':1}",
            "/a|b",
            "/?a%zz",
            "/a%C3%A9",
            "/{\"a\":1}",
            "/?a\\b",
        ] {
            assert_eq!(check(b"GET", good.as_bytes()), Ok(None), "{good}");
        }
        for (bad, refusal) in [
            ("", Refusal::Target),
            ("a", Refusal::Target),
            ("*", Refusal::Target),
            ("/a#b", Refusal::Target),
            ("/?a#b", Refusal::Target),
            ("/\u{e9}", Refusal::Target),
            ("/a\\b", Refusal::Target),
            ("/%", Refusal::Target),
            ("/%4", Refusal::Target),
            ("/%zz", Refusal::Target),
            ("/a%00b", Refusal::Target),
            ("/a<b", Refusal::Target),
            ("/.", Refusal::DotSegment),
            ("/..", Refusal::DotSegment),
            ("/a/../b", Refusal::DotSegment),
            ("/a/./b", Refusal::DotSegment),
            ("/a/%2e%2E/b", Refusal::DotSegment),
            ("/a/.%2e", Refusal::DotSegment),
            ("/a%2f..%2fb", Refusal::DotSegment),
            ("/a/..%5cb", Refusal::DotSegment),
            ("/a/..;x=y/b", Refusal::DotSegment),
            ("/..?q", Refusal::DotSegment),
        ] {
            assert_eq!(check(b"GET", bad.as_bytes()), Err(refusal), "{bad}");
        }
    }

    #[test]
    fn an_absolute_target_has_a_plain_host() {
        assert_eq!(check(b"GET", b"http://a.example:81/x"), Ok(Some(7..19)));
        assert_eq!(check(b"GET", b"HTTPS://a"), Ok(Some(8..9)));
        for bad in [
            "http://",
            "http:///x",
            "http://u@a/",
            "ftp://a/",
            "http:/a",
            "http://a?x",
            "//a/../x",
            "http://a:b/",
            "a:80",
        ] {
            assert!(check(b"GET", bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(check(b"OPTIONS", b"*"), Ok(None));
    }
}
