//! The keys of a service that no other part reads: what is done without them, and what is not done.

use crate::{
    compose::{Converter, image_base},
    ledger::At,
};

impl Converter<'_> {
    /// Says of every key of a service what became of it.
    pub(super) fn others(&mut self, name: &str, own: &str, at: &At<'_>, is_job: bool) {
        for (key, value) in at.fields() {
            match key {
                // Read elsewhere, value by value.
                "image" | "build" | "pull_policy" | "entrypoint" | "command" | "environment"
                | "env_file" | "depends_on" | "links" | "volumes" | "tmpfs" | "ulimits"
                | "user" | "read_only" | "cap_add" | "secrets" | "healthcheck" | "ports"
                | "expose" | "scale" | "cpus" | "mem_limit" | "pids_limit" | "mem_reservation"
                | "stop_grace_period" => self.leftover(&value, is_job),
                "labels" if !is_job => self.leftover(&value, is_job),
                "deploy" => self.deploy(name, &value, is_job),
                "networks" => self.networks(own, &value),
                "profiles" => self
                    .ledger
                    .carried_whole(&value, "the profile was asked for"),
                "extends" => self.ledger.carried_whole(&value, "its keys are here"),
                "restart" => self.restart(&value),
                "configs" => self.configs(&value),
                "platform" if at.get("build").is_some() => {
                    self.ledger.carried(&value, "build.platform")
                }
                "logging" => self.logging(&value),
                _ if key.starts_with("x-") => self
                    .ledger
                    .replaced(&value, "an extension says nothing by itself"),
                _ => self.plain(own, key, &value, at),
            }
        }
    }

    /// Keys that are read elsewhere, with a value that is none there.
    fn leftover(&mut self, at: &At<'_>, is_job: bool) {
        let empty = at.node.is_null()
            || (at.text().is_none() && at.node.fields().is_empty() && at.node.items().is_empty());
        if empty {
            self.ledger.replaced(at, "it is empty");
        } else if is_job && matches!(at.key(), "scale" | "stop_grace_period") {
            self.ledger.not_carried(
                at,
                "a job runs once at a time, until it ends or its `timeout`",
                "nothing is to be done",
            );
        } else if at.text().is_some()
            && matches!(
                at.key(),
                "environment"
                    | "depends_on"
                    | "volumes"
                    | "ports"
                    | "secrets"
                    | "links"
                    | "ulimits"
                    | "expose"
                    | "labels"
            )
        {
            self.ledger.wrong(at, "a list or a mapping");
        }
    }

    fn plain(&mut self, own: &str, key: &str, at: &At<'_>, service: &At<'_>) {
        let text = at.text();
        let is = |word: &str| text.as_deref() == Some(word);
        let ledger = &mut self.ledger;
        match key {
            "init" if is("true") => ledger.replaced(at, "every container has an init"),
            "init" => ledger.not_carried(
                at,
                "every container has an init, which does no harm",
                "nothing is to be done",
            ),
            "cap_drop" => ledger.replaced(at, "a container has no capability that it is not given"),
            "privileged" | "stdin_open" | "tty" | "oom_kill_disable" | "use_api_socket"
                if is("false") =>
            {
                ledger.replaced(at, "as it is anyway");
            }
            "security_opt" => {
                for (text, item) in at.texts() {
                    if text.replace('=', ":").starts_with("no-new-privileges")
                        && !text.ends_with("false")
                    {
                        ledger.replaced(&item, "no process gains privileges");
                    } else {
                        ledger.not_carried(
                            &item,
                            "containers run under Docker's own profiles",
                            "nothing is to be done, unless the profile was stricter",
                        );
                    }
                }
            }
            "network_mode" if is("bridge") => {
                ledger.replaced(at, "containers are in a network of their app")
            }
            "container_name" | "hostname" => {
                let instead = format!("others reach it as `{own}`");
                ledger.not_carried(
                    at,
                    "instances are named by Landfast, for there may be several",
                    instead,
                );
            }
            "attach" => ledger.replaced(at, "`landfast logs` shows what instances write"),
            "platform" => {
                let base = image_base(
                    &service
                        .get("image")
                        .and_then(|at| at.text())
                        .unwrap_or_default(),
                )
                .to_owned();
                ledger.not_carried(
                    at,
                    "an image is pulled for the server's own platform",
                    format!("name the image of that platform by its digest: {base}@sha256:…"),
                );
            }
            _ => {
                let (reason, instead) = reason(key);
                ledger.not_carried(at, reason, instead);
            }
        }
    }

    fn deploy(&mut self, name: &str, at: &At<'_>, is_job: bool) {
        if at.node.is_null() {
            self.ledger.replaced(at, "it is empty");
            return;
        }
        for (key, value) in at.fields() {
            match key {
                "replicas" | "update_config" if is_job => {
                    self.ledger.not_carried(
                        &value,
                        "a job runs once at a time",
                        "nothing is to be done",
                    );
                }
                "mode" if is_job => self.ledger.carried(&value, "a job"),
                "labels" if !is_job => {}
                "replicas" | "update_config" | "mode" => {}
                "resources" => self.deploy_resources(name, &value),
                "restart_policy" => {
                    for (key, value) in value.fields() {
                        match (key, value.text().as_deref()) {
                            ("condition", Some("any" | "on-failure")) => {
                                self.ledger.replaced(&value, "what ends is started again")
                            }
                            ("condition", Some("none")) if is_job => {
                                self.ledger.carried(&value, "a job")
                            }
                            ("condition", _) => self.ledger.not_carried(
                                &value,
                                "a service that ends is started again",
                                "make a job of it",
                            ),
                            ("delay", _) => self.ledger.replaced(&value, "1 s, growing to 60 s"),
                            _ => self.ledger.not_carried(
                                &value,
                                "what ends is started again without end, after 1 s growing to 60 s",
                                "nothing is to be done",
                            ),
                        }
                    }
                }
                "rollback_config" => self
                    .ledger
                    .replaced(&value, "a rollback brings capacity first"),
                "endpoint_mode" => self
                    .ledger
                    .replaced(&value, "instances are addressed one by one"),
                "placement" => {
                    self.ledger
                        .not_carried(&value, "there is one server", "nothing is to be done")
                }
                "labels" => self.ledger.not_carried(
                    &value,
                    "instances have no labels of an app",
                    "nothing is to be done",
                ),
                _ if key.starts_with("x-") => self
                    .ledger
                    .replaced(&value, "an extension says nothing by itself"),
                _ => self.ledger.not_carried(
                    &value,
                    "the Compose specification has no such key",
                    "remove it",
                ),
            }
        }
    }

    fn deploy_resources(&mut self, name: &str, at: &At<'_>) {
        for (group, value) in at.fields() {
            for (key, value) in value.fields() {
                match (group, key) {
                    ("limits", "cpus" | "memory" | "pids")
                    | ("reservations", "cpus" | "memory") => {}
                    ("reservations" | "limits", "devices" | "generic_resources") => {
                        self.ledger.not_carried(&value, format!("`{name}` wants a device such as a GPU, which a manifest cannot give"), "run it as a plain process (`artifact`) with `sandbox = { read_write = [\"/dev/…\"] }`");
                    }
                    _ => self.ledger.not_carried(
                        &value,
                        "limits are CPU, memory and processes",
                        "remove it",
                    ),
                }
            }
        }
    }

    fn networks(&mut self, own: &str, at: &At<'_>) {
        let one =
            "one network of the app and the environment; stores are reached where `uses` says";
        if at.node.fields().is_empty() {
            self.ledger.carried_whole(at, one);
            return;
        }
        for (_, network) in at.fields() {
            if network.node.fields().is_empty() {
                self.ledger.replaced(&network, one);
            }
            for (key, value) in network.fields() {
                match key {
                    "aliases" => {
                        for (text, item) in value.texts() {
                            if text == own {
                                self.ledger.carried(&item, "the service's name");
                            } else {
                                self.ledger.not_carried(
                                    &item,
                                    "services are reached by their own names",
                                    format!("reach it as `{own}`"),
                                );
                            }
                        }
                    }
                    "priority" | "gw_priority" => self.ledger.replaced(&value, one),
                    _ if key.starts_with("x-") => self
                        .ledger
                        .replaced(&value, "an extension says nothing by itself"),
                    _ => self.ledger.not_carried(
                        &value,
                        "addresses are given by the network",
                        format!("reach it as `{own}`"),
                    ),
                }
            }
        }
    }

    fn restart(&mut self, at: &At<'_>) {
        match at.text().as_deref() {
            Some("always" | "unless-stopped" | "on-failure") => self
                .ledger
                .replaced(at, "what ends is started again, after 1 s growing to 60 s"),
            Some(word) if word.starts_with("on-failure:") => {
                self.ledger.not_carried(
                    at,
                    "what ends is started again without end, after 1 s growing to 60 s",
                    "nothing is to be done",
                );
            }
            _ => self.ledger.not_carried(
                at,
                "a service that ends is started again",
                "make a job of it where it is to end",
            ),
        }
    }

    fn configs(&mut self, at: &At<'_>) {
        for item in at.items() {
            let name = item
                .text()
                .or_else(|| item.get("source")?.text())
                .unwrap_or_default();
            self.ledger.not_carried(
                &item,
                "a file of configuration is part of the image or a secret",
                format!("COPY it into the image, or `landfast secret set {}` and read it in /run/secrets", crate::slug(&name).unwrap_or_default().to_uppercase().replace('-', "_")),
            );
        }
    }

    fn logging(&mut self, at: &At<'_>) {
        let driver = at.get("driver").and_then(|at| at.text());
        match driver.as_deref() {
            None | Some("json-file" | "local") => self
                .ledger
                .replaced(at, "logs are kept and rotated by Landfast"),
            Some(_) => self.ledger.not_carried(
                at,
                "logs are kept and rotated by Landfast",
                "follow them with `landfast logs -f --json`",
            ),
        }
    }
}

/// Why there is no such key in a manifest, and what to do.
fn reason(key: &str) -> (&'static str, &'static str) {
    match key {
        "working_dir" => (
            "a container begins in the image's own folder",
            "write WORKDIR in the Dockerfile, or give absolute paths in `command`",
        ),
        "stop_signal" => (
            "the image's own signal is sent",
            "write STOPSIGNAL in the Dockerfile",
        ),
        "network_mode" => (
            "a container is in the networks of its app alone",
            "reach other services by their names",
        ),
        "privileged" => (
            "a privileged container is root on the host",
            "name what it needs in `sandbox.capabilities`",
        ),
        "devices" | "device_cgroup_rules" | "gpus" | "runtime" => (
            "a container is given no devices",
            "run it as a plain process (`artifact`) with `sandbox = { read_write = [\"/dev/…\"] }`",
        ),
        "ipc" | "pid" | "uts" | "userns_mode" | "cgroup" | "cgroup_parent" | "isolation" => (
            "a container shares no part of the host's or another's",
            "nothing is to be done, unless the app needs it",
        ),
        "dns" | "dns_search" | "dns_opt" | "extra_hosts" | "domainname" | "external_links" => (
            "names are resolved as on the host, beside those of the app's services",
            "set it up on the host",
        ),
        "mac_address" => (
            "addresses are given by the network",
            "nothing is to be done",
        ),
        "labels" | "label_file" | "annotations" => (
            "instances have no labels of an app",
            "nothing is to be done, unless a tool reads them from Docker",
        ),
        "shm_size" => (
            "shared memory is as large as Docker makes it, 64 MiB",
            "sandbox = { tmpfs = [\"/…\"] } for files in memory",
        ),
        "sysctls" => (
            "settings of the kernel are the host's",
            "set them on the host",
        ),
        "stdin_open" | "tty" => (
            "nobody sits before it",
            "`landfast exec` runs a command beside an instance",
        ),
        "volumes_from" => (
            "a volume is named where it is used",
            "name it in both services",
        ),
        "storage_opt" | "blkio_config" => ("disks are the host's", "set it up on the host"),
        "credential_spec" | "cpu_count" | "cpu_percent" => ("it is for Windows", "remove it"),
        "group_add" => (
            "a container has the groups of its user",
            "make the files readable for its user",
        ),
        "develop" => (
            "a deploy has releases, and watches no files",
            "keep the Compose file for work on the code",
        ),
        "post_start" | "pre_stop" => (
            "nothing is run inside at start or stop",
            "do it in the image's entrypoint, or at SIGTERM",
        ),
        "provider" | "models" => (
            "it is not a container",
            "name what it gives in `env` and secrets",
        ),
        "cpu_shares" | "cpu_quota" | "cpu_period" | "cpuset" | "cpu_rt_period"
        | "cpu_rt_runtime" => ("CPU is limited in cores", "resources = { cpu = \"500m\" }"),
        "memswap_limit" | "mem_swappiness" | "oom_kill_disable" | "oom_score_adj" => (
            "memory is limited without swap",
            "resources = { memory = \"512MiB\" }",
        ),
        "container_name" | "hostname" => (
            "instances are named by Landfast",
            "reach it by the service's name",
        ),
        "use_api_socket" => (
            "whoever has Docker's socket is root on the host",
            "do without it",
        ),
        _ => (
            "the Compose specification has no such key, or it is newer than this version",
            "look at docs/reference/manifest.md",
        ),
    }
}
