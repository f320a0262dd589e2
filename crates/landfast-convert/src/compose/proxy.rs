//! Services that are only a proxy: Landfast's own does what they did.

use crate::{
    compose::{
        Converter, Published, Role, image_base, nginx_conf,
        volumes::{self},
    },
    ledger::At,
};

/// They are nothing but proxies, or do what Landfast's proxy does.
const PROXIES: &[&str] = &[
    "traefik",
    "haproxy",
    "nginx-proxy",
    "envoy",
    "nginx-proxy-manager",
    "swag",
    "acme-companion",
    "letsencrypt-nginx-proxy-companion",
    "docker-letsencrypt-nginx-proxy-companion",
    "caddy-docker-proxy",
    "kamal-proxy",
    "certbot",
    "nginx-certbot",
];

/// Configuration larger than this is not read.
const CONFIGURATION_BYTES_MAX: usize = 1 << 20;

pub(super) fn is_proxy(image: &str, at: &At<'_>) -> bool {
    let base = image_base(image);
    if PROXIES.contains(&base) {
        return true;
    }
    if !matches!(base, "nginx" | "nginx-unprivileged" | "caddy" | "openresty") {
        return false;
    }
    let targets = targets(at);
    let configured = |(_, target): &(Option<String>, String)| {
        target.starts_with("/etc/nginx")
            || target.starts_with("/etc/caddy")
            || target.starts_with("/usr/local/openresty")
    };
    let serves = |(_, target): &(Option<String>, String)| {
        [
            "/usr/share/nginx/html",
            "/var/www",
            "/srv",
            "/html",
            "/app",
            "/static",
            "/media",
        ]
        .iter()
        .any(|place| target.starts_with(place))
    };
    targets.iter().any(configured) && !targets.iter().any(serves)
}

fn targets(at: &At<'_>) -> Vec<(Option<String>, String)> {
    let items = at
        .get("volumes")
        .into_iter()
        .flat_map(|at| at.items().collect::<Vec<_>>());
    let mounts = items.filter_map(|item| volumes::read(&item));
    let mounts = mounts.map(|mount| (mount.source, mount.target));
    let configs = at
        .get("configs")
        .into_iter()
        .flat_map(|at| at.items().collect::<Vec<_>>());
    let configs = configs.filter_map(|item| Some((None, item.get("target")?.text()?)));
    mounts.chain(configs).collect()
}

impl Converter<'_> {
    pub(super) fn proxy(&mut self, name: &str, at: &At<'_>) {
        let mut read = Vec::new();
        for (source, target) in targets(at) {
            let Some(source) = source.filter(|_| target.starts_with("/etc/nginx")) else {
                continue;
            };
            if let Some(text) =
                (self.read)(&source).filter(|text| text.len() <= CONFIGURATION_BYTES_MAX)
            {
                read.extend(nginx_conf::routes(&text));
            }
        }
        let mut found = Vec::new();
        for route in read {
            let known = self.roles.get(&route.upstream) == Some(&Role::Service);
            let Some(service) = self.names.get(&route.upstream).filter(|_| known).cloned() else {
                continue;
            };
            let host = route
                .host
                .unwrap_or_else(|| format!("{}.localhost", self.app));
            found.push(format!("{host}{} → {service}", route.path));
            self.published.push(Published {
                service,
                published: None,
                loopback: false,
                hosts: vec![(host, route.path)],
                line: at.place.line,
            });
        }
        let instead = match found.is_empty() {
            true => "write its rules as `[routes.*]`: host, path, service".to_owned(),
            false => format!(
                "its configuration gave {}; look through them, and write the rest as keys of routes",
                found.join(", ")
            ),
        };
        self.decide(format!(
            "`{name}` is only a proxy, which Landfast has of its own"
        ));
        self.ledger.not_carried(
            at,
            "it is a proxy, and Landfast's own stands in its place",
            instead,
        );
    }
}
