//! Who asks: the peer of the connection, or, where that peer is a proxy we were told to trust, the client it
//! names. Nobody is trusted unless the server's operator says so.
//!
//! The list of addresses is read from its right end: each proxy appended the peer it saw, so the right-most
//! address that is not itself a trusted proxy is the last one somebody trustworthy saw. Everything to the left
//! of it may have been written by the client.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header::FORWARDED};
use landfast_types::Network;
use serde::{Deserialize, Serialize};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// More proxies than this do not stand in a row.
const HOPS_MAX: usize = 32;

/// The field the trusted proxies set. Only one is read: a proxy that sets one passes the other on as the client
/// wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustedField {
    /// `X-Forwarded-For`, with `X-Forwarded-Proto`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Whose word about a client is taken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Trust {
    pub proxies: Vec<Network>,
    pub field: TrustedField,
}

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub client: IpAddr,
    /// Whether the client came by HTTPS, to us or to a proxy we trust.
    pub is_https: bool,
}

impl Trust {
    /// Whether an address is one of the trusted proxies'.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|network| network.contains(address))
    }

    /// The origin of a request that came from `peer`.
    pub fn origin(&self, peer: IpAddr, is_https: bool, headers: &HeaderMap) -> Origin {
        let mut origin = Origin {
            client: peer.to_canonical(),
            is_https,
        };
        if self.proxies.is_empty() || !self.covers(peer) {
            return origin;
        }
        match self.field {
            TrustedField::XForwardedFor => {
                let proto = list(headers, &X_FORWARDED_PROTO).pop();
                let proto = proto.map(|proto| proto.eq_ignore_ascii_case("https"));
                origin.is_https = proto.unwrap_or(is_https);
                for hop in list(headers, &X_FORWARDED_FOR).iter().rev().take(HOPS_MAX) {
                    let Some(address) = self.next(origin.client, hop) else {
                        break;
                    };
                    origin.client = address;
                }
            }
            TrustedField::Forwarded => {
                for hop in list(headers, &FORWARDED).iter().rev().take(HOPS_MAX) {
                    let (mut node, mut proto) = (None, None);
                    for pair in split(hop, b';') {
                        let Some((name, value)) = pair.split_once('=') else {
                            continue;
                        };
                        if name.trim().eq_ignore_ascii_case("for") {
                            node = Some(unquote(value));
                        } else if name.trim().eq_ignore_ascii_case("proto") {
                            proto = Some(unquote(value).eq_ignore_ascii_case("https"));
                        }
                    }
                    let address = node.and_then(|node| self.next(origin.client, node));
                    let Some(address) = address else { break };
                    origin = Origin {
                        client: address,
                        is_https: proto.unwrap_or(origin.is_https),
                    };
                }
            }
        }
        origin
    }

    /// Who a trusted proxy says it spoke with; nothing where the one who says so is no trusted proxy.
    fn next(&self, speaker: IpAddr, node: &str) -> Option<IpAddr> {
        self.covers(speaker).then(|| address(node)).flatten()
    }
}

/// The members of a list field, over all its lines.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let lines = headers.get_all(name).iter();
    lines
        .flat_map(|line| split(line.to_str().unwrap_or_default(), b','))
        .collect()
}

/// Splits where a separator stands outside quotes, and trims the parts.
fn split(text: &str, separator: u8) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (index, byte) in text.bytes().enumerate() {
        if std::mem::take(&mut is_escaped) {
            continue;
        }
        match byte {
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            byte if byte == separator && !is_quoted => {
                parts.push(text[start..index].trim());
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

fn unquote(text: &str) -> &str {
    let text = text.trim();
    let inner = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    inner.unwrap_or(text)
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = bare
        .unwrap_or(text)
        .parse()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn origin(field: TrustedField, peer: &str, lines: &[(&HeaderName, &str)]) -> String {
        let proxies = ["10.0.0.0/8", "2001:db8:1::/48"];
        let trust = Trust {
            proxies: proxies.map(|one| one.parse().expect("a network")).into(),
            field,
        };
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        let peer = peer.parse().expect("an address");
        let Origin { client, is_https } = trust.origin(peer, false, &headers);
        format!("{client} {}", if is_https { "https" } else { "http" })
    }

    #[test]
    fn the_right_most_address_that_is_not_trusted_is_the_client() {
        let list = &X_FORWARDED_FOR;
        for (peer, lines, expected) in [
            // Nobody vouches for what a stranger says.
            ("192.0.2.9", &["203.0.113.1"][..], "192.0.2.9 http"),
            ("10.0.0.1", &["203.0.113.1"], "203.0.113.1 http"),
            ("::ffff:10.0.0.1", &["203.0.113.1"], "203.0.113.1 http"),
            // What the client wrote itself stands to the left.
            (
                "10.0.0.1",
                &["6.6.6.6, 203.0.113.1, 10.9.9.9"],
                "203.0.113.1 http",
            ),
            ("10.0.0.1", &["6.6.6.6", "203.0.113.1"], "203.0.113.1 http"),
            ("10.0.0.1", &["10.1.1.1, 203.0.113.1"], "203.0.113.1 http"),
            ("10.0.0.1", &["10.3.3.3, 10.2.2.2"], "10.3.3.3 http"),
            ("10.0.0.1", &["203.0.113.1:4711"], "203.0.113.1 http"),
            ("10.0.0.1", &["[2001:db8:2::7]:80"], "2001:db8:2::7 http"),
            ("10.0.0.1", &["2001:db8:2::7"], "2001:db8:2::7 http"),
            // What cannot be read ends the search at whom we know.
            ("10.0.0.1", &["6.6.6.6, unknown, 10.2.2.2"], "10.2.2.2 http"),
            ("10.0.0.1", &[""], "10.0.0.1 http"),
            ("10.0.0.1", &[], "10.0.0.1 http"),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| (list, *line)).collect();
            let found = origin(TrustedField::XForwardedFor, peer, &lines);
            assert_eq!(found, expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn only_the_field_that_was_chosen_is_read() {
        let lines = [
            (&X_FORWARDED_FOR, "203.0.113.1"),
            (&X_FORWARDED_PROTO, "http, https"),
            (
                &FORWARDED,
                "for=6.6.6.6;proto=http, for=\"[2001:db8:2::7]:80\"; Proto=\"https\"",
            ),
        ];
        let found = origin(TrustedField::XForwardedFor, "10.0.0.1", &lines);
        assert_eq!(found, "203.0.113.1 https");
        let found = origin(TrustedField::Forwarded, "10.0.0.1", &lines);
        assert_eq!(found, "2001:db8:2::7 https");
        let found = origin(TrustedField::Forwarded, "192.0.2.9", &lines);
        assert_eq!(found, "192.0.2.9 http");
    }

    #[test]
    fn quotes_hide_separators_and_an_obfuscated_node_is_nobody() {
        for (value, expected) in [
            (
                "for=203.0.113.1;by=\"a,b;c\", for=10.2.2.2",
                "203.0.113.1 http",
            ),
            ("for=_hidden, for=10.2.2.2", "10.2.2.2 http"),
            ("by=10.2.2.2", "10.0.0.1 http"),
            ("for=\"a\\\",for=203.0.113.1", "10.0.0.1 http"),
        ] {
            let found = origin(TrustedField::Forwarded, "10.0.0.1", &[(&FORWARDED, value)]);
            assert_eq!(found, expected, "{value}");
        }
    }
}
