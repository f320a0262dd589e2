//! Containers in the manifest: what is read, what is refused, and what an environment replaces.

use std::{collections::BTreeSet, fmt::Write as _};

use insta::assert_snapshot;
use landfast_spec::{
    AppSpec, BuildSpec, ContainerSpec, ImageSource, Probe, Pull, SecretDelivery, Volume, parse,
};
use landfast_types::{Bytes, EnvironmentName};

fn at(environment: &str) -> EnvironmentName {
    EnvironmentName::new(environment).expect("a name")
}

fn with(service: &str) -> String {
    format!("app = \"shop\"\n[services.web]\n{service}\n")
}

fn said(text: &str) -> String {
    let mut output = String::new();
    for one in parse("landfast.toml", text, &at("production")).diagnostics {
        let (line, column, code) = (one.line, one.column, one.code);
        write!(output, "{line}:{column} {code} {}", one.message).expect("writes");
        if let Some(help) = &one.help {
            write!(output, " | {help}").expect("writes");
        }
        output.push('\n');
    }
    output
}

fn spec_in(text: &str, environment: &str) -> AppSpec {
    let parsed = parse("landfast.toml", text, &at(environment));
    parsed
        .spec
        .unwrap_or_else(|| panic!("{:?}", parsed.diagnostics))
}

fn spec(text: &str) -> AppSpec {
    spec_in(text, "production")
}

fn container(spec: &AppSpec) -> &ContainerSpec {
    let service = spec.services.values().next().expect("one");
    service.container.as_ref().expect("a container")
}

#[test]
fn an_image_needs_nothing_else() {
    let spec = spec(&with("image = \"nginx:1.27\""));
    let service = spec.services.values().next().expect("one");
    assert_eq!(service.artifact, None);
    assert!(service.command.is_empty());
    assert_eq!(service.secrets, SecretDelivery::Files);
    let expected = ImageSource::Image {
        name: "nginx:1.27".parse().expect("a name"),
        pull: Pull::Newer,
    };
    assert_eq!(container(&spec).source, expected);
    assert_eq!(spec.images().keys().collect::<Vec<_>>(), ["nginx:1.27"]);
    assert!(spec.artifact_names().is_empty());
}

#[test]
fn a_container_has_what_is_written() {
    let text = with(
        r#"
image = "ghcr.io/acme/web:1.4"
pull = "missing"
entrypoint = ["/app/run"]
command = ["serve"]
port = 8080
reserve = { cpu = "250m", memory = "64MiB" }
volumes = { cache = "/srv/cache", uploads = { from = "managed", at = "/data/" } }
health = { ready = "image", live = "none" }
sandbox = { root = true, writable = true, tmpfs = ["/var/cache"], capabilities = ["cap_net_raw", "CHOWN"] }
"#,
    );
    let spec = spec(&text);
    let service = spec.services.values().next().expect("one");
    assert_eq!(service.health.ready, Probe::Image);
    assert_eq!(service.volumes["uploads"], Volume::Managed);
    let path = "/srv/cache".to_owned();
    assert_eq!(service.volumes["cache"], Volume::Path { path });
    assert_eq!(service.sandbox.capabilities, ["NET_RAW", "CHOWN"]);
    assert!(service.sandbox.root && service.sandbox.writable);
    let container = container(&spec);
    assert_eq!(container.mounts["uploads"], "/data");
    assert_eq!(container.mounts.get("cache"), None);
    assert_eq!(container.reserve.memory, Some(Bytes(64 << 20)));
    assert_eq!(
        container.entrypoint.as_deref(),
        Some(&["/app/run".to_owned()][..])
    );
}

#[test]
fn what_is_built_for_several_is_one_image() {
    let text = "app = \"shop\"\n[services.web]\nbuild = \".\"\n[services.worker]\nbuild = { context = \".\" }\n\
                [jobs.report]\nbuild = { context = \".\", target = \"tools\", args = { LEVEL = 3 }, secrets = [\"TOKEN\"] }\n";
    let spec = spec(text);
    let images = spec.images();
    let users: Vec<_> = images.values().map(|(_, users)| users.len()).collect();
    assert_eq!(users, [2, 1]);
    assert_eq!(images.keys().next().map(String::as_str), Some("build:."));
    let other = images.keys().nth(1).expect("two");
    assert!(other.starts_with("build:.#"), "{other}");
    let (source, _) = &images[other];
    let ImageSource::Build(BuildSpec { args, secrets, .. }) = source else {
        panic!("{source:?}");
    };
    assert_eq!(args["LEVEL"], "3");
    assert_eq!(secrets, &["TOKEN"]);
}

#[test]
fn an_environment_runs_something_else() {
    let text = "app = \"shop\"\n[services.web]\nbuild = { context = \"web\", target = \"dev\" }\n\
                [services.api]\nartifact = \"api\"\ncommand = [\"./api\"]\n\
                [environments.staging]\nservices.web.build = \".\"\n\
                [environments.production]\nservices.web.image = \"ghcr.io/acme/web:1\"\nservices.api.image = \"ghcr.io/acme/api:1\"\n";
    let production = spec_in(text, "production");
    let keys = production.images().into_keys().collect::<Vec<_>>();
    assert_eq!(keys, ["ghcr.io/acme/api:1", "ghcr.io/acme/web:1"]);
    let staging = spec_in(text, "staging");
    assert_eq!(
        staging.images().into_keys().collect::<Vec<_>>(),
        ["build:."]
    );
}

#[test]
fn a_process_runs_from_exactly_one_thing() {
    assert_snapshot!(said(&with("port = 80")));
    assert_snapshot!(said(&with(
        "artifact = \"a\"\ncommand = [\"./a\"]\nimage = \"nginx\"\nbuild = \".\""
    )));
    assert_snapshot!(said("app = \"shop\"\n[jobs.report]\ncommand = [\"./a\"]\n"));
}

#[test]
fn keys_of_the_other_kind_are_refused() {
    assert_snapshot!(said(&with(
        "artifact = \"a\"\ncommand = [\"./a\"]\nport = 80\npull = \"never\"\nentrypoint = [\"/a\"]\nreserve = { cpu = \"1\" }\n\
         sandbox = { root = true, tmpfs = [\"/x\"] }\nhealth = { ready = \"image\" }\n\
         volumes = { data = { from = \"managed\", at = \"/data\" } }"
    )));
    assert_snapshot!(said(&with(
        "image = \"nginx\"\nsandbox = { user = \"server\", files = \"host\", read_only = [\"/srv\"], read_write = [\"/run/x\"] }"
    )));
}

#[test]
fn wrong_values_are_told_with_what_is_right() {
    assert_snapshot!(said(&with("image = \"https://ghcr.io/acme/web\"")));
    assert_snapshot!(said(&with("image = \"Nginx\"")));
    assert_snapshot!(said(&with("image = \"nginx\"\npull = \"allways\"")));
    assert_snapshot!(said(&with(
        "image = \"nginx\"\nsandbox = { capabilities = [\"NET_BIND\"], tmpfs = [\"tmp\", \"/a:b\"] }"
    )));
    assert_snapshot!(said(&with(
        "image = \"nginx\"\nvolumes = { a = { from = \"managed\", at = \"/data\" }, b = { from = \"/srv/b\", at = \"/data/\" }, \
         c = { at = \"/proc/x\" }, d = { from = \"srv\" } }"
    )));
    assert_snapshot!(said(&with(
        "build = { context = \"../web\", args = { API_TOKEN = \"abcdef\", \"a-b\" = \"1\" }, secrets = [\"a b\"] }\npull = \"never\""
    )));
    assert_snapshot!(said(
        "app = \"shop\"\n[services.web]\nimage = \"nginx\"\n[registries.\"https://ghcr.io\"]\nuser_secret = \"U\"\n"
    ));
}

#[test]
fn secrets_that_docker_shows_are_warned_of() {
    assert_snapshot!(said(&with("image = \"nginx\"\nsecrets = \"environment\"")));
    assert_snapshot!(said(&with(
        "image = \"nginx\"\nenv = { LEVEL = \"info\", API_KEY = { required = true } }"
    )));
    assert_eq!(
        said(&with("image = \"nginx\"\nenv = { LEVEL = \"info\" }")),
        ""
    );
}

#[test]
fn logins_of_registries_are_not_given_to_the_app() {
    let text = "app = \"shop\"\n[services.web]\nimage = \"ghcr.io/acme/web\"\n\
                [registries.\"ghcr.io\"]\nuser_secret = \"GHCR_USER\"\npassword_secret = \"GHCR_TOKEN\"\n";
    let spec = spec(text);
    assert!(spec.is_for_landfast("GHCR_TOKEN") && spec.is_for_landfast("GHCR_USER"));
    assert!(!spec.is_for_landfast("OTHER"));
}

/// What was stored before there were images.
#[test]
fn a_release_of_before_reads_and_keeps_its_fingerprint() {
    let text = "app = \"shop\"\n[services.api]\nartifact = \"api\"\ncommand = [\"./api\"]\n\
                sandbox = { files = \"host\" }\nvolumes = { data = \"managed\" }\n\
                [jobs.report]\nartifact = \"api\"\ncommand = [\"./api\", \"report\"]\n";
    let spec = spec(text);
    let written = serde_json::to_value(&spec).expect("text keys");
    let service = &written["services"]["api"];
    assert_eq!(service["artifact"], "api");
    // The fingerprint is of the JSON: what a manifest of before does not say must not be in it.
    let keys = |value: &serde_json::Value| {
        let table = value.as_object().expect("a table");
        table.keys().cloned().collect::<BTreeSet<_>>()
    };
    let expected = |words: &str| words.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(
        keys(&written),
        expected("app environment services jobs routes deploy")
    );
    assert_eq!(
        keys(service),
        expected(
            "artifact command port replicas resources sandbox volumes env health drain stream_drain grace after exclusive \
             secrets"
        )
    );
    assert_eq!(
        keys(&service["sandbox"]),
        expected("server_user host_files read_only read_write")
    );
    assert_eq!(
        keys(&written["jobs"]["report"]),
        expected("artifact command when timeout resources volumes env secrets")
    );
    let read: AppSpec = serde_json::from_value(written).expect("it reads back");
    assert_eq!(read, spec);
}
