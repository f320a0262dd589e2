//! Which hosts and paths an nginx configuration leads where. It reads `upstream`, `server_name`, `location` and `proxy_pass`, and
//! passes over everything else.

use std::collections::BTreeMap;

use crate::compose::publish::{is_host, is_route_path};

/// Deeper blocks are passed over.
const DEPTH_MAX: usize = 32;

/// A place that leads to a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfiguredRoute {
    /// `None`: any.
    pub(super) host: Option<String>,
    pub(super) path: String,
    /// The host of `proxy_pass`.
    pub(super) upstream: String,
}

pub(super) fn routes(text: &str) -> Vec<ConfiguredRoute> {
    let mut tokens = tokens(text).into_iter();
    let directives = block(&mut tokens, 0);
    let mut upstreams = BTreeMap::new();
    let mut routes = Vec::new();
    walk(&directives, &mut upstreams, &mut Vec::new(), &mut routes);
    for route in &mut routes {
        if let Some(server) = upstreams.get(&route.upstream) {
            route.upstream = String::clone(server);
        }
    }
    routes
}

#[derive(Debug)]
struct Directive {
    words: Vec<String>,
    below: Vec<Self>,
}

fn walk(
    directives: &[Directive],
    upstreams: &mut BTreeMap<String, String>,
    hosts: &mut Vec<String>,
    routes: &mut Vec<ConfiguredRoute>,
) {
    for directive in directives {
        let words = directive
            .words
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>();
        match words[..] {
            ["upstream", name] => {
                let servers = directive
                    .below
                    .iter()
                    .filter(|one| one.words.first().is_some_and(|word| word == "server"));
                let first = servers
                    .filter_map(|one| one.words.get(1))
                    .map(|server| host_of(server))
                    .next();
                upstreams.extend(first.map(|server| (name.to_owned(), server)));
            }
            ["server"] => {
                let names = directive
                    .below
                    .iter()
                    .filter(|one| one.words.first().is_some_and(|word| word == "server_name"));
                let names = names.flat_map(|one| one.words.iter().skip(1).cloned());
                let mut hosts = names
                    .filter(|name| is_host(name) && name != "localhost" && name.contains('.'))
                    .collect();
                walk(&directive.below, upstreams, &mut hosts, routes);
            }
            ["location", .., path] if path.starts_with('/') => {
                let pass = directive
                    .below
                    .iter()
                    .find(|one| one.words.first().is_some_and(|word| word == "proxy_pass"));
                if let Some(url) = pass.and_then(|one| one.words.get(1)) {
                    let is_regular = words.len() > 2 && words[1].starts_with('~');
                    let upstream = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
                    let upstream = host_of(upstream.split('/').next().unwrap_or_default());
                    let path = path.trim_end_matches('/');
                    let path = if path.is_empty() { "/" } else { path };
                    if !is_regular && (path == "/" || is_route_path(path)) {
                        let host = |host: Option<&String>| ConfiguredRoute {
                            host: host.cloned(),
                            path: path.to_owned(),
                            upstream: upstream.clone(),
                        };
                        match &hosts[..] {
                            [] => routes.push(host(None)),
                            all => routes.extend(all.iter().map(|one| host(Some(one)))),
                        }
                    }
                }
                walk(&directive.below, upstreams, hosts, routes);
            }
            _ => walk(&directive.below, upstreams, hosts, routes),
        }
    }
}

fn host_of(server: &str) -> String {
    server.split(':').next().unwrap_or(server).to_owned()
}

fn block(tokens: &mut std::vec::IntoIter<String>, depth: usize) -> Vec<Directive> {
    let mut directives = Vec::new();
    let mut words = Vec::new();
    while let Some(token) = tokens.next() {
        match token.as_str() {
            ";" => {
                let words = std::mem::take(&mut words);
                directives.push(Directive {
                    words,
                    below: Vec::new(),
                });
            }
            "{" if depth < DEPTH_MAX => {
                let words = std::mem::take(&mut words);
                let below = block(tokens, depth + 1);
                directives.push(Directive { words, below });
            }
            "}" => break,
            "{" => {}
            _ => words.push(token),
        }
    }
    directives
}

fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '#' if word.is_empty() => {
                for c in chars.by_ref() {
                    if c == '\n' {
                        break;
                    }
                }
            }
            '"' | '\'' => {
                for inner in chars.by_ref() {
                    if inner == c {
                        break;
                    }
                    word.push(inner);
                }
            }
            ';' | '{' | '}' => {
                if !word.is_empty() {
                    tokens.push(std::mem::take(&mut word));
                }
                tokens.push(c.to_string());
            }
            c if c.is_whitespace() => {
                if !word.is_empty() {
                    tokens.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_where_places_lead() {
        let routes = routes(
            "http { # c\n upstream api { server backend:8000; server other:1; }\n server { listen 80; server_name a.example www.a.example;\n location / { proxy_pass http://web:3000; }\n location ^~ /api/ { proxy_pass http://api/; }\n location ~ \\.php$ { proxy_pass http://php; } } }",
        );
        let text = routes.iter().map(|route| {
            format!(
                "{}{}>{}",
                route.host.as_deref().unwrap_or("*"),
                route.path,
                route.upstream
            )
        });
        assert_eq!(
            text.collect::<Vec<_>>(),
            [
                "a.example/>web",
                "www.a.example/>web",
                "a.example/api>backend",
                "www.a.example/api>backend"
            ]
        );
    }

    #[test]
    fn never_panics_on_what_is_no_configuration() {
        for text in [
            "{{{{",
            "}}}",
            "server {",
            "\"",
            "location / { proxy_pass",
            &"{".repeat(100_000),
        ] {
            routes(text);
        }
    }
}
