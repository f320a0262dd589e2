//! Heads on the wire: a request's as it is written, an answer's as it is read (RFC 9112, 2 to 6). No sockets here.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING},
    uri::PathAndQuery,
};
use hyper::ext::ReasonPhrase;

use super::{WireError, body::Framing};
use crate::{
    forward::Outgoing,
    pool::{FIELDS_MAX, HEAD_BYTES_MAX},
};

/// Writes the head of a request whose body is at hand.
pub(super) fn write(outgoing: &Outgoing, body_bytes: usize, into: &mut Vec<u8>) {
    let target = outgoing.target.path_and_query();
    let target = target.map_or("/", PathAndQuery::as_str);
    into.extend_from_slice(outgoing.method.as_str().as_bytes());
    into.push(b' ');
    if !target.starts_with(['/', '*']) {
        into.push(b'/');
    }
    into.extend_from_slice(target.as_bytes());
    into.extend_from_slice(b" HTTP/1.1\r\n");
    let fields = &outgoing.headers;
    // RFC 9110, 7.2: first, so that a reader knows early for whom it is.
    if let Some(host) = outgoing.forwarding.host() {
        field(&HOST, host.as_bytes(), into);
    }
    let is_ours = |name: &HeaderName| *name == HOST || *name == CONTENT_LENGTH;
    for (name, value) in fields.iter().filter(|(name, _)| !is_ours(name)) {
        field(name, value.as_bytes(), into);
    }
    for (name, value) in outgoing.forwarding.fields() {
        field(&name, value.as_bytes(), into);
    }
    if fields.contains_key(TE) && !fields.contains_key(CONNECTION) {
        field(&CONNECTION, b"te", into);
    }
    // RFC 9110, 8.6: said also where nothing comes, if something could.
    let is_expected = matches!(outgoing.method, Method::POST | Method::PUT | Method::PATCH);
    if body_bytes > 0 || is_expected || fields.contains_key(CONTENT_LENGTH) {
        field(&CONTENT_LENGTH, body_bytes.to_string().as_bytes(), into);
    }
    into.extend_from_slice(b"\r\n");
}

fn field(name: &HeaderName, value: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(name.as_str().as_bytes());
    into.extend_from_slice(b": ");
    into.extend_from_slice(value);
    into.extend_from_slice(b"\r\n");
}

/// The head of an answer, and what it says of what follows.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) reason: Option<ReasonPhrase>,
    pub(super) framing: Framing,
    /// The backend keeps the connection open after it.
    pub(super) is_kept: bool,
}

/// Takes an answer's head off the front of what was read, once it is there. Interim answers (RFC 9110, 15.2) are
/// skipped: nobody asked for them.
pub(super) fn read(buffer: &mut BytesMut, method: &Method) -> Result<Option<Head>, WireError> {
    loop {
        if buffer.is_empty() {
            return Ok(None);
        }
        let Some(head) = parse(buffer, method)? else {
            return if buffer.len() >= HEAD_BYTES_MAX {
                Err(WireError::HeadTooLarge)
            } else {
                Ok(None)
            };
        };
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(WireError::Switched);
        }
        if !head.status.is_informational() {
            return Ok(Some(head));
        }
    }
}

fn parse(buffer: &mut BytesMut, method: &Method) -> Result<Option<Head>, WireError> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        buffer,
        &mut fields,
    );
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(WireError::Head(error)),
    };
    if length > HEAD_BYTES_MAX {
        return Err(WireError::HeadTooLarge);
    }
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(WireError::Head(httparse::Error::Status))?;
    let version = match response.version {
        Some(0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let canonical = status.canonical_reason().unwrap_or_default();
    let reason = response.reason.filter(|reason| *reason != canonical);
    let reason = reason.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok());
    let start = buffer.as_ptr().addr();
    let place = |header: &httparse::Header<'_>| Place {
        name: header.name.as_ptr().addr() - start,
        name_end: header.name.as_ptr().addr() - start + header.name.len(),
        value: header.value.as_ptr().addr().wrapping_sub(start),
        value_len: header.value.len(),
    };
    let places: Vec<Place> = response.headers.iter().map(place).collect();
    let bytes = buffer.split_to(length).freeze();
    let mut headers = HeaderMap::with_capacity(places.len() + ADDED);
    for place in &places {
        headers.append(place.name(&bytes)?, place.value(&bytes)?);
    }
    let framing = framing(method, status, version, &mut headers)?;
    let is_kept = framing != Framing::Close && is_kept(version, &headers);
    Ok(Some(Head {
        status,
        headers,
        reason,
        framing,
        is_kept,
    }))
}

/// Room for the fields that are added on the way.
const ADDED: usize = 2;

/// Where a field lies in its head.
#[derive(Debug, Clone, Copy)]
struct Place {
    name: usize,
    name_end: usize,
    value: usize,
    value_len: usize,
}

impl Place {
    fn name(&self, head: &[u8]) -> Result<HeaderName, WireError> {
        HeaderName::from_bytes(&head[self.name..self.name_end])
            .map_err(|_| WireError::Head(httparse::Error::HeaderName))
    }

    /// Shares the head's memory.
    fn value(&self, head: &Bytes) -> Result<HeaderValue, WireError> {
        let bytes = if self.value_len == 0 {
            // An empty value lies nowhere.
            Bytes::new()
        } else {
            head.slice(self.value..self.value + self.value_len)
        };
        HeaderValue::from_maybe_shared(bytes)
            .map_err(|_| WireError::Head(httparse::Error::HeaderValue))
    }
}

/// How long the body is (RFC 9112, 6.3). A length beside chunks is taken away: the chunks are true.
fn framing(
    method: &Method,
    status: StatusCode,
    version: Version,
    headers: &mut HeaderMap,
) -> Result<Framing, WireError> {
    let last = headers.get_all(TRANSFER_ENCODING).iter().next_back();
    let last = last.map(|value| {
        let last = value.as_bytes().rsplit(|byte| *byte == b',').next();
        last.is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"chunked"))
    });
    if last.is_some() {
        headers.remove(CONTENT_LENGTH);
    }
    let has_none = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    match last {
        _ if has_none => return Ok(Framing::Length(0)),
        Some(_) if version == Version::HTTP_10 => return Err(WireError::Framing),
        Some(true) => return Ok(Framing::chunked()),
        Some(false) => return Ok(Framing::Close),
        None => {}
    }
    let mut length = None;
    let mut is_plain = true;
    for value in headers.get_all(CONTENT_LENGTH) {
        // `5, 5` is a length said twice (RFC 9110, 8.6).
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let here = digits(part.trim_ascii()).ok_or(WireError::Framing)?;
            match length.replace(here) {
                None => {}
                Some(before) if before == here => is_plain = false,
                Some(_) => return Err(WireError::Framing),
            }
        }
    }
    let Some(length) = length else {
        return Ok(Framing::Close);
    };
    if !is_plain {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(Framing::Length(length))
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// RFC 9112, 9.3.
fn is_kept(version: Version, headers: &HeaderMap) -> bool {
    let says = |word: &[u8]| {
        let values = headers.get_all(CONNECTION).iter();
        values
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(word))
    };
    !says(b"close") && (version == Version::HTTP_11 || says(b"keep-alive"))
}
