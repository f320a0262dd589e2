//! Static files: which path a request means, and which part of a file it gets (RFC 9110, 13 and 14).

use http::{
    HeaderMap, HeaderName,
    header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE},
};

/// What a request path means below a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePath {
    /// Decoded, without a slash at either end; empty for the folder itself.
    pub path: String,
    /// Whether the request named a folder: it ended with a slash.
    pub is_folder: bool,
}

impl FilePath {
    /// The page of the folder.
    pub fn index(&self) -> String {
        if self.path.is_empty() {
            "index.html".to_owned()
        } else {
            format!("{}/index.html", self.path)
        }
    }

    /// Whether a page is meant rather than something a page needs.
    pub fn is_page(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or("");
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        self.is_folder || extension.is_none_or(|it| matches!(it, "html" | "htm"))
    }
}

/// The path below a route's prefix (without a final `/`). Nothing for paths no file has: those that go up, hide
/// behind a dot (`.well-known` at the top apart), or hold an empty part, a separator that was escaped, a
/// backslash or a control character.
pub fn file_path(prefix: &str, request_path: &str) -> Option<FilePath> {
    let below = request_path.strip_prefix(prefix)?;
    let below = below.strip_prefix('/').unwrap_or(below);
    let is_folder = below.is_empty() || below.ends_with('/');
    let below = below.strip_suffix('/').unwrap_or(below);
    if below.is_empty() {
        let path = String::new();
        // `//` is not the folder.
        return (request_path.len() <= prefix.len() + 1).then_some(FilePath { path, is_folder });
    }
    let mut path = String::with_capacity(below.len());
    for (index, part) in below.split('/').enumerate() {
        let part = decode(part)?;
        let is_hidden = part.starts_with('.') && !(index == 0 && part == ".well-known");
        let is_odd = |c: char| c.is_control() || c == '/' || c == '\\';
        if part.is_empty() || is_hidden || part.contains(is_odd) {
            return None;
        }
        if index > 0 {
            path.push('/');
        }
        path.push_str(&part);
    }
    Some(FilePath { path, is_folder })
}

/// Undoes percent-encoding (RFC 3986, 2.1), once.
fn decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// What a request's conditions make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Holds,
    /// 304: the client has it.
    NotModified,
    /// 412.
    Failed,
}

/// Judges the conditions of a GET or HEAD in the order of RFC 9110, 13.2.2. Dates are compared for equality alone:
/// after a rollback the older file has the older date, and is the newer answer all the same.
pub fn condition(headers: &HeaderMap, etag: &str, modified: &str) -> Condition {
    if headers.contains_key(IF_MATCH) {
        if !names_tag(headers, IF_MATCH, etag, false) {
            return Condition::Failed;
        }
    } else if text(headers, IF_UNMODIFIED_SINCE).is_some_and(|date| date != modified) {
        return Condition::Failed;
    }
    let is_known = if headers.contains_key(IF_NONE_MATCH) {
        names_tag(headers, IF_NONE_MATCH, etag, true)
    } else {
        text(headers, IF_MODIFIED_SINCE).is_some_and(|date| date == modified)
    };
    if is_known {
        Condition::NotModified
    } else {
        Condition::Holds
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Whether a list of tags holds this one. `weakly`: also where one of them is weak (RFC 9110, 8.8.3.2).
fn names_tag(headers: &HeaderMap, name: HeaderName, etag: &str, weakly: bool) -> bool {
    let bare = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    let values = headers.get_all(name).iter();
    // None of our tags holds a comma, so a list is cut at each.
    let tags = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim);
    tags.into_iter().any(|tag| {
        tag == "*"
            || if weakly {
                bare(tag) == bare(etag)
            } else {
                tag == etag && !tag.starts_with("W/")
            }
    })
}

/// Which part of a file a GET gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// From the first byte to the last, both included.
    Range {
        first: u64,
        last: u64,
    },
    /// 416.
    Unsatisfiable,
}

/// Reads `Range`. Several ranges, other units and what is malformed are ignored, as RFC 9110, 14.2 allows: the
/// whole file is right for everybody. So is a range of what `If-Range` says is another file by now; a date is
/// no proof of that, and never holds.
pub fn part(headers: &HeaderMap, etag: &str, length: u64) -> Part {
    let mut ranges = headers.get_all(RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else {
        return Part::Whole;
    };
    if headers.contains_key(IF_RANGE) && text(headers, IF_RANGE) != Some(etag) {
        return Part::Whole;
    }
    let range = range.to_str().ok().and_then(|range| {
        let (unit, range) = range.split_once('=')?;
        unit.trim()
            .eq_ignore_ascii_case("bytes")
            .then_some(range.trim())
    });
    range
        .and_then(|range| one_range(range, length))
        .unwrap_or(Part::Whole)
}

fn one_range(range: &str, length: u64) -> Option<Part> {
    let number = |text: &str| {
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // Larger than any file is large enough.
        is_plain.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (first, last) = range.split_once('-')?;
    if first.is_empty() {
        let count = number(last)?.min(length);
        return Some(match count {
            0 => Part::Unsatisfiable,
            count => Part::Range {
                first: length - count,
                last: length - 1,
            },
        });
    }
    let first = number(first)?;
    let last = if last.is_empty() {
        u64::MAX
    } else {
        number(last)?
    };
    if last < first {
        return None;
    }
    Some(if first >= length {
        Part::Unsatisfiable
    } else {
        Part::Range {
            first,
            last: last.min(length - 1),
        }
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_path_never_leaves_its_folder() {
        let found =
            |prefix: &str, path: &str| file_path(prefix, path).map(|it| (it.path, it.is_folder));
        let cases = [
            ("", "/", Some(("", true))),
            ("", "/app.js", Some(("app.js", false))),
            ("", "/docs/", Some(("docs", true))),
            ("/assets", "/assets", Some(("", true))),
            ("/assets", "/assets/", Some(("", true))),
            ("/assets", "/assets/a%20b.css", Some(("a b.css", false))),
            ("", "/.well-known/x", Some((".well-known/x", false))),
            ("", "/%C3%A4.txt", Some(("ä.txt", false))),
            ("", "/...", None),
            ("", "/../x", None),
            ("", "/a/../x", None),
            ("", "/a/%2e%2e/x", None),
            ("", "/a/%2E./x", None),
            ("", "/a%2fb", None),
            ("", "/a%5cb", None),
            ("", "/a\\..\\b", None),
            ("", "/%00", None),
            ("", "/%2", None),
            ("", "/%zz", None),
            ("", "/%+1", None),
            ("", "/%ff", None),
            ("", "/.env", None),
            ("", "/a/.git/config", None),
            ("", "/a/.well-known/x", None),
            ("", "//", None),
            ("", "//evil.example/", None),
            ("", "/a//b", None),
        ];
        for (prefix, path, expected) in cases {
            let expected =
                expected.map(|(path, is_folder): (&str, bool)| (path.to_owned(), is_folder));
            assert_eq!(found(prefix, path), expected, "{prefix} {path}");
        }
    }

    #[test]
    fn pages_are_told_from_what_they_need() {
        for (path, expected) in [
            ("/", true),
            ("/about", true),
            ("/a.html", true),
            ("/a.js", false),
            ("/v1.2/", true),
        ] {
            assert_eq!(
                file_path("", path).expect("a path").is_page(),
                expected,
                "{path}"
            );
        }
    }

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &str = "Mon, 07 Nov 1994 08:49:37 GMT";

    #[test]
    fn conditions_come_in_the_order_of_the_rfc() {
        use Condition::{Failed, Holds, NotModified};
        let cases: [(&[(&str, &str)], Condition); 12] = [
            (&[], Holds),
            (&[("if-none-match", "\"a\"")], NotModified),
            (&[("if-none-match", "\"b\", W/\"a\"")], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", "\"b\"")], Holds),
            (
                &[("if-none-match", "\"b\""), ("if-modified-since", DATE)],
                Holds,
            ),
            (&[("if-modified-since", DATE)], NotModified),
            (&[("if-modified-since", LATER)], Holds),
            (&[("if-match", "\"b\"")], Failed),
            (&[("if-match", "W/\"a\"")], Failed),
            (
                &[("if-match", "\"a\""), ("if-unmodified-since", LATER)],
                Holds,
            ),
            (&[("if-unmodified-since", LATER)], Failed),
        ];
        for (fields, expected) in cases {
            let fields: Vec<(&'static str, &str)> = fields.to_vec();
            assert_eq!(
                condition(&map(&fields), "\"a\"", DATE),
                expected,
                "{fields:?}"
            );
        }
    }

    #[test]
    fn one_range_is_given_and_anything_odd_is_the_whole() {
        let given = |first, last| Part::Range { first, last };
        let cases = [
            ("bytes=0-0", given(0, 0)),
            ("bytes=2-", given(2, 9)),
            ("bytes=2-99", given(2, 9)),
            ("bytes=-3", given(7, 9)),
            ("bytes=-30", given(0, 9)),
            ("Bytes = 1-2", given(1, 2)),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=99999999999999999999-", Part::Unsatisfiable),
            ("bytes=3-2", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("lines=0-1", Part::Whole),
        ];
        for (range, expected) in cases {
            assert_eq!(
                part(&map(&[("range", range)]), "\"a\"", 10),
                expected,
                "{range}"
            );
        }
        assert_eq!(
            part(&map(&[("range", "bytes=0-")]), "\"a\"", 0),
            Part::Unsatisfiable
        );
        for (tag, expected) in [
            ("\"a\"", given(0, 1)),
            ("\"b\"", Part::Whole),
            (DATE, Part::Whole),
        ] {
            let headers = map(&[("range", "bytes=0-1"), ("if-range", tag)]);
            assert_eq!(part(&headers, "\"a\"", 10), expected, "{tag}");
        }
    }
}
