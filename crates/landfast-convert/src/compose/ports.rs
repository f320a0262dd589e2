//! Ports of a service, short and long.

use crate::ledger::At;

/// A published range of ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    /// In the container.
    pub(super) target: u16,
    /// How many follow one another.
    pub(super) count: u16,
    pub(super) published: Option<u16>,
    pub(super) host_ip: Option<String>,
    pub(super) protocol: String,
    /// `http` where the file says so.
    pub(super) app_protocol: Option<String>,
}

/// `80`, `8080:80`, `127.0.0.1:8080:80/tcp`, `3000-3005:3000-3005`, `[::1]:80:80`.
pub(super) fn short(text: &str) -> Option<Port> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, protocol.to_lowercase()),
        None => (text, "tcp".to_owned()),
    };
    let (host_ip, ports) = match ports.strip_prefix('[') {
        Some(rest) => {
            let (ip, rest) = rest.split_once("]:")?;
            (Some(ip.to_owned()), rest)
        }
        None => match ports.matches(':').count() {
            2 => {
                let (ip, rest) = ports.split_once(':')?;
                (Some(ip.to_owned()), rest)
            }
            _ => (None, ports),
        },
    };
    let (published, target) = match ports.split_once(':') {
        Some((published, target)) => (Some(published), target),
        None => (None, ports),
    };
    let (target, count) = range(target)?;
    let published = match published {
        None | Some("") => None,
        Some(text) => Some(range(text)?.0),
    };
    Some(Port {
        target,
        count,
        published,
        host_ip,
        protocol,
        app_protocol: None,
    })
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first = first.trim().parse::<u16>().ok().filter(|port| *port > 0)?;
    let last = last.trim().parse::<u16>().ok()?;
    let count = last.checked_sub(first)?.checked_add(1)?;
    Some((first, count))
}

/// A port of either form.
pub(super) fn read(at: &At<'_>) -> Option<Port> {
    if !at.node.is_map() {
        return short(&at.text()?);
    }
    let text = |key: &str| at.get(key).and_then(|at| at.text());
    let (target, count) = range(&text("target")?)?;
    Some(Port {
        target,
        count,
        published: text("published").and_then(|text| Some(range(&text)?.0)),
        host_ip: text("host_ip"),
        protocol: text("protocol").unwrap_or_else(|| "tcp".to_owned()),
        app_protocol: text("app_protocol"),
    })
}

/// Ports of well-known servers that do not speak HTTP, and what speaks there.
pub(super) fn not_http(port: u16) -> Option<&'static str> {
    Some(match port {
        21 => "FTP",
        22 | 2222 => "SSH",
        25 | 465 | 587 | 1025 => "SMTP",
        53 => "DNS",
        110 | 995 => "POP3",
        143 | 993 => "IMAP",
        389 | 636 => "LDAP",
        1433 => "SQL Server",
        1521 => "Oracle",
        1883 | 8883 => "MQTT",
        2181 => "ZooKeeper",
        3306 => "MySQL",
        4222 => "NATS",
        5432 => "PostgreSQL",
        5671 | 5672 => "AMQP",
        6379 => "Redis",
        9042 => "Cassandra",
        9092 | 9093 => "Kafka",
        9300 => "Elasticsearch's transport",
        9229 | 5005 | 5678 => "a debugger",
        11211 => "Memcached",
        27017 => "MongoDB",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Target, count, published, address, protocol.
    type Row<'a> = (u16, u16, Option<u16>, Option<&'a str>, &'a str);

    #[test]
    fn forms_of_ports() {
        let check = |text: &str, wanted: Option<Row<'_>>| {
            let wanted = wanted.map(|(target, count, published, ip, protocol)| Port {
                target,
                count,
                published,
                host_ip: ip.map(str::to_owned),
                protocol: protocol.to_owned(),
                app_protocol: None,
            });
            assert_eq!(short(text), wanted, "{text}");
        };
        check("3000", Some((3000, 1, None, None, "tcp")));
        check("3000-3005", Some((3000, 6, None, None, "tcp")));
        check("8000:80", Some((80, 1, Some(8000), None, "tcp")));
        check(
            "9090-9091:8080-8081",
            Some((8080, 2, Some(9090), None, "tcp")),
        );
        check(
            "127.0.0.1:8001:8001",
            Some((8001, 1, Some(8001), Some("127.0.0.1"), "tcp")),
        );
        check(
            "127.0.0.1::80",
            Some((80, 1, None, Some("127.0.0.1"), "tcp")),
        );
        check(
            "[::1]:80:81/udp",
            Some((81, 1, Some(80), Some("::1"), "udp")),
        );
        check("6060:6060/UDP", Some((6060, 1, Some(6060), None, "udp")));
        for bad in ["", "x", "1:2:3:4", "0", "70000", "9-8", "a:b", ":"] {
            check(bad, None);
        }
    }
}
