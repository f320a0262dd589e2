//! What happens to headers on the way through: hop-by-hop fields end here (RFC 9110, 7.6.1), forwarding fields
//! are ours alone and never taken from the client, and a request that leaves room for two readings of its
//! host or its framing is refused.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT,
        FORWARDED, HOST, SET_COOKIE, TE, TRANSFER_ENCODING, UPGRADE,
    },
    uri::Uri,
};

use crate::snapshot::Protocol;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// What is meant for one connection only, beside `Connection` itself and what it lists.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Fields, alone or in families, by which upstreams learn who asks for what; a client must not be able to set them
/// through us.
fn is_foreign(name: &HeaderName) -> bool {
    let text = name.as_str();
    matches!(
        text,
        "x-real-ip" | "true-client-ip" | "x-original-url" | "x-rewrite-url"
    ) || text.starts_with("x-forwarded-")
        || text.starts_with("x-original-forwarded-")
}

/// Names the request in every log on its way.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Fields that have no meaning after the body, or too much of one.
const NEVER_TRAILERS: [HeaderName; 10] = [
    HOST,
    CONTENT_LENGTH,
    CONTENT_ENCODING,
    CONTENT_TYPE,
    EXPECT,
    FORWARDED,
    AUTHORIZATION,
    COOKIE,
    SET_COOKIE,
    X_REQUEST_ID,
];

/// The longest request id taken from a client.
const REQUEST_ID_LEN_MAX: usize = 128;

/// Why a request is refused with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    #[error("the request names no host")]
    HostMissing,
    #[error("the request names its host twice")]
    HostTwice,
    #[error("the host is not a valid one")]
    HostInvalid,
    #[error("the request target and the Host header name different hosts")]
    HostMismatch,
    #[error("the transfer encoding is not `chunked` alone")]
    TransferEncoding,
    #[error("the body length is given in two ways")]
    Framing,
}

/// Removes what is meant for one connection only: the well-known fields and those `Connection` lists.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            // A client must not be able to take away what we or the framing need.
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
            .collect();
        for name in listed {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    remove_all(headers, is_hop_by_hop);
}

/// Most messages have none of what has to go, and looking at each field once is cheaper than asking for each name.
fn remove_all(headers: &mut HeaderMap, is_removed: impl Fn(&HeaderName) -> bool) {
    let here: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_removed(name))
        .cloned()
        .collect();
    for name in here {
        headers.remove(name);
    }
}

/// Whether the sender of a request takes trailers (RFC 9110, 10.1.4).
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case("trailers"))
}

/// Takes out of an answer's trailers what must not come that late (RFC 9110, 6.5.1): framing, routing, credentials.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    for name in NEVER_TRAILERS {
        trailers.remove(name);
    }
}

/// The same for a request's, and what only we may say: a backend that joins trailers with the head would believe it.
pub fn clean_request_trailers(trailers: &mut HeaderMap) {
    clean_trailers(trailers);
    remove_all(trailers, |name| is_foreign(name) || has_underscore(name));
}

/// Where a request came from, as we saw it.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    pub client: IpAddr,
    pub is_https: bool,
    /// The host with its port, as the client wrote it.
    pub authority: &'a str,
}

fn has_underscore(name: &HeaderName) -> bool {
    name.as_str().bytes().any(|byte| byte == b'_')
}

/// Whether a name with `_` must not reach a backend. What reads fields as environment variables takes it for the name with
/// `-`, so over HTTP/1.1 none does. A gRPC server tells the two apart, and metadata is often named so; there only what
/// would be ours, the protocol's or a credential with `-` is kept back.
fn is_look_alike(name: &HeaderName, protocol: Protocol) -> bool {
    if !has_underscore(name) {
        return false;
    }
    if protocol == Protocol::Http1 {
        return true;
    }
    let meant = HeaderName::try_from(name.as_str().replace('_', "-"));
    meant.is_ok_and(|meant| {
        is_foreign(&meant) || is_hop_by_hop(&meant) || NEVER_TRAILERS.contains(&meant)
    })
}

/// The forwarding fields of all requests of one client for one authority. A connection keeps them: they cost several
/// allocations, and its next request is most likely for the same authority.
#[derive(Debug, Clone)]
pub struct Forwarding {
    authority: String,
    address: IpAddr,
    is_https: bool,
    client: Option<HeaderValue>,
    host: Option<HeaderValue>,
    forwarded: Option<HeaderValue>,
}

impl Forwarding {
    /// What a backend is told of a request's origin.
    pub fn new(arrival: Arrival<'_>) -> Self {
        let client = arrival.client.to_canonical();
        let node = match client {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("\"[{address}]\""),
        };
        let proto = proto(arrival.is_https);
        let forwarded = format!("for={node};host=\"{}\";proto={proto}", arrival.authority);
        Self {
            authority: arrival.authority.to_owned(),
            address: arrival.client,
            is_https: arrival.is_https,
            client: HeaderValue::from_str(&client.to_string()).ok(),
            host: HeaderValue::from_str(arrival.authority).ok(),
            forwarded: HeaderValue::try_from(forwarded).ok(),
        }
    }

    /// Whether it was made for the same client and authority, as written.
    pub fn is_for(&self, arrival: Arrival<'_>) -> bool {
        self.authority == arrival.authority
            && self.address == arrival.client
            && self.is_https == arrival.is_https
    }

    /// The host with its port, as the client wrote it.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The authority as a field's value.
    pub fn host(&self) -> Option<&HeaderValue> {
        self.host.as_ref()
    }

    /// Takes every forwarding field away, whoever set it, and `Expect`, which was answered here. `protocol`: what the
    /// backend speaks.
    pub fn clear(headers: &mut HeaderMap, protocol: Protocol) {
        remove_all(headers, |name| {
            is_foreign(name)
                || *name == FORWARDED
                || *name == EXPECT
                || is_look_alike(name, protocol)
        });
    }

    /// The fields that say what we saw ourselves.
    pub fn fields(&self) -> impl Iterator<Item = (HeaderName, &HeaderValue)> {
        static HTTP: HeaderValue = HeaderValue::from_static("http");
        static HTTPS: HeaderValue = HeaderValue::from_static("https");
        let proto = if self.is_https { &HTTPS } else { &HTTP };
        [
            (X_FORWARDED_FOR, self.client.as_ref()),
            (X_FORWARDED_HOST, self.host.as_ref()),
            (X_FORWARDED_PROTO, Some(proto)),
            (FORWARDED, self.forwarded.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    /// Replaces every forwarding field by what we saw ourselves.
    pub fn set(&self, headers: &mut HeaderMap, protocol: Protocol) {
        Self::clear(headers, protocol);
        for (name, value) in self.fields() {
            headers.insert(name, value.clone());
        }
    }
}

fn proto(is_https: bool) -> &'static str {
    if is_https { "https" } else { "http" }
}

/// [`Forwarding::set`] for one request alone.
pub fn set_forwarded(headers: &mut HeaderMap, arrival: Arrival<'_>, protocol: Protocol) {
    Forwarding::new(arrival).set(headers, protocol);
}

/// The client's request id, if it is one that can stand in a log line.
pub fn valid_request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(X_REQUEST_ID).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    let bytes = value.as_bytes();
    let fits = !bytes.is_empty() && bytes.len() <= REQUEST_ID_LEN_MAX;
    (fits && bytes.iter().all(plain)).then(|| value.clone())
}

/// The authority (host with its port, as written) a request is for.
///
/// # Errors
/// When it names none, two, an invalid one, or different ones in target and `Host`.
pub fn authority<'a>(
    version: Version,
    uri: &'a Uri,
    headers: &'a HeaderMap,
) -> Result<&'a str, BadRequest> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(BadRequest::HostTwice);
    }
    let host = match host {
        Some(host) => Some(host.to_str().map_err(|_| BadRequest::HostInvalid)?.trim()),
        None => None,
    };
    let target = uri.authority().map(http::uri::Authority::as_str);
    let found = match (target, host) {
        (Some(target), Some(host)) => {
            if !target.eq_ignore_ascii_case(host) {
                return Err(BadRequest::HostMismatch);
            }
            target
        }
        // HTTP/2 carries the host in its target alone; HTTP/1.1 must send the header as well.
        (Some(target), None) if version != Version::HTTP_11 => target,
        (None, Some(host)) => host,
        (Some(_) | None, None) => return Err(BadRequest::HostMissing),
    };
    if found.is_empty() || host_name(found).is_empty() || !found.bytes().all(is_host_byte) {
        return Err(BadRequest::HostInvalid);
    }
    Ok(found)
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.:[]~%!$&'()*+,;=".contains(&byte)
}

/// The host of an authority without port and final dot. Case is kept.
pub fn host_name(authority: &str) -> &str {
    let host = if authority.starts_with('[') {
        authority
            .find(']')
            .map_or(authority, |end| &authority[..=end])
    } else {
        authority
            .split_once(':')
            .map_or(authority, |(host, _)| host)
    };
    host.strip_suffix('.').unwrap_or(host)
}

/// Refuses framing with two readings: any transfer encoding but `chunked` alone, or one beside a length.
///
/// # Errors
/// What is ambiguous.
pub fn check_framing(headers: &HeaderMap) -> Result<(), BadRequest> {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let encoding = encodings.next();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if let Some(encoding) = encoding {
        let is_chunked = encoding
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"chunked");
        if !is_chunked || encodings.next().is_some() {
            return Err(BadRequest::TransferEncoding);
        }
        if length.is_some() {
            return Err(BadRequest::Framing);
        }
    }
    if lengths.next().is_some() || length.is_some_and(|length| length.as_bytes().contains(&b',')) {
        return Err(BadRequest::Framing);
    }
    Ok(())
}

/// Whether a request asks for a WebSocket.
pub fn is_websocket_upgrade(headers: &HeaderMap) -> bool {
    let token = |name: HeaderName, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(wanted))
    };
    token(UPGRADE, "websocket") && token(CONNECTION, "upgrade")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields<'a> = &'a [(&'a str, &'a str)];
    type AuthorityCase<'a> = (Version, &'a str, Fields<'a>, Result<&'a str, BadRequest>);

    fn map(fields: Fields<'_>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn what_is_for_one_connection_ends_here() {
        let mut headers = map(&[
            ("connection", "close, X-Secret-Hop"),
            ("connection", "host, content-length"),
            ("x-secret-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-connection", "keep-alive"),
            ("host", "a.example"),
            ("content-length", "3"),
            ("x-stays", "1"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "host", "x-stays"]);
    }

    #[test]
    fn trailers_bring_nothing_that_belongs_to_the_head() {
        let mut trailers = map(&[
            ("grpc-status", "0"),
            ("x-checksum", "1"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("x-forwarded-for", "6.6.6.6"),
            ("authorization", "Basic x"),
            ("host", "b.example"),
            ("my_key", "0"),
        ]);
        let mut answer = trailers.clone();
        clean_request_trailers(&mut trailers);
        assert_eq!(trailers, map(&[("grpc-status", "0"), ("x-checksum", "1")]));
        clean_trailers(&mut answer);
        assert_eq!(
            answer["my_key"], "0",
            "an instance may call its own what it likes"
        );
        assert!(!answer.contains_key(AUTHORIZATION) && !answer.contains_key(HOST));
        assert!(takes_trailers(&map(&[("te", "gzip, Trailers")])));
        assert!(!takes_trailers(&map(&[("te", "gzip")])));
    }

    #[test]
    fn forwarding_fields_are_ours_alone() {
        let mut headers = map(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "7.7.7.7"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-proto", "https"),
            ("expect", "100-continue"),
        ]);
        let client = "::ffff:192.0.2.7".parse().expect("an address");
        set_forwarded(
            &mut headers,
            Arrival {
                client,
                is_https: false,
                authority: "a.example:81",
            },
            Protocol::Http1,
        );
        let expected = map(&[
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "a.example:81"),
            (
                "forwarded",
                "for=192.0.2.7;host=\"a.example:81\";proto=http",
            ),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn a_request_has_exactly_one_host() {
        let cases: [AuthorityCase<'_>; 10] = [
            (
                Version::HTTP_11,
                "/",
                &[("host", "a.example:8080")],
                Ok("a.example:8080"),
            ),
            (Version::HTTP_11, "/", &[], Err(BadRequest::HostMissing)),
            (
                Version::HTTP_11,
                "/",
                &[("host", "")],
                Err(BadRequest::HostInvalid),
            ),
            (
                Version::HTTP_11,
                "/",
                &[("host", "a"), ("host", "a")],
                Err(BadRequest::HostTwice),
            ),
            (Version::HTTP_11, "http://a/x", &[("host", "A")], Ok("a")),
            (
                Version::HTTP_11,
                "http://a/x",
                &[("host", "b")],
                Err(BadRequest::HostMismatch),
            ),
            (
                Version::HTTP_11,
                "http://a/x",
                &[],
                Err(BadRequest::HostMissing),
            ),
            (Version::HTTP_2, "https://a/x", &[], Ok("a")),
            (
                Version::HTTP_2,
                "https://a/x",
                &[("host", "b")],
                Err(BadRequest::HostMismatch),
            ),
            (
                Version::HTTP_11,
                "/",
                &[("host", "a/b\"")],
                Err(BadRequest::HostInvalid),
            ),
        ];
        for (version, uri, fields, expected) in cases {
            let uri: Uri = uri.parse().expect("a target");
            assert_eq!(
                authority(version, &uri, &map(fields)),
                expected,
                "{uri} {fields:?}"
            );
        }
        assert_eq!(host_name("A.example.:80"), "A.example");
        assert_eq!(host_name("[::1]:80"), "[::1]");
    }

    #[test]
    fn framing_has_one_reading() {
        let cases: [(Fields<'_>, Result<(), BadRequest>); 7] = [
            (&[], Ok(())),
            (&[("content-length", "3")], Ok(())),
            (&[("transfer-encoding", "Chunked")], Ok(())),
            (
                &[("transfer-encoding", "gzip, chunked")],
                Err(BadRequest::TransferEncoding),
            ),
            (
                &[
                    ("transfer-encoding", "identity"),
                    ("transfer-encoding", "chunked"),
                ],
                Err(BadRequest::TransferEncoding),
            ),
            (
                &[("transfer-encoding", "chunked"), ("content-length", "3")],
                Err(BadRequest::Framing),
            ),
            (&[("content-length", "5, 5")], Err(BadRequest::Framing)),
        ];
        for (fields, expected) in cases {
            assert_eq!(check_framing(&map(fields)), expected, "{fields:?}");
        }
    }

    #[test]
    fn nothing_a_client_says_of_itself_passes() {
        let mut headers = map(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-user", "root"),
            ("x-forwarded-ssl", "on"),
            ("x-original-forwarded-for", "6.6.6.6"),
            ("x-original-url", "/admin"),
            ("x-rewrite-url", "/admin"),
            ("x-real-ip", "6.6.6.6"),
            ("true-client-ip", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("remote_user", "root"),
            ("x-kept", "yes"),
        ]);
        set_forwarded(&mut headers, arrival(), Protocol::Http1);
        let mut left: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        left.sort();
        let expected = [
            "forwarded: for=1.2.3.4;host=\"a\";proto=http",
            "x-forwarded-for: 1.2.3.4",
            "x-forwarded-host: a",
            "x-forwarded-proto: http",
            "x-kept: yes",
        ];
        assert_eq!(left, expected);
    }

    fn arrival() -> Arrival<'static> {
        Arrival {
            client: "1.2.3.4".parse().expect("an address"),
            is_https: false,
            authority: "a",
        }
    }

    #[test]
    fn a_backend_of_http2_gets_names_with_underscores_but_none_that_could_be_ours() {
        let mut headers = map(&[
            ("tenant_id", "7"),
            ("x_custom_bin", "AAE"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded_for", "6.6.6.6"),
            ("x_original_url", "/admin"),
            ("x_real_ip", "6.6.6.6"),
            ("x_request_id", "1"),
            ("content_length", "1"),
            ("transfer_encoding", "chunked"),
        ]);
        set_forwarded(&mut headers, arrival(), Protocol::H2c);
        let mut left: Vec<_> = headers
            .keys()
            .map(HeaderName::as_str)
            .filter(|name| name.contains('_'))
            .collect();
        left.sort_unstable();
        assert_eq!(left, ["tenant_id", "x_custom_bin"]);
    }

    #[test]
    fn only_a_plain_request_id_is_kept() {
        assert!(valid_request_id(&map(&[("x-request-id", "abc-1_2.3")])).is_some());
        for fields in [
            &[("x-request-id", "a b")][..],
            &[("x-request-id", "")],
            &[("x-request-id", "a\"b")],
            &[("x-request-id", "a"), ("x-request-id", "b")],
            &[],
        ] {
            assert!(valid_request_id(&map(fields)).is_none(), "{fields:?}");
        }
        let long = "a".repeat(129);
        assert!(valid_request_id(&map(&[("x-request-id", &long)])).is_none());
    }

    #[test]
    fn sees_a_websocket_in_any_case_and_place() {
        let yes = map(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
        ]);
        assert!(is_websocket_upgrade(&yes));
        assert!(!is_websocket_upgrade(&map(&[("upgrade", "websocket")])));
        assert!(!is_websocket_upgrade(&map(&[
            ("connection", "upgrade"),
            ("upgrade", "h2c")
        ])));
    }
}
