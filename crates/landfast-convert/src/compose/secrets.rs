//! Secrets of a service, and their names in the manifest.

use crate::{compose::Converter, ledger::At};

impl Converter<'_> {
    pub(super) fn secret_name(&mut self, source: &str) -> String {
        if let Some(name) = self.secrets.get(source) {
            return name.clone();
        }
        let name = source.chars().map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '_'
            }
        });
        let mut name = name.collect::<String>();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            name.insert(0, '_');
        }
        while self.secrets.values().any(|other| *other == name) {
            name.push('_');
        }
        self.secrets.insert(source.to_owned(), name.clone());
        name
    }

    pub(super) fn service_secrets(&mut self, at: &At<'_>) {
        for item in at.get("secrets").iter().flat_map(At::items) {
            let Some(source) = item.text().or_else(|| item.get("source")?.text()) else {
                self.ledger.wrong(&item, "the name of a secret");
                continue;
            };
            let name = self.secret_name(&source);
            let to = format!("the secret {name}, in /run/secrets/{name}");
            if !item.node.is_map() {
                self.ledger.carried(&item, to);
                continue;
            }
            for (key, value) in item.fields() {
                let target = value.text().unwrap_or_default();
                match key {
                    "source" => self.ledger.carried(&value, to.as_str()),
                    "target" if target == name || target == format!("/run/secrets/{name}") => {
                        self.ledger.carried(&value, to.as_str())
                    }
                    "target" => self.ledger.not_carried(
                        &value,
                        format!("it is at /run/secrets/{name}"),
                        format!("read it there, or where {name}_FILE says"),
                    ),
                    _ => self.ledger.not_carried(
                        &value,
                        "only the service's user can read it",
                        "nothing is to be done",
                    ),
                }
            }
        }
    }
}
