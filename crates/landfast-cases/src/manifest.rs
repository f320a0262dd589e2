//! Reading a manifest.

use std::hint::black_box;

use landfast_types::EnvironmentName;

use crate::Work;

/// One of each thing a manifest may say.
const CONTRACT: &str = r#"app = "flextime"

[services.api]
artifact = "target/release/flextime"
command = ["./flextime", "serve"]
port = 3000
replicas = 3
resources = { cpu = "500m", memory = "512MiB" }
volumes = { uploads = "managed" }
env = { LOG_LEVEL = "info", CACHE_TTL = { default = "1h", type = "duration" }, API_BASE = "https://api.example" }
health = { ready = "http:/ready", live = "http:/health", interval = "2s" }
drain = "30s"
grace = "10s"

[services.worker]
artifact = "target/release/flextime"
command = ["./flextime", "work"]
after = ["api"]

[jobs.smoke]
artifact = "target/release/flextime"
command = ["./flextime", "smoke"]
when = "gate:smoke"

[routes.public]
host = "api.flextime.example"
service = "api"
websocket = true
limits = { body = "100MiB" }

[deploy]
strategy = "canary"
steps = [5, 25, 100]
hold = "5m"
min_ready = "10s"
standby = "10m"
gates = ["preflight", "smoke", "analysis"]

[environments.production]
services.api.replicas = 6
routes.public.host = "api.flextime.com"
deploy.gates = ["preflight", "smoke", "analysis", "approval"]
"#;

fn parse(text: String, services: usize) -> Work {
    let environment = EnvironmentName::new("production").expect("a name");
    Box::new(move || {
        let parsed = landfast_spec::parse("landfast.toml", black_box(&text), &environment);
        let spec = parsed
            .spec
            .unwrap_or_else(|| panic!("{:?}", parsed.diagnostics));
        assert_eq!(spec.services.len(), services);
    })
}

pub(crate) fn contract() -> Work {
    parse(CONTRACT.to_owned(), 2)
}

pub(crate) fn large() -> Work {
    let mut text = "app = \"large\"\n".to_owned();
    for number in 0..50 {
        text.push_str(&format!(
            "\n[services.s{number}]\nartifact = \"app\"\ncommand = [\"./app\", \"serve\"]\nport = 3000\nreplicas = 2\n\
             health = {{ ready = \"http:/ready\" }}\n\n[routes.r{number}]\nhost = \"s{number}.example\"\n\
             service = \"s{number}\"\n"
        ));
    }
    parse(text, 50)
}
