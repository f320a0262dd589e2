//! Keys at the top of a file: `volumes`, `networks`, `secrets`, `configs` and the others.

use crate::{compose::Converter, ledger::At};

impl Converter<'_> {
    pub(super) fn top(&mut self, root: &At<'_>) {
        for (key, at) in root.fields() {
            match key {
                "services" => {}
                "version" => self
                    .ledger
                    .replaced(&at, "it says nothing to today's Compose either"),
                "name" => self.ledger.carried(&at, "app"),
                "include" => self.ledger.carried_whole(&at, "what it includes is here"),
                "volumes" => self.top_volumes(&at),
                "networks" => self.top_networks(&at),
                "secrets" => self.top_secrets(&at),
                "configs" => {
                    for (_, at) in at.fields() {
                        self.ledger.not_carried(&at, "a file of configuration is part of the image or a secret", "COPY it into the image, or `landfast secret set NAME < FILE` and read it in /run/secrets/NAME");
                    }
                }
                _ if key.starts_with("x-") => self.ledger.replaced(
                    &at,
                    "an extension says nothing by itself; what refers to it was followed",
                ),
                _ => self.ledger.not_carried(
                    &at,
                    "the Compose specification has no such key, or it is newer than this version",
                    "remove it",
                ),
            }
            if at.node.fields().is_empty()
                && at.node.items().is_empty()
                && at.text().is_none()
                && key != "services"
            {
                self.ledger.replaced(&at, "it is empty");
            }
        }
    }

    fn top_volumes(&mut self, at: &At<'_>) {
        for (name, at) in at.fields() {
            let own = self.volumes.get(name).cloned().unwrap_or_default();
            let to = format!("the volume `{own}` where services use it");
            if at.node.fields().is_empty() {
                self.ledger.carried(&at, to.as_str());
            }
            for (key, value) in at.fields() {
                match (key, value.text().as_deref()) {
                    ("driver", Some("local")) | ("external", Some("false")) => self.ledger.carried(&value, to.as_str()),
                    ("external" | "name", _) => self.ledger.not_carried(
                        &value,
                        "a volume is a folder of Landfast's, named after its app",
                        format!("copy what is in it to where `landfast status` says that `{own}` is, or name the folder: {{ from = \"/…\", at = \"…\" }}"),
                    ),
                    ("labels", _) => self.ledger.not_carried(&value, "volumes have no labels", "nothing is to be done"),
                    (key, _) if key.starts_with("x-") => self.ledger.replaced(&value, "an extension says nothing by itself"),
                    _ => self.ledger.not_carried(
                        &value,
                        "a volume is a folder of the server",
                        "mount the other place on the server, and name its path: { from = \"/mnt/…\", at = \"…\" }",
                    ),
                }
            }
        }
    }

    fn top_networks(&mut self, at: &At<'_>) {
        let one =
            "one network of the app and the environment; stores are reached where `uses` says";
        if at.node.fields().len() > 1 {
            self.decide("the networks are one: services of an app reach each other, and stores only where `uses` says".to_owned());
        }
        for (name, at) in at.fields() {
            if at.node.fields().is_empty() {
                self.ledger.replaced(&at, one);
            }
            for (key, value) in at.fields() {
                match (key, value.text().as_deref()) {
                    ("driver", Some("bridge" | "overlay" | "default")) | ("attachable" | "enable_ipv4" | "name" | "labels", _) | ("external" | "internal" | "enable_ipv6", Some("false")) => {
                        self.ledger.replaced(&value, one);
                    }
                    ("external", _) => self.ledger.not_carried(&value, format!("`{name}` is a network of other apps, which reach each other by their routes alone"), "give what they want a route"),
                    ("internal", _) => self.ledger.not_carried(&value, "services may reach the world", "refuse it at the host's firewall"),
                    (key, _) if key.starts_with("x-") => self.ledger.replaced(&value, "an extension says nothing by itself"),
                    _ => self.ledger.not_carried(&value, "networks are made by Landfast", "nothing is to be done, unless an address is fixed somewhere"),
                }
            }
        }
    }

    fn top_secrets(&mut self, at: &At<'_>) {
        for (source, at) in at.fields() {
            let name = self.secret_name(source);
            let file = at.get("file").and_then(|at| at.text());
            let file =
                file.filter(|file| !file.contains(|c: char| c.is_control() || c.is_whitespace()));
            self.draft.need_secret(&name, source, file.as_deref());
            let to = format!("the secret {name}, set by `landfast secret set`");
            if at.node.fields().is_empty() {
                self.ledger.carried(&at, to.as_str());
            }
            for (key, value) in at.fields() {
                match key {
                    "file" | "environment" | "external" | "name" => {
                        self.ledger.carried_whole(&value, &to)
                    }
                    _ if key.starts_with("x-") => self
                        .ledger
                        .replaced(&value, "an extension says nothing by itself"),
                    _ => self.ledger.not_carried(
                        &value,
                        "secrets are kept by Landfast",
                        "nothing is to be done",
                    ),
                }
            }
        }
        if !at.node.fields().is_empty() {
            self.decide(
                "secrets are the environment's: each service finds all of them in /run/secrets",
            );
        }
    }
}
