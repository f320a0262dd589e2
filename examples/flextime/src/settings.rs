//! Settings from the environment, typed; all problems are named at once.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use crate::log::Level;

/// How this process runs.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub host: IpAddr,
    pub port: u16,
    pub data: PathBuf,
    /// Tells apart the files of processes that share a data folder.
    pub instance: String,
    pub log_level: Level,
    /// When set, `/v2` asks for it as a bearer token.
    pub api_key: Option<ApiKey>,
    /// When set, constraints and history are kept there instead of in the data folder.
    pub database: Option<Database>,
    pub workers_max: usize,
    pub cache_ttl: Duration,
    pub cache_entries_max: usize,
    pub evaluation_timeout: Duration,
    pub history_retention: Duration,
}

/// A key that does not print.
#[derive(Clone)]
pub(crate) struct ApiKey(String);

impl ApiKey {
    /// Compares in a time that does not depend on where the two differ.
    pub(crate) fn is(&self, offered: &str) -> bool {
        let (own, offered) = (self.0.as_bytes(), offered.as_bytes());
        own.len() == offered.len()
            && own.iter().zip(offered).fold(0, |all, (a, b)| all | (a ^ b)) == 0
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("••••")
    }
}

/// The address of a database. It does not print, for it holds a password.
#[derive(Clone)]
pub(crate) struct Database(String);

impl Database {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("••••")
    }
}

/// Every problem of the environment.
#[derive(Debug)]
pub(crate) struct SettingsError(pub(crate) Vec<String>);

impl Settings {
    /// Reads the variables through `get`.
    pub(crate) fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let mut reader = Reader {
            get,
            problems: Vec::new(),
        };
        let data = ["VOLUME_DATA", "DATA_DIR"]
            .into_iter()
            .find_map(|name| (reader.get)(name));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let settings = Self {
            host: reader.one(
                "HOST",
                "an IP address",
                IpAddr::from([127, 0, 0, 1]),
                |text| text.parse().ok(),
            ),
            port: reader.one("PORT", "a port", 3000, |text| text.parse().ok()),
            data: PathBuf::from(data.unwrap_or_else(|| "data".to_owned())),
            instance: (reader.get)("LANDFAST_INSTANCE")
                .map(|name| name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "-"))
                .unwrap_or_else(|| format!("pid{}", std::process::id())),
            log_level: reader.one(
                "LOG_LEVEL",
                "debug, info, warn or error",
                Level::Info,
                Level::parse,
            ),
            api_key: (reader.get)("API_KEY")
                .filter(|key| !key.is_empty())
                .map(ApiKey),
            database: (reader.get)("DATABASE_URL")
                .filter(|url| !url.is_empty())
                .map(Database),
            workers_max: reader.one("MAX_WORKERS", "a number from 1 to 256", cores, |text| {
                text.parse().ok().filter(|count| (1..=256).contains(count))
            }),
            cache_ttl: reader.one("CACHE_TTL", DURATION, Duration::from_secs(3600), duration),
            cache_entries_max: reader.one(
                "CACHE_MAX_SIZE",
                "a number of entries",
                10_000,
                |text| text.parse().ok(),
            ),
            evaluation_timeout: reader.one(
                "EVALUATION_TIMEOUT",
                DURATION,
                Duration::from_secs(10),
                duration,
            ),
            history_retention: reader.one(
                "HISTORY_RETENTION",
                DURATION,
                Duration::from_secs(30 * 86_400),
                duration,
            ),
        };
        match reader.problems.is_empty() {
            true => Ok(settings),
            false => Err(SettingsError(reader.problems)),
        }
    }
}

const DURATION: &str = "a duration such as 30s, 1h or a number of milliseconds";

struct Reader<G> {
    get: G,
    problems: Vec<String>,
}

impl<G: Fn(&str) -> Option<String>> Reader<G> {
    fn one<T>(
        &mut self,
        name: &str,
        wanted: &str,
        default: T,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let Some(text) = (self.get)(name) else {
            return default;
        };
        parse(text.trim()).unwrap_or_else(|| {
            self.problems
                .push(format!("{name} is `{text}`, but must be {wanted}"));
            default
        })
    }
}

/// `250ms`, `30s`, `5m`, `1h`, `30d`, or a bare number of milliseconds.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "" | "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_all_problems_at_once() {
        let SettingsError(problems) = Settings::read(|name| match name {
            "PORT" => Some("99999".to_owned()),
            "CACHE_TTL" => Some("soon".to_owned()),
            "MAX_WORKERS" => Some("0".to_owned()),
            _ => None,
        })
        .unwrap_err();
        assert_eq!(problems.len(), 3);
        assert!(problems[0].starts_with("PORT is `99999`"));
    }

    #[test]
    fn takes_bare_numbers_as_milliseconds() {
        assert_eq!(duration("3600000"), duration("1h"));
        assert_eq!(duration("30d"), Some(Duration::from_secs(2_592_000)));
        assert_eq!(duration("-1"), None);
        assert_eq!(duration("1 h"), None);
    }

    #[test]
    fn prefers_the_volume_and_hides_the_key() {
        let settings = Settings::read(|name| match name {
            "VOLUME_DATA" => Some("/volume".to_owned()),
            "DATA_DIR" => Some("/other".to_owned()),
            "API_KEY" => Some("hunter2".to_owned()),
            _ => None,
        })
        .unwrap();
        assert_eq!(settings.data, PathBuf::from("/volume"));
        assert!(!format!("{settings:?}").contains("hunter2"));
        let key = settings.api_key.unwrap();
        assert!(key.is("hunter2") && !key.is("hunter3") && !key.is("hunter22"));
    }
}
