//! What may stand in `Host` and in the authority of an absolute target.

use crate::bytes::{self, NAME};

/// Whether a text is a host with or without a port: a name of letters, digits, `-`, `.` and `_`, or an IP
/// literal. RFC 3986 (3.2.2) allows more, which no name has that a client can resolve, and which readers
/// split in different ways (`a,b`, `a%2eb`); user names (`a@b`) are no part of it (RFC 9110, 4.2.4).
pub(crate) fn is_valid(authority: &[u8]) -> bool {
    let port = if let Some(literal) = authority.strip_prefix(b"[") {
        let Some(end) = literal.iter().position(|byte| *byte == b']') else {
            return false;
        };
        let (address, port) = literal.split_at(end);
        let is_address = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
        if !address.contains(&b':') || !address.iter().all(is_address) {
            return false;
        }
        port.strip_prefix(b"]").unwrap_or_default()
    } else {
        let (name, port) = authority.split_at(bytes::run(NAME, authority));
        if name.is_empty() || name.iter().all(|byte| *byte == b'.') {
            return false;
        }
        port
    };
    match port.split_first() {
        None => true,
        Some((b':', digits)) => {
            (1..=5).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_and_perhaps_a_port() {
        for good in [
            "a",
            "a.example",
            "A-b_c.example.",
            "a:80",
            "127.0.0.1:65535",
            "[::1]",
            "[::ffff:1.2.3.4]:443",
            "xn--a",
        ] {
            assert!(is_valid(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ":80",
            "a:",
            "a:b",
            "a:123456",
            "a:80:80",
            "a b",
            "a@b",
            "u:p@b",
            "a/b",
            "a?b",
            "a#b",
            "a,b",
            "a%2eb",
            "[::1",
            "[]",
            "[1]",
            "[::1]a",
            "[::1]:",
            "[::1%25eth0]",
            "::1",
            "a\u{e9}",
            "a\\b",
            "*",
        ] {
            assert!(!is_valid(bad.as_bytes()), "{bad}");
        }
    }
}
