//! Stores as services of Compose, and what they give the services that use them.

use std::collections::BTreeMap;

use landfast_spec::{AppSpec, Engine, ImageSource, Part, Place, StoreSpec, injected_variables};
use landfast_types::StoreName;
use serde_json::{Map, Value, json};

use super::{Export, literal, size};

/// The names of stores as services: their own, where no service has it.
pub(super) fn names(spec: &AppSpec) -> BTreeMap<StoreName, String> {
    let names = spec.stores.keys().map(|name| {
        let taken = spec
            .services
            .keys()
            .any(|one| one.as_str() == name.as_str());
        (
            name.clone(),
            if taken {
                format!("store-{name}")
            } else {
                name.to_string()
            },
        )
    });
    names.collect()
}

/// What a variable of a store holds, and the file of a secret that holds it as well.
pub(super) struct Given {
    pub(super) text: String,
    pub(super) secret: Option<String>,
}

impl Given {
    fn open(text: String) -> Self {
        Self { text, secret: None }
    }
}

fn prefix(name: &StoreName) -> String {
    name.as_str().to_uppercase().replace('-', "_")
}

impl Export<'_> {
    /// A managed store; others are somebody else's.
    pub(super) fn store(&mut self, name: &StoreName, store: &StoreSpec) -> Option<Value> {
        let Place::Managed {
            version,
            memory,
            settings,
            image: own,
        } = &store.place
        else {
            return None;
        };
        let variable = format!("{}_PASSWORD", prefix(name));
        let password = format!("${{{variable}:?write it to .env}}");
        self.variables.insert(
            variable,
            format!("of the store `{name}`: letters and digits, for it stands in an address"),
        );
        let (image, data, mut env, test) = match store.engine {
            Engine::Postgres => (
                format!("postgres:{version}"),
                "/var/lib/postgresql/data",
                json!({ "POSTGRES_USER": "app", "POSTGRES_DB": "app", "POSTGRES_PASSWORD": password }),
                // By TCP: while the image makes its data, a server answers on the socket alone.
                json!(["CMD-SHELL", "pg_isready -h 127.0.0.1 -U app -d app"]),
            ),
            Engine::Mariadb => (
                format!("mariadb:{version}"),
                "/var/lib/mysql",
                json!({ "MARIADB_USER": "app", "MARIADB_DATABASE": "app", "MARIADB_PASSWORD": password, "MARIADB_RANDOM_ROOT_PASSWORD": "1" }),
                json!(["CMD-SHELL", "healthcheck.sh --connect --innodb_initialized"]),
            ),
            Engine::Redis => (
                format!("redis:{version}"),
                "/data",
                json!({ "REDIS_PASSWORD": password }),
                json!([
                    "CMD-SHELL",
                    "REDISCLI_AUTH=\"$$REDIS_PASSWORD\" redis-cli ping | grep -q PONG"
                ]),
            ),
            Engine::Mysql | Engine::S3 => return None,
        };
        let (image, policy) = match own {
            Some(ImageSource::Image { name, pull }) => {
                (literal(&name.to_string()), super::pull_policy(*pull))
            }
            Some(ImageSource::Build(_)) | None => (image, None),
        };
        let service = self.store_names[name].clone();
        let volume = format!("store-{name}");
        let mut value = Map::new();
        value.insert("image".to_owned(), image.into());
        value.extend(policy.map(|policy| ("pull_policy".to_owned(), policy.into())));
        value.insert("environment".to_owned(), env.take());
        value.insert("command".to_owned(), command(store.engine, settings).into());
        value.insert(
            "volumes".to_owned(),
            json!([{ "type": "volume", "source": volume, "target": data }]),
        );
        value.insert("mem_limit".to_owned(), size(*memory).into());
        value.insert("shm_size".to_owned(), "256m".into());
        value.insert(
            "healthcheck".to_owned(),
            // A first start makes the data, which takes minutes on a slow disk.
            json!({ "test": test, "interval": "2s", "timeout": "5s", "retries": 15, "start_period": "300s" }),
        );
        value.insert("restart".to_owned(), "unless-stopped".into());
        value.insert("stop_grace_period".to_owned(), "60s".into());
        let network = format!("store-{name}");
        value.insert(
            "networks".to_owned(),
            json!({ network: { "aliases": [service] } }),
        );
        self.volumes.insert(volume);
        Some(value.into())
    }

    /// The variables of the stores a process uses.
    pub(super) fn store_variables(&mut self, uses: &[StoreName]) -> BTreeMap<String, Given> {
        let kind = |name: &StoreName| self.spec.stores.get(name).map(StoreSpec::kind);
        let injected = injected_variables(uses, kind);
        let mut variables = BTreeMap::new();
        for (variable, (name, part)) in injected {
            let Some(store) = self.spec.stores.get(&name) else {
                continue;
            };
            if let Some(given) = self.store_part(&name, store, part) {
                variables.insert(variable, given);
            }
        }
        variables
    }

    fn store_part(&mut self, name: &StoreName, store: &StoreSpec, part: Part) -> Option<Given> {
        let pool = store.pool.as_ref();
        let open = |text: String| Some(Given::open(text));
        match part {
            Part::PoolMax => {
                let max = pool?.max.map(|max| max.to_string());
                return open(max.unwrap_or("10".to_owned()));
            }
            Part::PoolMin => return open(pool?.min.to_string()),
            Part::PoolTimeout => return open(pool?.timeout.as_millis().to_string()),
            Part::PoolIdle => return open(pool?.idle.as_millis().to_string()),
            Part::Url
            | Part::Endpoint
            | Part::Bucket
            | Part::Region
            | Part::PathStyle
            | Part::AccessKey
            | Part::SecretKey => {}
        }
        match (&store.place, part) {
            (Place::Managed { .. }, Part::Url) => {
                let variable = format!("{}_PASSWORD", prefix(name));
                let host = self.store_names.get(name)?;
                let address = |password: &str| {
                    Some(match store.engine {
                        Engine::Postgres => format!("postgres://app:{password}@{host}:5432/app"),
                        Engine::Mariadb | Engine::Mysql => {
                            format!("mysql://app:{password}@{host}:3306/app")
                        }
                        Engine::Redis => format!("redis://default:{password}@{host}:6379/0"),
                        Engine::S3 => return None,
                    })
                };
                let text = address(&format!("${{{variable}:?write it to .env}}"))?;
                let secret = format!("store-{name}.url");
                self.addresses.insert(secret.clone(), address(&variable)?);
                Some(Given {
                    text,
                    secret: Some(secret),
                })
            }
            (Place::External { url_secret }, Part::Url) => Some(self.required(url_secret, name)),
            (
                Place::Bucket {
                    endpoint,
                    bucket,
                    region,
                    path_style,
                    access_key_secret,
                    secret_key_secret,
                },
                part,
            ) => match part {
                Part::Endpoint => open(literal(endpoint.as_deref()?)),
                Part::Bucket => open(literal(bucket)),
                Part::Region => open(literal(region)),
                Part::PathStyle => open(path_style.to_string()),
                Part::AccessKey => Some(self.required(access_key_secret, name)),
                Part::SecretKey => Some(self.required(secret_key_secret, name)),
                Part::Url | Part::PoolMax | Part::PoolMin | Part::PoolTimeout | Part::PoolIdle => {
                    None
                }
            },
            (Place::Managed { .. } | Place::External { .. }, _) => None,
        }
    }

    fn required(&mut self, secret: &str, name: &StoreName) -> Given {
        self.variables.insert(
            secret.to_owned(),
            format!("the store `{name}` is reached with it"),
        );
        Given {
            text: format!("${{{secret}:?write it to .env}}"),
            secret: Some(secret.to_owned()),
        }
    }
}

/// The settings as arguments of the server.
fn command(engine: Engine, settings: &BTreeMap<String, String>) -> Vec<String> {
    let mut argv = Vec::new();
    match engine {
        Engine::Postgres => {
            argv.push("postgres".to_owned());
            for (key, value) in settings {
                argv.extend(["-c".to_owned(), literal(&format!("{key}={value}"))]);
            }
        }
        Engine::Redis => {
            // The server reads its password as its configuration: in an argument all of the host would see it.
            let mut line = "exec redis-server - --appendonly yes".to_owned();
            for (key, value) in settings {
                let value = value.replace('\'', "'\\''");
                line.push_str(&format!(" --{key} '{}'", literal(&value)));
            }
            line.push_str(" <<END\nrequirepass \"$$REDIS_PASSWORD\"\nEND\n");
            argv.extend(["sh".to_owned(), "-c".to_owned(), line]);
        }
        Engine::Mariadb | Engine::Mysql | Engine::S3 => {
            argv.push("mariadbd".to_owned());
            argv.extend(
                settings
                    .iter()
                    .map(|(key, value)| literal(&format!("--{key}={value}"))),
            );
        }
    }
    argv
}
