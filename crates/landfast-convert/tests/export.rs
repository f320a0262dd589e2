//! A manifest as a Compose file: every key of the catalogue is carried or named, and what is said to be carried is there.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod common;

use std::collections::BTreeSet;

use landfast_convert::{EQUIVALENCE, ExportOptions, Expressed, equivalence, export_compose};
use landfast_spec::{AppSpec, CATALOGUE};
use toml::{Table, Value};

use crate::common::{
    environment,
    nginx::{Place, configuration, is_here},
};

/// A process, a container, a job and stores of each kind.
const BASE: &str = r#"
app = "shop"

[services.api]
artifact = "target/release/api"
command  = ["./api"]
port     = 3001
uses     = ["main"]

[services.web]
image  = "example/web:1"
port   = 3002
health = { ready = "tcp" }

[services.built]
build = { context = "built" }

[jobs.chore]
image = "example/web:1"

[stores.main]
engine = "postgres"

[stores.files]
engine            = "s3"
bucket            = "b"
access_key_secret = "FILES_ID"
secret_key_secret = "FILES_KEY"

[stores.outer]
engine   = "mysql"
external = { url_secret = "OUTER_URL" }

[routes.public]
host    = "shop.test"
service = "web"

[routes.other]
host    = "other.test"
service = "api"
"#;

fn options() -> ExportOptions {
    ExportOptions {
        project: "..".to_owned(),
        folder: "out".to_owned(),
    }
}

fn spec(text: &str) -> Result<AppSpec, String> {
    let parsed = landfast_spec::parse("landfast.toml", text, &environment());
    parsed
        .spec
        .ok_or_else(|| format!("{:#?}", parsed.diagnostics))
}

fn exported(spec: &AppSpec) -> String {
    let files = export_compose(spec, &options());
    files
        .iter()
        .map(|file| format!("== {}\n{}\n", file.path, file.text))
        .collect()
}

#[test]
fn every_key_of_the_catalogue_has_a_rule_and_every_rule_keys() {
    let mut used = BTreeSet::new();
    for key in CATALOGUE.iter().filter(|key| key.later.is_none()) {
        let has_keys = CATALOGUE.iter().any(|other| {
            other
                .path
                .strip_prefix(key.path)
                .is_some_and(|rest| rest.starts_with('.'))
        });
        if has_keys {
            continue;
        }
        let rule = rule(key.path);
        let Some(rule) = rule else {
            panic!("`{}` is neither carried nor named", key.path);
        };
        used.insert(rule);
    }
    for rule in EQUIVALENCE {
        let is_key = CATALOGUE.iter().any(|key| key.path == rule.path);
        assert!(
            used.contains(rule.path) || is_key,
            "`{}` is no key",
            rule.path
        );
    }
}

/// As the crate finds it, seen from outside: through a manifest that has the key.
fn rule(path: &str) -> Option<&'static str> {
    let exact = EQUIVALENCE.iter().find(|rule| rule.path == path);
    let below = || {
        EQUIVALENCE.iter().find(|rule| {
            let parent = rule
                .path
                .strip_suffix(".*")
                .filter(|parent| parent.contains('.'));
            parent.is_some_and(|parent| {
                path.strip_prefix(parent)
                    .is_some_and(|rest| rest.starts_with('.'))
            })
        })
    };
    if let Some(rule) = exact.or_else(below) {
        return Some(rule.path);
    }
    rule_of_services(path)
}

fn rule_of_services(path: &str) -> Option<&'static str> {
    rule(&format!("services.{}", path.strip_prefix("jobs.")?))
}

/// For each key that is said to be carried: the key alone, with the value of its documentation, changes what is written;
/// and nginx reads what is written for a route.
#[test]
fn what_is_said_to_be_carried_changes_what_is_written() {
    let base = BASE.parse::<Table>().unwrap();
    let (has_nginx, mut read) = (is_here(), 0);
    let mut tried = 0;
    let mut unreadable = Vec::new();
    for key in CATALOGUE
        .iter()
        .filter(|key| key.later.is_none() && !key.example.is_empty())
    {
        let Some(found) = rule(key.path) else {
            continue;
        };
        let rule = EQUIVALENCE.iter().find(|rule| rule.path == found).unwrap();
        if matches!(rule.expressed, Expressed::Not { .. }) {
            continue;
        }
        // Their defaults are what the documentation shows.
        let text = match key.path {
            "deploy.max_unavailable" => "5",
            "stores.*.pull" => "\"always\"",
            "stores.*.image" => "\"registry.example/postgres:15\"",
            _ => key.example,
        };
        let example = format!("v = {text}").parse::<Table>().unwrap()["v"].clone();
        let variants = places(key.path);
        let mut changed = false;
        let mut parsed = false;
        for (place, others) in variants {
            let mut table = base.clone();
            for (path, text) in &others {
                let value = format!("v = {text}").parse::<Table>().unwrap()["v"].clone();
                set(&mut table, path, value);
            }
            let without = toml::to_string(&table).unwrap();
            set(&mut table, &place, example.clone());
            let with = toml::to_string(&table).unwrap();
            let (Ok(without), Ok(with)) = (spec(&without), spec(&with)) else {
                continue;
            };
            parsed = true;
            changed |= exported(&without) != exported(&with);
            if has_nginx && key.path.starts_with("routes.") {
                let files = export_compose(&with, &options());
                let text = configuration(&files);
                let refused = Place::new("key", &with).refused(text);
                assert_eq!(refused, None, "{}\n{text}", key.path);
                read += 1;
            }
        }
        if !parsed {
            unreadable.push(key.path);
            continue;
        }
        assert!(
            changed,
            "`{}` is said to be carried, and changes nothing",
            key.path
        );
        tried += 1;
    }
    assert!(
        unreadable.is_empty(),
        "no manifest could be made with {unreadable:?}"
    );
    assert!(tried > 80, "{tried}");
    assert!(read > 35 || !has_nginx, "{read}");
}

/// Where a key may stand in the base, and what must stand beside it.
fn places(path: &str) -> Vec<(String, Vec<(String, String)>)> {
    let beside = |list: &[(&str, &str)]| {
        let list = list
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        list.collect::<Vec<_>>()
    };
    let mut places = Vec::new();
    let mut add = |name: &str, others: &[(&str, &str)]| {
        places.push((path.replacen('*', name, 1), beside(others)))
    };
    if path.starts_with("services.*.volumes.*") {
        let place = |name: &str| path.replacen('*', name, 1).replacen('*', "data", 1);
        let other = if path.ends_with(".at") {
            ("services.web.volumes.data.from", "\"managed\"")
        } else {
            ("services.web.volumes.data.at", "\"/data\"")
        };
        if path.ends_with("volumes") {
            return vec![(path.replacen('*', "web", 1), vec![])];
        }
        let before = if path.ends_with(".from") {
            beside(&[other, ("services.web.volumes.data.from", "\"/srv/x\"")])
        } else {
            beside(&[other])
        };
        return vec![(place("web"), before)];
    }
    if path.starts_with("services.*.env.*") {
        let place = path.replacen('*', "web", 1).replacen('*', "KEY", 1);
        return vec![(
            place,
            if path.ends_with("required") {
                beside(&[("services.web.env.KEY.type", "\"string\"")])
            } else {
                vec![]
            },
        )];
    }
    match path.split('.').next().unwrap_or_default() {
        "services" => {
            let uses = if path.ends_with(".after") {
                [("services.api.replicas", "1")].as_slice()
            } else {
                &[]
            };
            let unvalued: &[(&str, &str)] = if path.ends_with(".secrets") {
                &[("services.web.env.KEY.required", "true")]
            } else {
                uses
            };
            if path.ends_with(".after") {
                return vec![("services.web.after".to_owned(), vec![])];
            }
            if path.ends_with(".uses") {
                let stores = [("stores.cache.engine", "\"redis\"")];
                return vec![("services.web.uses".to_owned(), beside(&stores))];
            }
            add("web", unvalued);
            add("api", &[]);
            add("built", &[]);
        }
        "jobs" => {
            let rest = path.strip_prefix("jobs.*.").unwrap_or_default();
            if rest.starts_with("volumes.*") || rest.starts_with("env.*") {
                return places_of_jobs(path);
            }
            let others: &[(&str, &str)] = match rest {
                "secrets" => &[("jobs.chore.env.KEY.required", "true")],
                "uses" => &[("stores.cache.engine", "\"redis\"")],
                _ => &[],
            };
            add("chore", others);
            if rest == "artifact" {
                return vec![(
                    "jobs.other.artifact".to_owned(),
                    beside(&[
                        ("jobs.other.command", "[\"./x\"]"),
                        ("jobs.other.artifact", "\"other\""),
                    ]),
                )];
            }
            if rest.starts_with("build")
                || rest == "sandbox.read_only"
                || rest == "sandbox.read_write"
            {
                let content = if rest.starts_with("build") {
                    ("jobs.other.build.context", "\"x\"")
                } else {
                    ("jobs.other.artifact", "\"other\"")
                };
                return vec![(
                    path.replacen('*', "other", 1),
                    beside(&[content, ("jobs.other.command", "[\"./x\"]")]),
                )];
            }
        }
        "stores" => {
            let pool = [("stores.main.pool.min", "3")];
            let image = [("stores.main.image", "\"registry.example/postgres:15\"")];
            let others: &[(&str, &str)] = match path {
                "stores.*.pull" => &image,
                path if path.contains(".pool.") => &pool,
                _ => &[],
            };
            add("main", others);
            let users = [("services.web.uses", "[\"files\", \"outer\"]")];
            add("files", &users);
            add("outer", &users);
        }
        "routes" => {
            let auth = [(
                "routes.public.auth.users",
                "[\"a:$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234\"]",
            )];
            let others: &[(&str, &str)] = match path {
                "routes.*.tls.certificate" => &[
                    ("routes.public.tls.key", "\"/k\""),
                    ("routes.public.tls.certificate", "\"/c\""),
                ],
                "routes.*.tls.key" => &[
                    ("routes.public.tls.certificate", "\"/c\""),
                    ("routes.public.tls.key", "\"/k\""),
                ],
                "routes.*.https_only" => &[
                    ("routes.public.tls.certificate", "\"/c\""),
                    ("routes.public.tls.key", "\"/k\""),
                    ("routes.public.https_only", "false"),
                ],
                "routes.*.limits.burst" | "routes.*.limits.by" => {
                    &[("routes.public.limits.rate", "\"100/s\"")]
                }
                "routes.*.limits.total_burst" => &[("routes.public.limits.total", "\"100/s\"")],
                "routes.*.auth.realm" => &auth,
                path if path.starts_with("routes.*.cors.") => {
                    &[("routes.public.cors.origins", "[\"https://a.test\"]")]
                }
                path if path.starts_with("routes.*.security.") => &[
                    ("routes.public.security.csp", "\"x\""),
                    ("routes.public.tls.certificate", "\"/c\""),
                    ("routes.public.tls.key", "\"/k\""),
                ],
                path if path.starts_with("routes.*.files.") => {
                    &[("routes.public.files.folder", "\"x\"")]
                }
                _ => &[],
            };
            if path == "routes.*.service" {
                let places = [
                    ("routes.public.service", "\"api\""),
                    ("routes.other.service", "\"web\""),
                ];
                return vec![("routes.public.service".to_owned(), beside(&places[1..]))];
            }
            add("public", others);
        }
        _ => {
            places.push((path.to_owned(), vec![]));
            if path == "deploy.strategy" {
                places.push((
                    path.to_owned(),
                    beside(&[("deploy.strategy", "\"recreate\"")]),
                ));
            }
            if path == "deploy.max_unavailable" || path == "deploy.max_surge" {
                places.push((
                    path.to_owned(),
                    beside(&[
                        ("services.web.replicas", "20"),
                        (
                            "deploy.max_surge",
                            if path == "deploy.max_surge" { "1" } else { "0" },
                        ),
                        ("deploy.max_unavailable", "1"),
                    ]),
                ));
            }
            if path == "deploy.rollback" {
                places.push((path.to_owned(), beside(&[("deploy.rollback", "false")])));
            }
        }
    }
    // What is the default already must differ before.
    let word = path.rsplit('.').next().unwrap_or_default();
    let before = match word {
        "pull" => Some("\"never\""),
        "websocket" | "compress" | "writable" | "path_style" | "credentials"
        | "hsts_subdomains" | "overwrite" | "exclusive" => Some("false"),
        "interval" | "timeout" => Some("\"7s\""),
        "unhealthy_after" => Some("9"),
        "grace" | "connect" | "first_byte" | "idle" | "min_ready" | "healthy_deadline" => {
            Some("\"43s\"")
        }
        "realm" | "referrer" | "cache_control" | "region" => Some("\"same-origin\""),
        "frame" => Some("\"any\""),
        "path" => Some("\"/elsewhere\""),
        "body" => Some("\"1MiB\""),
        "by" => Some("\"cookie:a\""),
        "hsts" | "max_age" => Some("\"77s\""),
        "version" => Some("\"14\""),
        "memory" => Some("\"777MiB\""),
        "missing" => Some("\"not-found\""),
        "ready" => Some("\"http:/elsewhere\""),
        "timeout_" => None,
        "replicas" => Some("7"),
        "min" => Some("1"),
        "when" => Some("\"0 4 * * * UTC\""),
        "engine" => Some("\"mariadb\""),
        "methods" => Some("[\"PUT\"]"),
        _ => None,
    };
    if let Some(text) = before {
        for (place, others) in &mut places {
            others.push((place.clone(), text.to_owned()));
        }
    }
    places
}

fn places_of_jobs(path: &str) -> Vec<(String, Vec<(String, String)>)> {
    let services = places(&path.replacen("jobs.", "services.", 1));
    let rename = |text: String| text.replacen("services.web", "jobs.chore", 1);
    let services = services.into_iter().map(|(place, others)| {
        let others = others.into_iter().map(|(path, text)| (rename(path), text));
        (rename(place), others.collect())
    });
    services.collect()
}

fn set(table: &mut Table, path: &str, value: Value) {
    let (first, rest) = match path.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    };
    let Some(rest) = rest else {
        table.insert(first.to_owned(), value);
        return;
    };
    let below = table
        .entry(first)
        .or_insert_with(|| Value::Table(Table::new()));
    if !below.is_table() {
        *below = Value::Table(Table::new());
    }
    set(below.as_table_mut().unwrap(), rest, value);
}

#[test]
fn the_report_names_what_a_manifest_has() {
    let text = format!(
        "{BASE}\n[deploy]\nstrategy = \"canary\"\nsteps = [5, 100]\ngates = [\"preflight\"]\nstandby = \"1m\"\n"
    );
    let gaps = equivalence(&text);
    let find = |key: &str| {
        gaps.iter()
            .find(|gap| gap.key == key)
            .map(|gap| gap.expressed)
    };
    for key in ["deploy.steps", "deploy.gates", "deploy.standby", "app"] {
        assert!(
            matches!(find(key), Some(Expressed::Not { .. })),
            "{key}: {:?}",
            find(key)
        );
    }
    assert!(matches!(
        find("deploy.strategy"),
        Some(Expressed::Partly { .. })
    ));
    assert!(matches!(
        find("services.web.port"),
        Some(Expressed::As { .. })
    ));
    // Each key that is written is in it.
    let table = text.parse::<Table>().unwrap();
    let mut leaves = Vec::new();
    collect(&Value::Table(table), String::new(), &mut leaves);
    for leaf in leaves {
        assert!(
            gaps.iter()
                .any(|gap| leaf == gap.key || leaf.starts_with(&format!("{}.", gap.key))),
            "{leaf}"
        );
    }
}

fn collect(value: &Value, path: String, leaves: &mut Vec<String>) {
    match value {
        Value::Table(table) if !table.is_empty() => {
            for (name, value) in table {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                collect(value, path, leaves);
            }
        }
        _ => leaves.push(path),
    }
}
