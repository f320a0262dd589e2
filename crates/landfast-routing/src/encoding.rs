//! Which coding an answer gets (RFC 9110, 12.5.3), and which answers may be coded at all.

use http::{
    HeaderMap, StatusCode,
    header::{
        CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
        HeaderValue, VARY,
    },
};

use crate::media;

/// Answers that are known to be shorter are not worth it.
pub const COMPRESS_BYTES_MIN: u64 = 1_024;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Brotli,
    Zstd,
    Gzip,
}

impl Coding {
    /// What a file may lie beside it, best first.
    pub const PREPARED: [Self; 3] = [Self::Brotli, Self::Zstd, Self::Gzip];
    /// What is made on the way, best first.
    pub const MADE: [Self; 2] = [Self::Zstd, Self::Gzip];

    /// The name in `Content-Encoding`.
    pub fn token(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// What a file so coded is called behind its name.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }
}

/// The coding the client likes best among those offered, best for us first; `None` is the answer as it is. Only
/// what `Accept-Encoding` names, or `*`, is taken: no field says nothing about what a client can read.
pub fn negotiate(accept_encoding: &str, offered: &[Coding]) -> Option<Coding> {
    let listed = |wanted: &str| {
        let entries = accept_encoding.split(',').map(entry);
        entries
            .filter(|(name, _)| {
                name.eq_ignore_ascii_case(wanted)
                    || (wanted == "gzip" && name.eq_ignore_ascii_case("x-gzip"))
            })
            .map(|(_, quality)| quality)
            .max()
    };
    let any = listed("*");
    let mut best: Option<(u16, Coding)> = None;
    for coding in offered {
        let quality = listed(coding.token()).or(any).unwrap_or(0);
        if quality > best.map_or(0, |(quality, _)| quality) {
            best = Some((quality, *coding));
        }
    }
    let (quality, coding) = best?;
    // A client that says it would rather have it as it is.
    (listed("identity").unwrap_or(0) <= quality).then_some(coding)
}

/// One entry with its quality in thousandths. What is not a quality is none.
fn entry(text: &str) -> (&str, u16) {
    let mut parts = text.split(';');
    let name = parts.next().unwrap_or("").trim();
    let quality = parts.find_map(|part| {
        let (key, value) = part.split_once('=')?;
        key.trim()
            .eq_ignore_ascii_case("q")
            .then(|| quality(value.trim()))
    });
    (name, quality.unwrap_or(1_000))
}

fn quality(text: &str) -> u16 {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let is_plain = rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_digit());
    match (whole, is_plain) {
        ("1", true) if rest.bytes().all(|byte| byte == b'0') => 1_000,
        ("0", true) => format!("{rest:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}

/// Whether an answer could be coded for some client. Such an answer says `Vary: Accept-Encoding`.
pub fn is_eligible(status: StatusCode, headers: &HeaderMap) -> bool {
    let bodiless = matches!(
        status,
        StatusCode::NO_CONTENT
            | StatusCode::RESET_CONTENT
            | StatusCode::PARTIAL_CONTENT
            | StatusCode::NOT_MODIFIED
    );
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    // A digest of the content would be one of other bytes.
    let is_sealed = headers.contains_key("content-digest") || headers.contains_key("content-md5");
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    !status.is_informational()
        && !bodiless
        && !is_sealed
        && !headers.contains_key(CONTENT_ENCODING)
        && !headers.contains_key(CONTENT_RANGE)
        && !has_directive(headers, "no-transform")
        && length.is_none_or(|length| length >= COMPRESS_BYTES_MIN)
        && text(CONTENT_TYPE).is_some_and(media::is_compressible)
}

fn has_directive(headers: &HeaderMap, wanted: &str) -> bool {
    headers
        .get_all(CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|directive| directive.trim().eq_ignore_ascii_case(wanted))
}

/// Says that the answer depends on `Accept-Encoding`.
pub fn vary(headers: &mut HeaderMap) {
    let named = headers
        .get_all(VARY)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| {
            matches!(name.trim(), "*") || name.trim().eq_ignore_ascii_case("accept-encoding")
        });
    if !named {
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// The head of an answer that is coded from now on: other bytes, so no length, no ranges, and a tag that only
/// says the same thing in other bytes (RFC 9110, 8.8.1).
pub fn mark_coded(headers: &mut HeaderMap, coding: Coding) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.token()));
    headers.remove(CONTENT_LENGTH);
    headers.remove(http::header::ACCEPT_RANGES);
    let weak = headers
        .get(ETAG)
        .filter(|tag| tag.as_bytes().starts_with(b"\""));
    let weak = weak.map(|tag| HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()));
    if let Some(Ok(weak)) = weak {
        headers.insert(ETAG, weak);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_order_comes_before_ours() {
        use Coding::{Brotli, Gzip, Zstd};
        let cases = [
            ("gzip, deflate, br, zstd", &Coding::MADE[..], Some(Zstd)),
            ("gzip, deflate, br, zstd", &Coding::PREPARED, Some(Brotli)),
            ("gzip;q=1.0, zstd;q=0.5", &Coding::MADE, Some(Gzip)),
            ("GZIP", &Coding::MADE, Some(Gzip)),
            ("x-gzip", &Coding::MADE, Some(Gzip)),
            ("gzip;q=0", &Coding::MADE, None),
            ("gzip;q=0, *", &Coding::MADE, Some(Zstd)),
            ("*;q=0", &Coding::MADE, None),
            ("*;q=0.001", &Coding::MADE, Some(Zstd)),
            ("identity", &Coding::MADE, None),
            ("identity;q=1, gzip;q=0.5", &Coding::MADE, None),
            ("identity;q=0.5, gzip", &Coding::MADE, Some(Gzip)),
            ("gzip;q=2, zstd;q=0.1234", &Coding::MADE, None),
            ("br", &Coding::MADE, None),
            ("", &Coding::MADE, None),
        ];
        for (accept, offered, expected) in cases {
            assert_eq!(negotiate(accept, offered), expected, "{accept}");
        }
    }

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn what_must_not_change_is_left_alone() {
        let json = ("content-type", "application/json");
        type Fields<'a> = &'a [(&'static str, &'static str)];
        let cases: [(u16, Fields<'_>, bool); 11] = [
            (200, &[json], true),
            (404, &[json, ("content-length", "1024")], true),
            (200, &[json, ("content-length", "1023")], false),
            (200, &[json, ("content-encoding", "br")], false),
            (206, &[json, ("content-range", "bytes 0-9/20")], false),
            (204, &[json], false),
            (304, &[json], false),
            (
                200,
                &[json, ("cache-control", "public, No-Transform")],
                false,
            ),
            (200, &[json, ("content-digest", "sha-256=:x:")], false),
            (200, &[("content-type", "text/event-stream")], false),
            (200, &[], false),
        ];
        for (status, fields, expected) in cases {
            let status = StatusCode::from_u16(status).expect("a status");
            let fields: Vec<(&'static str, &str)> = fields.to_vec();
            assert_eq!(
                is_eligible(status, &map(&fields)),
                expected,
                "{status} {fields:?}"
            );
        }
    }

    #[test]
    fn a_coded_answer_has_no_length_and_a_weak_tag() {
        let mut headers = map(&[
            ("content-length", "5000"),
            ("accept-ranges", "bytes"),
            ("etag", "\"a\""),
            ("vary", "Origin, Accept-Encoding"),
        ]);
        mark_coded(&mut headers, Coding::Gzip);
        vary(&mut headers);
        let expected = map(&[
            ("content-encoding", "gzip"),
            ("etag", "W/\"a\""),
            ("vary", "Origin, Accept-Encoding"),
        ]);
        assert_eq!(headers, expected);
    }
}
