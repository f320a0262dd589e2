//! Which hosts a public certificate authority can vouch for.

/// Names nobody on the internet owns, and so no authority certifies: the special-use domain names of RFC 6761 and
/// its followers (2606, 6762, 7686, 8375, 9476), ICANN's `internal`, and what networks are commonly named after.
const RESERVED: &[&str] = &[
    "alt",
    "arpa",
    "corp",
    "example",
    "example.com",
    "example.net",
    "example.org",
    "home",
    "internal",
    "intranet",
    "invalid",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "mail",
    "onion",
    "private",
    "test",
];

/// Whether a host (lower case, no port) is one exact name below a public top-level domain: no wildcard, no IP
/// address, no single label, no reserved name. Whether its DNS leads here, only the authority finds out.
pub fn is_public_host(host: &str) -> bool {
    let Some((_, last)) = host.rsplit_once('.') else {
        return false;
    };
    // Every top-level domain begins with a letter; what ends in a number is an address (RFC 3696, 2).
    let is_name = last.starts_with(|c: char| c.is_ascii_alphabetic());
    let below = |domain: &&str| {
        let rest = host.strip_suffix(*domain);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    is_name && can_be_validated(host) && !RESERVED.iter().any(below)
}

/// Whether ACME's HTTP-01 and TLS-ALPN-01 can prove this host at all: an exact DNS name. Wildcards take DNS-01
/// (RFC 8555, 7.1.3), addresses another kind of identifier (RFC 8738).
pub(crate) fn can_be_validated(host: &str) -> bool {
    !host.contains('*') && host.parse::<std::net::IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_names_below_public_domains_are_public() {
        for host in [
            "flextime.com",
            "api.flextime.com",
            "a.b.c.example.co.uk",
            "xn--bcher-kva.de",
            "test.de",
            "myexample.com",
            "notlocal.dev",
        ] {
            assert!(is_public_host(host), "{host}");
        }
        for host in [
            "*",
            "*.flextime.com",
            "localhost",
            "api",
            "127.0.0.1",
            "10.1",
            "shop.localhost",
            "api.flextime.example",
            "www.example.com",
            "example.org",
            "printer.local",
            "db.internal",
            "nas.home.arpa",
            "a.test",
            "a.invalid",
            "router.lan",
            "hidden.onion",
        ] {
            assert!(!is_public_host(host), "{host}");
        }
    }
}
