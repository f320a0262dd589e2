//! Settings from the environment, typed; all problems are named at once.

use std::net::IpAddr;

use crate::log::Level;

/// How this process runs. What opens a store does not print.
pub(crate) struct Settings {
    pub host: IpAddr,
    pub port: u16,
    /// What `/api/health` calls this release.
    pub version: String,
    pub log_level: Level,
    /// `mysql://…`, with the password in it.
    pub database: String,
    /// Connections to the database, at most.
    pub database_connections_max: usize,
    /// `redis://…`, with the password in it.
    pub cache: String,
    pub bucket: Bucket,
}

/// Where documents lie.
pub(crate) struct Bucket {
    pub endpoint: String,
    pub name: String,
    pub region: String,
    pub path_style: bool,
    pub access_key: String,
    pub secret_key: String,
}

/// Every problem of the environment. Values of what opens a store are not in it.
#[derive(Debug)]
pub(crate) struct SettingsError(pub(crate) Vec<String>);

impl Settings {
    /// Reads the variables through `get`.
    pub(crate) fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let version = ["APP_VERSION", "LANDFAST_RELEASE"]
            .into_iter()
            .find_map(&get);
        let settings = Self {
            host: one(
                &get,
                &mut problems,
                "HOST",
                "an IP address",
                IpAddr::from([127, 0, 0, 1]),
                |text| text.parse().ok(),
            ),
            port: one(&get, &mut problems, "PORT", "a port", 3000, |text| {
                text.parse().ok()
            }),
            version: version.unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
            log_level: one(
                &get,
                &mut problems,
                "LOG_LEVEL",
                "debug, info, warn or error",
                Level::Info,
                Level::parse,
            ),
            database: needed(&get, &mut problems, "DATABASE_URL"),
            database_connections_max: one(
                &get,
                &mut problems,
                "DATABASE_CONNECTIONS_MAX",
                "a number from 1 to 200",
                10,
                |text| text.parse().ok().filter(|count| (1..=200).contains(count)),
            ),
            cache: needed(&get, &mut problems, "REDIS_URL"),
            bucket: Bucket {
                endpoint: needed(&get, &mut problems, "S3_ENDPOINT"),
                name: needed(&get, &mut problems, "S3_BUCKET"),
                region: needed(&get, &mut problems, "S3_REGION"),
                path_style: one(
                    &get,
                    &mut problems,
                    "S3_PATH_STYLE",
                    "true or false",
                    true,
                    |text| text.parse().ok(),
                ),
                access_key: needed(&get, &mut problems, "S3_ACCESS_KEY_ID"),
                secret_key: needed(&get, &mut problems, "S3_SECRET_ACCESS_KEY"),
            },
        };
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(SettingsError(problems))
        }
    }
}

fn one<T>(
    get: impl Fn(&str) -> Option<String>,
    problems: &mut Vec<String>,
    name: &str,
    wanted: &str,
    default: T,
    parse: impl Fn(&str) -> Option<T>,
) -> T {
    let Some(text) = get(name) else {
        return default;
    };
    parse(text.trim()).unwrap_or_else(|| {
        problems.push(format!("{name} is `{text}`, but must be {wanted}"));
        default
    })
}

fn needed(get: impl Fn(&str) -> Option<String>, problems: &mut Vec<String>, name: &str) -> String {
    get(name)
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| {
            problems.push(format!("{name} is missing"));
            String::new()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_all_problems_at_once() {
        let read = Settings::read(|name| (name == "PORT").then(|| "99999".to_owned()));
        let SettingsError(problems) = read.err().expect("much is missing");
        assert_eq!(problems[0], "PORT is `99999`, but must be a port");
        assert!(problems.contains(&"S3_BUCKET is missing".to_owned()));
        assert_eq!(problems.len(), 8);
    }
}
