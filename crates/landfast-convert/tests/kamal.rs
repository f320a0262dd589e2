//! Kamal's files: each imports into a manifest that parses, and every key is carried or named.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod common;

use landfast_convert::{Fate, Import, Source, import_kamal};
use proptest::prelude::*;

use crate::common::environment;

const FILES: &[&str] = &[
    "service: hey\nimage: 37s/hey\n",
    r#"
service: my-app
image: user/my-app
servers:
  web:
    hosts: [192.168.0.1, 192.168.0.2]
    labels: {a: b}
    options:
      memory: 512m
      cpus: 0.5
      add-host: x:1
  workers:
    hosts: [192.168.0.3]
    cmd: bin/jobs --queue 'a b'
  cron:
    - 192.168.0.3
proxy:
  ssl: true
  hosts: [app.example.com, WWW.example.com]
  app_port: 3000
  path_prefix: /app
  response_timeout: 30
  healthcheck: {path: /health, interval: 3, timeout: 2s, port: 9}
  buffering: {requests: true}
registry:
  server: registry.example.com
  username: me
  password: [KAMAL_REGISTRY_PASSWORD]
builder:
  arch: amd64
  context: .
  dockerfile: Dockerfile.prod
  args: {RUBY_VERSION: 3.3, NPM_TOKEN: x}
  secrets: [GITHUB_TOKEN]
  cache: {type: gha}
env:
  clear:
    RAILS_ENV: production
    DB_HOST: my-app-db
    REDIS_URL: redis://my-app-redis:6379/0
    PORT: 3000
    odd.name: x
    QUEUE_URL: amqp://a:b@queue/x
  secret: [RAILS_MASTER_KEY, "DB_PASSWORD:MAIN_DB_PASSWORD", "odd.secret"]
  tags: {a: {X: y}}
aliases: {console: app exec -i --reuse "bin/rails console"}
volumes: ["storage:/rails/storage", "/srv/x:/x", "./here:/y", nonsense]
asset_path: /rails/public/assets
error_pages_path: public
boot: {limit: 25%, wait: 2}
drain_timeout: 45
deploy_timeout: 60
readiness_delay: 5
retain_containers: 3
ssh: {user: app, port: 2222}
logging: {driver: json-file}
x-own: {a: 1}
accessories:
  db:
    image: postgres:16
    host: 192.168.0.2
    port: "127.0.0.1:5432:5432"
    env: {clear: {POSTGRES_USER: app}, secret: [POSTGRES_PASSWORD]}
    directories: [data:/var/lib/postgresql/data]
    files: [config/init.sql:/docker-entrypoint-initdb.d/setup.sql]
  redis:
    image: redis:7.0
    roles: [web]
    cmd: redis-server
  search:
    image: opensearchproject/opensearch:2
    host: 192.168.0.2
    port: 9200
    cmd: "run 'x'"
    env: {clear: {A: b}}
    volumes: ["search:/data"]
    options: {memory: 1g}
"#,
    "service: 1\nimage: [a]\nservers: x\nproxy: true\nenv: text\nvolumes: {a: b}\ndrain_timeout: soon\ndeploy_timeout: never\nboot:\nbuilder: {context: ../x, arch: [a, b]}\naccessories: {a: , b: {image: 'NOT AN IMAGE'}}\n",
];

fn import(text: &str) -> Result<Import, String> {
    let source = Source {
        name: "config/deploy.yml".to_owned(),
        text: text.to_owned(),
    };
    import_kamal(&source).map_err(|error| error.to_string())
}

fn check(text: &str) {
    let import = import(text).unwrap();
    let parsed = landfast_spec::parse("landfast.toml", &import.manifest, &environment());
    assert!(
        parsed.spec.is_some(),
        "{:#?}\n{}",
        parsed.diagnostics,
        import.manifest
    );
}

#[test]
fn each_imports_into_a_manifest_that_parses() {
    FILES.iter().for_each(|text| check(text));
}

#[test]
fn every_key_is_carried_or_named() {
    for text in FILES {
        let import = import(text).unwrap();
        let tree: serde_json::Value = serde_saphyr::from_str(text).unwrap();
        let mut leaves = Vec::new();
        collect(&tree, String::new(), &mut leaves);
        for leaf in leaves {
            let mut marks = import.marks.iter().filter(|mark| {
                let rest = leaf.strip_prefix(mark.path.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            });
            assert!(
                marks.any(|mark| mark.path == leaf || !matches!(mark.fate, Fate::Carried { .. })),
                "nothing is said of `{leaf}`\n{:#?}",
                import.marks
            );
        }
    }
}

#[test]
fn what_matters_of_a_whole_file_is_there() {
    let import = import(FILES[1]).unwrap();
    let parsed = landfast_spec::parse("landfast.toml", &import.manifest, &environment());
    let spec = parsed.spec.unwrap();
    let json = serde_json::to_value(&spec).unwrap();
    assert_eq!(json["services"]["web"]["port"], 3000);
    assert_eq!(
        json["services"]["workers"]["command"],
        serde_json::json!(["bin/jobs", "--queue", "a b"])
    );
    assert_eq!(
        json["services"]["web"]["health"]["ready"]["path"],
        "/health"
    );
    assert_eq!(json["stores"]["db"]["engine"], "postgres");
    assert_eq!(json["routes"]["public"]["path"], "/app");
    assert_eq!(spec.routes.len(), 2);
    assert_eq!(
        json["services"]["web"]["uses"],
        serde_json::json!(["db", "redis"])
    );
    let secrets = import
        .secrets
        .iter()
        .map(|secret| secret.name.as_str())
        .collect::<Vec<_>>();
    assert!(
        secrets.contains(&"RAILS_MASTER_KEY") && secrets.contains(&"QUEUE_URL"),
        "{secrets:?}"
    );
    assert!(!import.manifest.contains("a:b@queue"));
}

#[test]
fn erb_is_not_taken_for_yaml() {
    let error = import("service: a\nimage: <%= x %>\n").unwrap_err();
    assert!(
        error.contains("config/deploy.yml:2:1") && error.contains("ERB"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_files_never_panic(
        which in 0_usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..5, any::<char>()), 1..8),
    ) {
        let mut chars = FILES[which].chars().collect::<Vec<_>>();
        for (index, kind, c) in changes {
            if chars.is_empty() {
                break;
            }
            let at = index.index(chars.len());
            match kind {
                0 => chars.truncate(at),
                1 => chars.insert(at, c),
                2 => chars[at] = c,
                3 => { chars.remove(at); }
                _ => chars[at] = [':', '-', '{', '}', '[', ']', '"', '/', '\n'][c as usize % 9],
            }
        }
        let text = chars.into_iter().collect::<String>();
        if let Ok(import) = import(&text) {
            let parsed = landfast_spec::parse("landfast.toml", &import.manifest, &environment());
            let is_said = import.decisions.iter().any(|text| text.contains("landfast check"));
            prop_assert!(parsed.spec.is_some() || is_said, "{:#?}\n{}\n{}", parsed.diagnostics, text, import.manifest);
        }
    }
}

fn collect(value: &serde_json::Value, path: String, leaves: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                collect(value, path, leaves);
            }
        }
        serde_json::Value::Array(items) if !items.is_empty() => {
            for (index, value) in items.iter().enumerate() {
                collect(value, format!("{path}[{index}]"), leaves);
            }
        }
        _ => leaves.push(path),
    }
}
