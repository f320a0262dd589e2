//! Ports that are published become routes.

use std::collections::BTreeSet;

use crate::{
    compose::{
        Converter, Published,
        env::Environment,
        health::{Test, read_test},
        pairs,
        ports::{self, Port, not_http},
    },
    draft::{Table, Toml},
    ledger::At,
};

impl Converter<'_> {
    /// The port of a service, and what is published of it.
    pub(super) fn port(
        &mut self,
        own: &str,
        at: &At<'_>,
        environment: &Environment,
    ) -> Option<u16> {
        let mut listed = Vec::new();
        for item in at.get("ports").iter().flat_map(At::items) {
            match ports::read(&item) {
                Some(port) => listed.push((port, item)),
                None => self.ledger.wrong(&item, "a port such as `8080:80`"),
            }
        }
        let labels = Labels::read(at);
        let expose = at.get("expose");
        let exposed = expose.iter().flat_map(At::items).filter_map(|item| {
            let text = item.text()?;
            let port = text.split(['/', '-']).next()?.parse::<u16>().ok()?;
            Some((port, item))
        });
        let exposed = exposed.collect::<Vec<_>>();
        let asked = at.find("healthcheck.test").map(|at| read_test(&at));
        let asked = asked.and_then(|test| match test {
            Test::Http { port, .. } | Test::Tcp { port } => Some(port),
            Test::None | Test::Program => None,
        });
        let http = listed.iter().find(|(port, _)| is_http(port));
        let tcp = listed.iter().find(|(port, _)| port.protocol == "tcp");
        let port = environment
            .port
            .or(labels.port)
            .or(http.map(|(port, _)| port.target))
            .or(asked)
            .or(exposed.first().map(|(port, _)| *port))
            .or(tcp.map(|(port, _)| port.target));
        let routed = port.filter(|port| not_http(*port).is_none());
        let mut hosts = labels.hosts;
        hosts.extend(
            environment
                .hosts
                .iter()
                .map(|host| (host.clone(), "/".to_owned())),
        );
        for (text, at) in &listed {
            self.listed(own, text, at, routed, &hosts);
        }
        if !hosts.is_empty()
            && !self.published.iter().any(|one| one.service == own)
            && port.is_some()
        {
            self.published.push(Published {
                service: own.to_owned(),
                published: None,
                loopback: false,
                hosts,
                line: at.place.line,
            });
        }
        for (one, at) in exposed {
            if Some(one) == port {
                self.ledger.carried(&at, "port");
            } else {
                self.ledger.replaced(
                    &at,
                    format!("other services reach `{own}` at every port it listens on"),
                );
            }
        }
        self.label_fates(at, &labels.used);
        port
    }

    fn listed(
        &mut self,
        own: &str,
        port: &Port,
        at: &At<'_>,
        routed: Option<u16>,
        hosts: &[(String, String)],
    ) {
        let is_map = at.node.is_map();
        if Some(port.target) == routed && port.count == 1 && port.protocol == "tcp" {
            let host_ip = port.host_ip.as_deref();
            let loopback = host_ip
                .is_some_and(|ip| ip.starts_with("127.") || ip == "::1" || ip == "localhost");
            self.published.push(Published {
                service: own.to_owned(),
                published: port.published,
                loopback,
                hosts: hosts.to_vec(),
                line: at.place.line,
            });
            let to = "`port` and a route";
            if is_map {
                for (key, value) in at.fields() {
                    match key {
                        "target" | "published" | "protocol" | "host_ip" | "app_protocol" => {
                            self.ledger.carried(&value, to)
                        }
                        "mode" | "name" => self.ledger.replaced(&value, "a route"),
                        _ => self.ledger.not_carried(
                            &value,
                            "a route has no such key",
                            "nothing is to be done",
                        ),
                    }
                }
            } else {
                self.ledger.carried(at, to);
            }
            return;
        }
        let (reason, instead) = if port.protocol != "tcp" {
            (
                format!("the proxy does not carry {}", port.protocol.to_uppercase()),
                "publish it with another program on the host".to_owned(),
            )
        } else if let Some(what) = not_http(port.target) {
            let reason = format!(
                "port {} speaks {what}, and the proxy carries HTTP",
                port.target
            );
            (
                reason,
                format!(
                    "other services reach it at `{own}:{}`; from outside use a tunnel",
                    port.target
                ),
            )
        } else if port.count > 1 {
            (
                format!("it publishes {} ports, and a service has one", port.count),
                format!(
                    "other services reach all of them at `{own}`; make several services of it to publish more"
                ),
            )
        } else {
            let reason = "a service has one port that the proxy leads to".to_owned();
            (
                reason,
                format!(
                    "other services reach it at `{own}:{}`; to publish it, make another service of the same image with this port",
                    port.target
                ),
            )
        };
        self.ledger.not_carried(at, reason, instead);
    }

    /// One route for each service that is reached from outside, and each of its hosts.
    pub(super) fn routes(&mut self) {
        let published = std::mem::take(&mut self.published);
        // The one that had the ports of the web is what a visitor meant.
        let rank = |one: &Published| match (one.published, one.service.as_str()) {
            (Some(80 | 443), _) => 0,
            (_, "web" | "www" | "app" | "frontend" | "proxy" | "nginx" | "gateway") => 1,
            (Some(8080 | 8000 | 3000 | 5000), _) => 2,
            _ => 3,
        };
        let services = published
            .iter()
            .map(|one| one.service.clone())
            .collect::<BTreeSet<_>>();
        let main = published.iter().filter(|one| one.hosts.is_empty());
        let main = main
            .min_by_key(|one| (rank(one), one.line))
            .map(|one| one.service.clone());
        let mut taken = BTreeSet::new();
        let mut done = BTreeSet::new();
        for one in &published {
            if !done.insert(one.service.clone()) {
                continue;
            }
            let table = self.draft.services.get(&one.service);
            if !table.is_some_and(|table| table.has("port")) {
                self.decide(format!(
                    "`{}` has no port, so no route leads to it",
                    one.service
                ));
                continue;
            }
            let mut hosts = one.hosts.clone();
            if hosts.is_empty() {
                let host = match Some(&one.service) == main.as_ref() {
                    true => format!("{}.localhost", self.app),
                    false => format!("{}.{}.localhost", one.service, self.app),
                };
                hosts.push((host, "/".to_owned()));
            }
            for (index, (host, path)) in hosts.into_iter().enumerate() {
                if !taken.insert((host.clone(), path.clone())) {
                    self.decide(format!(
                        "`{host}{path}` leads to another service already, and not to `{}` too",
                        one.service
                    ));
                    continue;
                }
                let mut table = Table::default();
                match one.published {
                    Some(port) => table.comment(format!("Was published at port {port} (line {}). The proxy listens at 80 and 443, and chooses by host.", one.line)),
                    None => table.comment(format!("As line {} says.", one.line)),
                }
                let line = table.set_text("host", host);
                if one.hosts.is_empty() {
                    line.comment("the file names no host: write yours");
                }
                if path != "/" {
                    table.set_text("path", path);
                }
                table.set_text("service", &one.service);
                if one.loopback {
                    table
                        .set("allow", Toml::texts(["127.0.0.0/8", "::1/128"]))
                        .comment("it was published for this host alone");
                }
                let name = if index == 0 {
                    one.service.clone()
                } else {
                    format!("{}-{}", one.service, index + 1)
                };
                let name = if services.len() == 1 && index == 0 {
                    "public".to_owned()
                } else {
                    name
                };
                self.draft.routes.insert(name, table);
            }
        }
    }

    /// Labels: those of proxies say hosts, the others are for tools that read Docker.
    fn label_fates(&mut self, at: &At<'_>, used: &BTreeSet<String>) {
        for at in [at.get("labels"), at.find("deploy.labels")]
            .iter()
            .flatten()
        {
            for (name, _, at) in pairs(at) {
                if used.contains(&name) {
                    self.ledger.carried(&at, "a route");
                } else if name.starts_with("traefik.") || name.starts_with("caddy") {
                    self.ledger.not_carried(
                        &at,
                        "the proxy that reads it is not there",
                        "look at the keys of a route: limits, headers, auth, tls",
                    );
                } else {
                    self.ledger.not_carried(
                        &at,
                        "instances have no labels of an app",
                        "nothing is to be done, unless a tool reads it from Docker",
                    );
                }
            }
        }
    }
}

fn is_http(port: &Port) -> bool {
    let said = port
        .app_protocol
        .as_deref()
        .is_none_or(|word| word.starts_with("http"));
    port.protocol == "tcp" && said && not_http(port.target).is_none()
}

/// What labels say to Traefik and to Caddy.
#[derive(Default)]
struct Labels {
    hosts: Vec<(String, String)>,
    port: Option<u16>,
    used: BTreeSet<String>,
}

impl Labels {
    fn read(at: &At<'_>) -> Self {
        let mut labels = Self::default();
        for at in [at.get("labels"), at.find("deploy.labels")]
            .iter()
            .flatten()
        {
            for (name, value, _) in pairs(at) {
                let value = value.unwrap_or_default();
                if name.starts_with("traefik.http.routers.") && name.ends_with(".rule") {
                    let hosts = traefik_hosts(&value);
                    if !hosts.is_empty() {
                        labels.hosts.extend(hosts);
                        labels.used.insert(name);
                    }
                } else if name.starts_with("traefik.http.services.") && name.ends_with(".port") {
                    labels.port = value.parse().ok();
                    labels.used.insert(name);
                } else if name == "traefik.enable" && value == "true" {
                    labels.used.insert(name);
                } else if name == "caddy" && is_host(&value) {
                    labels.hosts.push((value, "/".to_owned()));
                    labels.used.insert(name);
                }
            }
        }
        labels.hosts.dedup();
        labels
    }
}

/// ``Host(`a`, `b`) && PathPrefix(`/x`)``; rules with more in them say nothing.
fn traefik_hosts(rule: &str) -> Vec<(String, String)> {
    let arguments = |name: &str| {
        let start = rule.find(&format!("{name}("))? + name.len() + 1;
        let end = rule[start..].find(')')? + start;
        let words = rule[start..end]
            .split(',')
            .map(|word| word.trim().trim_matches(['`', '"', '\'']).to_owned());
        Some(words.collect::<Vec<_>>())
    };
    let rest = rule.replace("&&", "").replace("||", "");
    let plain = rest.matches('(').count()
        == arguments("Host").map_or(0, |_| rule.matches("Host(").count())
            + usize::from(arguments("PathPrefix").is_some());
    let Some(hosts) = arguments("Host").filter(|_| plain && !rule.contains('!')) else {
        return Vec::new();
    };
    let mut hosts = hosts;
    if let Some(second) = rule.split("||").nth(1) {
        hosts.extend(traefik_hosts(second).into_iter().map(|(host, _)| host));
    }
    let path = arguments("PathPrefix").and_then(|paths| paths.into_iter().next());
    let path = path
        .map(|path| path.trim_end_matches('/').to_owned())
        .filter(|path| is_route_path(path));
    let path = path.unwrap_or_else(|| "/".to_owned());
    let hosts = hosts
        .into_iter()
        .map(|host| host.to_lowercase())
        .filter(|host| is_host(host));
    hosts.map(|host| (host, path.clone())).collect()
}

/// What the manifest takes for a path prefix of a route.
pub(crate) fn is_route_path(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
    path.starts_with('/')
        && path.len() > 1
        && path.len() < 1_000
        && !path.contains("//")
        && path.chars().all(plain)
        && !path.split('/').any(|part| part == "." || part == "..")
}

/// What the manifest takes for a path that is asked.
pub(crate) fn is_request_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.starts_with("//")
        && path.chars().all(|c| c.is_ascii_graphic() && c != '#')
}

/// What the manifest takes for a host.
pub(crate) fn is_host(host: &str) -> bool {
    let domain = host.strip_prefix("*.").unwrap_or(host);
    let label = |label: &str| {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    domain.len() <= 253 && domain.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_traefik() {
        let hosts = |rule: &str| {
            traefik_hosts(rule)
                .into_iter()
                .map(|(host, path)| format!("{host}{path}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(hosts("Host(`a.example`)"), ["a.example/"]);
        assert_eq!(
            hosts("Host(`a.example`) && PathPrefix(`/api/`)"),
            ["a.example/api"]
        );
        assert_eq!(
            hosts("Host(`a.example`) || Host(`b.example`)"),
            ["a.example/", "b.example/"]
        );
        assert!(hosts("HostRegexp(`{x:.+}`)").is_empty());
        assert!(hosts("Host(`a.example`) && !PathPrefix(`/x`)").is_empty());
        assert!(hosts("Host(`a.example`) && Headers(`a`, `b`)").is_empty());
        assert!(hosts("Host(").is_empty());
    }
}
