//! `healthcheck` becomes `health`: what asks over HTTP or TCP is asked by Landfast itself.

use std::time::Duration;

use landfast_types::format_duration;

use crate::{
    compose::Converter,
    draft::{Table, Toml},
    ledger::At,
    units::{duration, words},
    yaml::Value,
};

/// What a test asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Test {
    Http {
        port: u16,
        path: String,
    },
    Tcp {
        port: u16,
    },
    /// Nothing.
    None,
    /// A program in the container.
    Program,
}

/// As `deploy.healthy_deadline` is without being written.
const HEALTHY_DEADLINE: Duration = Duration::from_mins(5);

impl Converter<'_> {
    pub(super) fn health(&mut self, at: &At<'_>, table: &mut Table) {
        let Some(at) = at.get("healthcheck") else {
            return;
        };
        if !at.node.is_map() {
            self.ledger.wrong(&at, "a mapping");
            return;
        }
        let own = match table.get("port") {
            Some(Toml::Number(port)) => u16::try_from(*port).ok(),
            _ => None,
        };
        let is_off = at.get("disable").and_then(|at| at.text()).as_deref() == Some("true");
        let test = at.get("test");
        let ready = match test.as_ref().map(read_test) {
            _ if is_off => Some("none".to_owned()),
            Some(Test::None) => Some("none".to_owned()),
            Some(Test::Http { port, path }) if Some(port) == own => Some(format!("http:{path}")),
            Some(Test::Tcp { port }) if Some(port) == own => Some("tcp".to_owned()),
            Some(Test::Http { .. } | Test::Tcp { .. } | Test::Program) | None => None,
        };
        if let Some(ready) = &ready {
            table.set_in("health", "ready", Toml::text(ready));
        }
        let asked = ready.is_some() || own.is_some();
        for (key, value) in at.fields() {
            match key {
                "test" => match &ready {
                    Some(ready) => self.ledger.carried_whole(&value, &format!("health.ready = \"{ready}\"")),
                    None => self.ledger.not_carried(
                        &value,
                        "Landfast asks over HTTP or TCP at the service's port, or goes by the image's own check",
                        "write the test as HEALTHCHECK in the Dockerfile and health = { ready = \"image\" }, or name a path",
                    ),
                },
                "disable" => self.ledger.carried(&value, "health.ready"),
                _ if is_off => self.ledger.replaced(&value, "nothing is asked"),
                "interval" | "timeout" => {
                    let least = if key == "interval" { 100 } else { 10 };
                    let read = value.text().and_then(|text| duration(&text));
                    match read.filter(|read| (least..=300_000).contains(&read.as_millis())) {
                        Some(read) if asked => {
                            table.set_in("health", key, Toml::text(format_duration(read)));
                            self.ledger.carried(&value, format!("health.{key}"));
                        }
                        Some(_) => self.ledger.not_carried(&value, "nothing is asked: the service has no port", "give it a `port`"),
                        None => self.ledger.not_carried(&value, "it is not within 100 ms and 5 min (a timeout from 10 ms)", "write it by hand"),
                    }
                }
                "retries" => match value.text().and_then(|text| text.parse::<u64>().ok()) {
                    Some(count) if (1..=100).contains(&count) && asked => {
                        table.set_in("health", "unhealthy_after", Toml::Number(count));
                        self.ledger.carried(&value, "health.unhealthy_after");
                    }
                    Some(_) if !asked => self.ledger.not_carried(&value, "nothing is asked: the service has no port", "give it a `port`"),
                    _ => self.ledger.wrong(&value, "a count from 1 to 100"),
                },
                "start_period" => match value.text().and_then(|text| duration(&text)) {
                    Some(period) if period <= HEALTHY_DEADLINE => {
                        self.ledger.replaced(&value, "`healthy_deadline` in [deploy]: 5 m without it");
                    }
                    Some(period) if period.as_secs() <= 86_400 => {
                        let longer = format_duration(period);
                        self.draft.deploy.set_text("healthy_deadline", longer);
                        self.ledger.carried(&value, "[deploy] healthy_deadline");
                    }
                    _ => self.ledger.wrong(&value, "a duration of at most a day"),
                },
                "start_interval" => self.ledger.replaced(&value, "a starting instance is asked at `interval`"),
                _ if key.starts_with("x-") => self.ledger.replaced(&value, "an extension says nothing by itself"),
                _ => self.ledger.not_carried(&value, "`health` has no such key", "look at docs/reference/manifest.md"),
            }
        }
    }
}

/// Reads `test`.
pub(super) fn read_test(at: &At<'_>) -> Test {
    let argv = match &at.node.value {
        Value::Text(line) => return shell(line),
        Value::List(_) => at
            .items()
            .filter_map(|item| item.text())
            .collect::<Vec<_>>(),
        Value::Null | Value::Flag(_) | Value::Integer(_) | Value::Float(_) | Value::Map(_) => {
            Vec::new()
        }
    };
    match argv.split_first() {
        Some((kind, _)) if kind == "NONE" => Test::None,
        Some((kind, rest)) if kind == "CMD-SHELL" => shell(&rest.join(" ")),
        Some((kind, rest)) if kind == "CMD" => match rest {
            [shell_name, flag, line] if is_shell(shell_name) && flag == "-c" => shell(line),
            rest => program(rest),
        },
        _ => Test::Program,
    }
}

fn is_shell(name: &str) -> bool {
    matches!(
        name.rsplit('/').next(),
        Some("sh" | "bash" | "ash" | "dash")
    )
}

fn shell(line: &str) -> Test {
    let mut line = line.trim();
    // These only name the exit code that a failed test has anyway.
    for end in ["|| exit 1", "|| exit 1;", "|| false", "||exit 1"] {
        line = line.strip_suffix(end).unwrap_or(line).trim();
    }
    for (quiet, _) in [
        ("> /dev/null 2>&1", ()),
        (">/dev/null 2>&1", ()),
        ("> /dev/null", ()),
        (">/dev/null", ()),
        ("&>/dev/null", ()),
    ] {
        line = line.strip_suffix(quiet).unwrap_or(line).trim();
    }
    if let Some(rest) = line.split("/dev/tcp/").nth(1) {
        let mut parts = rest.split(['/', ' ', '\'', '"', ')', ';']);
        if let (Some(host), Some(port)) = (parts.next(), parts.next())
            && is_here(host)
            && let Ok(port) = port.parse()
            && parts.all(str::is_empty)
        {
            return Test::Tcp { port };
        }
        return Test::Program;
    }
    if line.contains(['|', '&', ';', '<', '>', '`', '$', '(']) {
        return Test::Program;
    }
    words(line).map_or(Test::Program, |argv| program(&argv))
}

/// Flags of curl and wget that change nothing of what is asked.
fn is_plain_flag(word: &str) -> bool {
    const OTHER: &[&str] = &[
        "-X",
        "--request",
        "-d",
        "--data",
        "-H",
        "--header",
        "-u",
        "--user",
        "-k",
        "--insecure",
        "--post-data",
        "-T",
        "-F",
        "-x",
        "--proxy",
        "--cacert",
        "--cert",
        "-b",
        "--cookie",
        "--unix-socket",
        "-A",
        "--user-agent",
    ];
    !OTHER.contains(&word)
}

fn program(argv: &[String]) -> Test {
    let Some((name, rest)) = argv.split_first() else {
        return Test::Program;
    };
    match name.rsplit('/').next().unwrap_or_default() {
        "curl" | "wget" => {
            let urls = rest.iter().filter(|word| {
                word.contains("://")
                    || word.starts_with("localhost")
                    || word.starts_with("127.0.0.1")
            });
            let urls = urls.collect::<Vec<_>>();
            match urls[..] {
                [url] if rest.iter().all(|word| is_plain_flag(word)) => http(url),
                _ => Test::Program,
            }
        }
        "nc" | "netcat" => {
            let plain = rest
                .iter()
                .filter(|word| !word.starts_with('-'))
                .collect::<Vec<_>>();
            match plain[..] {
                [host, port]
                    if is_here(host)
                        && rest
                            .iter()
                            .any(|word| word.starts_with('-') && word.contains('z')) =>
                {
                    port.parse()
                        .map_or(Test::Program, |port| Test::Tcp { port })
                }
                _ => Test::Program,
            }
        }
        _ => Test::Program,
    }
}

fn is_here(host: &str) -> bool {
    matches!(
        host,
        "localhost" | "127.0.0.1" | "0.0.0.0" | "[::1]" | "::1" | ""
    )
}

fn http(url: &str) -> Test {
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return Test::Program,
        None => url,
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse::<u16>().ok()),
        _ => (authority, Some(80)),
    };
    let path = match path.split('#').next() {
        None | Some("") => "/".to_owned(),
        Some(path) if path.starts_with('/') => path.to_owned(),
        Some(query) => format!("/{query}"),
    };
    let askable = !path.starts_with("//") && path.chars().all(|c| c.is_ascii_graphic());
    match port {
        Some(port) if is_here(host) && askable => Test::Http { port, path },
        _ => Test::Program,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_asked() {
        let http = |port, path: &str| Test::Http {
            port,
            path: path.to_owned(),
        };
        for (line, wanted) in [
            (
                "curl -f http://localhost:3000/health || exit 1",
                http(3000, "/health"),
            ),
            (
                "curl --fail -s -o /dev/null http://127.0.0.1/",
                http(80, "/"),
            ),
            (
                "wget --no-verbose --tries=1 --spider http://localhost:8080 || exit 1",
                http(8080, "/"),
            ),
            (
                "wget -q -O - localhost:9000/x?y=1 > /dev/null",
                http(9000, "/x?y=1"),
            ),
            ("nc -z localhost 6379", Test::Tcp { port: 6379 }),
            (
                "bash -c 'exec 3<>/dev/tcp/127.0.0.1/80'",
                Test::Tcp { port: 80 },
            ),
            ("curl -f https://localhost/", Test::Program),
            ("curl -X POST http://localhost/", Test::Program),
            ("curl -s http://localhost/ | grep ok", Test::Program),
            ("curl -f http://other:80/", Test::Program),
            ("pg_isready -U postgres", Test::Program),
            ("curl -f http://localhost:${PORT}/", Test::Program),
            ("", Test::Program),
            ("curl 'x", Test::Program),
        ] {
            assert_eq!(shell(line), wanted, "{line}");
        }
    }
}
