//! Addresses of stores of somebody else, and connections to them: what the libraries cannot read is read here.
//!
//! PostgreSQL: `sslmode` (`disable`, `prefer`, `require`, `verify-ca`, `verify-full`) and `sslrootcert`, as libpq reads them.
//! MySQL and MariaDB: `ssl-mode` (`DISABLED`, `REQUIRED`, `VERIFY_CA`, `VERIFY_IDENTITY`) and `ssl-ca`, as MySQL's own
//! clients read them, or what `mysql_async` reads (`require_ssl`, `verify_ca`). Where a certificate is checked its name is, too:
//! the library's way of leaving the name out goes by the text of an error that rustls does not write (any more).

use std::{path::PathBuf, time::Duration};

use landfast_types::Secret;
use mysql_async::{Conn, DriverError, Opts, OptsBuilder, SslOpts};
use tokio::task::JoinSet;
use tokio_postgres::{
    Client, Config, NoTls,
    config::{ChannelBinding, Host, SslMode},
};

use crate::{
    StoreError,
    tls::{self, Connector, Protection, Words},
};

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A connection on which nothing comes is asked after this; one whose other end is gone without a word ends within a minute.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;
/// tokio-postgres' own, where the address says nothing.
const KEEPALIVE_UNSAID: Duration = Duration::from_secs(2 * 3_600);

/// What the host trusts, for PostgreSQL's own programs: before version 16 they know no word for it.
const HOST_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

const POSTGRES_WORDS: Words = Words {
    authority: "sslrootcert",
    without_name: Some("sslmode=verify-ca"),
};
const MYSQL_WORDS: Words = Words {
    authority: "ssl-ca",
    without_name: None,
};

/// Where a PostgreSQL is, and how the way there is protected.
#[derive(Clone)]
pub struct PostgresAddress {
    config: Config,
    protection: Protection,
    authority: Option<PathBuf>,
}

/// A client and the task that drives its connection; dropped, both end.
pub struct PostgresConnection {
    pub client: Client,
    _connection: JoinSet<()>,
}

impl PostgresAddress {
    /// Reads `postgres://…`, or the older form of `key=value`.
    ///
    /// # Errors
    /// [`StoreError`]; never with a part of the address in it but the word that is wrong.
    pub fn parse(url: &Secret<String>) -> Result<Self, StoreError> {
        let mut found = Found::default();
        let text = url.reveal();
        let is_url = text.starts_with("postgres://") || text.starts_with("postgresql://");
        let rest = match is_url {
            true => without(text, |name, value| found.postgres(name, value))?,
            false => Secret::new(text.clone()),
        };
        let config: Result<Config, _> = rest.reveal().parse();
        let mut config = config.map_err(|_| StoreError::Address("postgres://…"))?;
        if config.get_keepalives_idle() == KEEPALIVE_UNSAID {
            config.keepalives_idle(KEEPALIVE_AFTER);
        }
        if config.get_keepalives_interval().is_none() {
            config.keepalives_interval(KEEPALIVE_EVERY);
        }
        if config.get_keepalives_retries().is_none() {
            config.keepalives_retries(KEEPALIVE_TRIES);
        }
        if config.get_tcp_user_timeout().is_none() {
            // What was sent and not confirmed, which keepalives do not see.
            config.tcp_user_timeout(KEEPALIVE_AFTER + KEEPALIVE_EVERY * KEEPALIVE_TRIES);
        }
        let is_weak = |protection| protection != Protection::Full;
        if found.trusts_host && found.protection.is_some_and(is_weak) {
            // libpq refuses it as well: every authority of the host would do for whatever name.
            return Err(StoreError::Parameter(
                "`sslrootcert=system` asks for `sslmode=verify-full`",
            ));
        }
        let written = found
            .protection
            .or(found.trusts_host.then_some(Protection::Full));
        let protection = written.unwrap_or(match config.get_ssl_mode() {
            SslMode::Disable => Protection::Off,
            SslMode::Require => Protection::Encrypted,
            SslMode::Prefer | _ => Protection::Preferred,
        });
        let is_local = |host: &Host| matches!(host, Host::Unix(_));
        let protection = match (protection, &found.authority) {
            // As libpq does: a socket of the host is never in TLS, and who names an authority means it.
            _ if config.get_hosts().iter().all(is_local) => Protection::Off,
            (Protection::Encrypted, Some(_)) => Protection::Authority,
            (protection, _) => protection,
        };
        if protection == Protection::Off && config.get_channel_binding() == ChannelBinding::Require
        {
            return Err(StoreError::Parameter(
                "`channel_binding=require` asks for TLS, which `sslmode` turns off",
            ));
        }
        config.ssl_mode(match protection {
            Protection::Off => SslMode::Disable,
            Protection::Preferred => SslMode::Prefer,
            Protection::Encrypted | Protection::Authority | Protection::Full => SslMode::Require,
        });
        Ok(Self {
            config,
            protection,
            authority: found.authority,
        })
    }

    /// How the way there is protected.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// Whether the way there does not leave this host.
    pub fn is_local(&self) -> bool {
        let addresses = self.config.get_hostaddrs();
        if !addresses.is_empty() {
            return addresses.iter().all(std::net::IpAddr::is_loopback);
        }
        self.config.get_hosts().iter().all(|host| match host {
            Host::Tcp(name) => is_loopback(name),
            Host::Unix(_) => true,
        })
    }

    /// The name of the application the address gives, if it gives one.
    pub fn application_name(&self) -> Option<&str> {
        self.config.get_application_name()
    }

    /// Calls the sessions by another name.
    pub fn set_application_name(&mut self, name: &str) {
        self.config.application_name(name);
    }

    /// The database it leads to.
    pub fn database(&self) -> Option<&str> {
        self.config.get_dbname().or(self.config.get_user())
    }

    /// The variables that lead PostgreSQL's own programs to the same server in the same way.
    pub fn variables(&self) -> Vec<(&'static str, Secret<String>)> {
        let config = &self.config;
        let mut variables = Vec::new();
        let mut add = |name, value: String| {
            if !value.is_empty() {
                variables.push((name, Secret::new(value)));
            }
        };
        let joined = |parts: Vec<String>| parts.join(",");
        let hosts = config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(folder) => folder.display().to_string(),
        });
        add("PGHOST", joined(hosts.collect()));
        let addresses = config.get_hostaddrs().iter().map(ToString::to_string);
        add("PGHOSTADDR", joined(addresses.collect()));
        let ports = config.get_ports().iter().map(ToString::to_string);
        add("PGPORT", joined(ports.collect()));
        add("PGUSER", config.get_user().unwrap_or_default().to_owned());
        add("PGDATABASE", self.database().unwrap_or_default().to_owned());
        if let Some(password) = config.get_password() {
            add("PGPASSWORD", String::from_utf8_lossy(password).into_owned());
        }
        add(
            "PGOPTIONS",
            config.get_options().unwrap_or_default().to_owned(),
        );
        add("PGCONNECT_TIMEOUT", CONNECT_MAX.as_secs().to_string());
        let mode = match self.protection {
            Protection::Off => "disable",
            Protection::Preferred => "prefer",
            Protection::Encrypted => "require",
            Protection::Authority => "verify-ca",
            Protection::Full => "verify-full",
        };
        add("PGSSLMODE", mode.to_owned());
        let authority = match (&self.authority, self.protection) {
            (Some(path), _) => path.display().to_string(),
            (None, Protection::Authority | Protection::Full) => HOST_AUTHORITIES.to_owned(),
            (None, Protection::Off | Protection::Preferred | Protection::Encrypted) => {
                String::new()
            }
        };
        add("PGSSLROOTCERT", authority);
        if config.get_channel_binding() == ChannelBinding::Require {
            add("PGCHANNELBINDING", "require".to_owned());
        }
        variables
    }

    /// Connects and logs in, within ten seconds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connect(&self) -> Result<PostgresConnection, StoreError> {
        self.connect_within(CONNECT_MAX).await
    }

    async fn connect_within(&self, max: Duration) -> Result<PostgresConnection, StoreError> {
        // Who accepts a connection may say nothing more: a paused pooler, a server that was stopped.
        let connected = tokio::time::timeout(max, self.reach()).await;
        connected.unwrap_or(Err(StoreError::Silent))
    }

    async fn reach(&self) -> Result<PostgresConnection, StoreError> {
        let mut tasks = JoinSet::new();
        let client = if self.protection == Protection::Off {
            let (client, connection) = self
                .config
                .connect(NoTls)
                .await
                .map_err(|source| self.failed(source))?;
            tasks.spawn(drive(connection));
            client
        } else {
            let binds = self.config.get_channel_binding() == ChannelBinding::Require;
            let connector = Connector::new(self.protection, self.authority.as_deref(), binds)?;
            let (client, connection) = self
                .config
                .connect(connector)
                .await
                .map_err(|source| self.failed(source))?;
            tasks.spawn(drive(connection));
            client
        };
        Ok(PostgresConnection {
            client,
            _connection: tasks,
        })
    }

    fn failed(&self, source: tokio_postgres::Error) -> StoreError {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.as_str(),
            Some(Host::Unix(_)) | None => "the server",
        };
        match tls::untrusted(&source, host, self.authority.as_ref(), &POSTGRES_WORDS) {
            Some(reason) => StoreError::Untrusted { reason },
            None => StoreError::Postgres {
                doing: "connect",
                source,
            },
        }
    }
}

async fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended");
    }
}

/// Where a MySQL or MariaDB is, and how the way there is protected.
#[derive(Clone)]
pub struct MysqlAddress {
    options: Opts,
    protection: Protection,
    authority: Option<PathBuf>,
}

impl MysqlAddress {
    /// Reads `mysql://…` or `mariadb://…`.
    ///
    /// # Errors
    /// [`StoreError`]; never with a part of the address in it but the word that is wrong.
    pub fn parse(url: &Secret<String>) -> Result<Self, StoreError> {
        let mut found = Found::default();
        // The scheme of the field's tools, and the one the library reads.
        let text = Secret::new(url.reveal().replacen("mariadb://", "mysql://", 1));
        let rest = without(text.reveal(), |name, value| found.mysql(name, value))?;
        let options = Opts::from_url(rest.reveal());
        let options = options.map_err(|_| StoreError::Address("mysql://…"))?;
        let written = match options.ssl_opts() {
            None => Protection::Preferred,
            Some(ssl) if ssl.accept_invalid_certs() => Protection::Encrypted,
            Some(_) => Protection::Full,
        };
        let protection = match (found.protection, &found.authority) {
            (Some(Protection::Encrypted) | None, Some(_)) => Protection::Full,
            (Some(protection), _) => protection,
            (None, None) => written,
        };
        Ok(Self {
            options,
            protection,
            authority: found.authority,
        })
    }

    /// How the way there is protected.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// Whether the way there does not leave this host.
    pub fn is_local(&self) -> bool {
        is_loopback(self.options.ip_or_hostname())
    }

    /// Connects and logs in, within ten seconds; where TLS is preferred and the server has none, without it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connect(&self) -> Result<Conn, StoreError> {
        let connected = tokio::time::timeout(CONNECT_MAX, async {
            match self.reach(self.ssl()?).await {
                Err(mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer))
                    if self.protection == Protection::Preferred =>
                {
                    Ok(self.reach(None).await)
                }
                reached => Ok::<_, StoreError>(reached),
            }
        });
        let connected = connected.await.map_err(|_| StoreError::Silent)??;
        connected.map_err(|source| self.failed(source))
    }

    async fn reach(&self, ssl: Option<SslOpts>) -> Result<Conn, mysql_async::Error> {
        let options = OptsBuilder::from_opts(self.options.clone())
            .prefer_socket(false)
            .tcp_keepalive(self.options.tcp_keepalive().or(Some(KEEPALIVE_AFTER)))
            .ssl_opts(ssl);
        Conn::new(options).await
    }

    fn ssl(&self) -> Result<Option<SslOpts>, StoreError> {
        let base = self.options.ssl_opts().cloned().unwrap_or_default();
        Ok(match self.protection {
            Protection::Off => None,
            Protection::Preferred | Protection::Encrypted => Some(
                base.with_danger_accept_invalid_certs(true)
                    .with_danger_skip_domain_validation(true),
            ),
            Protection::Authority | Protection::Full => {
                let trusted = tls::trusted(self.authority.as_deref())?;
                let trusted = trusted.into_iter().map(|one| one.to_vec().into());
                Some(
                    base.with_root_certs(trusted.collect())
                        .with_disable_built_in_roots(true)
                        .with_danger_accept_invalid_certs(false)
                        .with_danger_skip_domain_validation(false),
                )
            }
        })
    }

    fn failed(&self, source: mysql_async::Error) -> StoreError {
        let host = self.options.ip_or_hostname();
        match tls::untrusted(&source, host, self.authority.as_ref(), &MYSQL_WORDS) {
            Some(reason) => StoreError::Untrusted { reason },
            None => StoreError::Mariadb {
                doing: "connect",
                source,
            },
        }
    }
}

/// What an address says of TLS.
#[derive(Default)]
struct Found {
    protection: Option<Protection>,
    authority: Option<PathBuf>,
    /// It names the authorities of the host.
    trusts_host: bool,
}

impl Found {
    /// Whether a parameter of an address was of TLS, and is read.
    fn postgres(&mut self, name: &str, value: &str) -> Result<bool, StoreError> {
        match name {
            "sslmode" => {
                self.protection = Some(match value {
                    "disable" => Protection::Off,
                    "allow" | "prefer" => Protection::Preferred,
                    "require" => Protection::Encrypted,
                    "verify-ca" => Protection::Authority,
                    "verify-full" => Protection::Full,
                    _ => {
                        return Err(StoreError::Parameter(
                            "`sslmode` must be disable, prefer, require, verify-ca or verify-full",
                        ));
                    }
                });
            }
            // libpq's word for what the host trusts.
            "sslrootcert" if value == "system" => self.trusts_host = true,
            "sslrootcert" => self.authority = Some(PathBuf::from(value)),
            "sslcert" | "sslkey" => {
                return Err(StoreError::Parameter(
                    "certificates of clients (`sslcert`, `sslkey`) are not supported",
                ));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn mysql(&mut self, name: &str, value: &str) -> Result<bool, StoreError> {
        match name.replace('_', "-").as_str() {
            "ssl-mode" | "sslmode" => {
                self.protection = Some(
                    match value.to_ascii_uppercase().replace('-', "_").as_str() {
                        "DISABLED" => Protection::Off,
                        "PREFERRED" => Protection::Preferred,
                        "REQUIRED" => Protection::Encrypted,
                        "VERIFY_CA" | "VERIFY_IDENTITY" => Protection::Full,
                        _ => {
                            return Err(StoreError::Parameter(
                                "`ssl-mode` must be DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY",
                            ));
                        }
                    },
                );
            }
            "ssl-ca" => self.authority = Some(PathBuf::from(value)),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    address.map_or(host == "localhost", |address| address.is_loopback())
}

/// An address without the parameters that `read` takes.
fn without(
    url: &str,
    mut read: impl FnMut(&str, &str) -> Result<bool, StoreError>,
) -> Result<Secret<String>, StoreError> {
    let Some((front, query)) = url.split_once('?') else {
        return Ok(Secret::new(url.to_owned()));
    };
    let mut kept = Vec::new();
    for part in query.split('&') {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if !read(name, &decode(value))? {
            kept.push(part);
        }
    }
    let join = if kept.is_empty() { "" } else { "?" };
    Ok(Secret::new(format!("{front}{join}{}", kept.join("&"))))
}

/// `%2F` as `/`; what is no such pair stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let pair = after.get(..2).filter(|_| *first == b'%');
        let pair = pair.and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn postgres(url: &str) -> Result<PostgresAddress, StoreError> {
        PostgresAddress::parse(&Secret::new(url.to_owned()))
    }

    fn mysql(url: &str) -> Result<MysqlAddress, StoreError> {
        MysqlAddress::parse(&Secret::new(url.to_owned()))
    }

    #[test]
    fn what_an_address_says_of_tls_is_what_libpq_reads() {
        for (query, protection, authority) in [
            ("", Protection::Preferred, None),
            ("?sslmode=disable", Protection::Off, None),
            ("?sslmode=require", Protection::Encrypted, None),
            (
                "?sslmode=require&sslrootcert=%2Fetc%2Fca.pem",
                Protection::Authority,
                Some("/etc/ca.pem"),
            ),
            (
                "?sslrootcert=/etc/ca.pem&sslmode=verify-full",
                Protection::Full,
                Some("/etc/ca.pem"),
            ),
            ("?sslmode=verify-ca", Protection::Authority, None),
            ("?sslrootcert=system", Protection::Full, None),
            (
                "?sslrootcert=system&sslmode=verify-full",
                Protection::Full,
                None,
            ),
        ] {
            let read = postgres(&format!("postgres://a:b@h/d{query}")).unwrap();
            assert_eq!(read.protection(), protection, "{query}");
            assert_eq!(read.authority, authority.map(PathBuf::from), "{query}");
        }
        for (query, said) in [
            ("?sslrootcert=system&sslmode=require", "verify-full"),
            ("?sslmode=verify-ca&sslrootcert=system", "verify-full"),
            ("?sslmode=disable&channel_binding=require", "asks for TLS"),
        ] {
            let error = postgres(&format!("postgres://a:b@h/d{query}")).err();
            let error = error.unwrap_or_else(|| panic!("{query} is taken"));
            assert!(error.to_string().contains(said), "{error}");
        }
        let read = postgres("postgres://h/d?sslmode=verify-full&application_name=x").unwrap();
        assert_eq!(read.application_name(), Some("x"));
    }

    #[test]
    fn what_an_address_says_of_tls_is_what_mysql_reads() {
        for (query, protection) in [
            ("", Protection::Preferred),
            ("?ssl-mode=PREFERRED", Protection::Preferred),
            ("?ssl-mode=DISABLED", Protection::Off),
            ("?ssl-mode=REQUIRED", Protection::Encrypted),
            ("?ssl-mode=required&ssl-ca=/ca.pem", Protection::Full),
            ("?ssl_mode=VERIFY_CA", Protection::Full),
            ("?ssl-mode=VERIFY_IDENTITY&ssl-ca=/ca.pem", Protection::Full),
            ("?ssl-ca=/ca.pem", Protection::Full),
            ("?ssl-mode=DISABLED&ssl-ca=/ca.pem", Protection::Off),
            ("?require_ssl=true", Protection::Full),
            ("?require_ssl=true&verify_ca=false", Protection::Encrypted),
        ] {
            let read = mysql(&format!("mariadb://a:b@h/d{query}")).unwrap();
            assert_eq!(read.protection(), protection, "{query}");
        }
    }

    #[tokio::test]
    async fn a_server_that_accepts_and_is_silent_is_not_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for mode in ["disable", "require"] {
            let url = format!("postgres://a:b@127.0.0.1:{port}/d?sslmode={mode}");
            let address = postgres(&url).unwrap();
            let connected = address.connect_within(Duration::from_millis(200)).await;
            assert!(matches!(connected, Err(StoreError::Silent)), "{mode}");
        }
    }

    #[test]
    fn a_connection_notices_that_the_other_end_is_gone() {
        let config = postgres("postgres://h/d").unwrap().config;
        assert_eq!(config.get_keepalives_idle(), KEEPALIVE_AFTER);
        assert_eq!(config.get_keepalives_retries(), Some(KEEPALIVE_TRIES));
        assert!(config.get_tcp_user_timeout().is_some());
        // What the address says stays.
        let config = postgres("postgres://h/d?keepalives_idle=7&tcp_user_timeout=9");
        let config = config.unwrap().config;
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(7));
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(9)));
    }

    #[test]
    fn what_stays_on_the_host_is_known() {
        for (host, is_local) in [
            ("127.0.0.1", true),
            ("[::1]", true),
            ("localhost", true),
            ("%2Frun%2Fpostgresql", true),
            ("db.example", false),
            ("10.0.0.1", false),
            ("127.0.0.1,db.example", false),
        ] {
            let read = postgres(&format!("postgres://a:b@{host}/d")).unwrap();
            assert_eq!(read.is_local(), is_local, "{host}");
        }
        assert!(mysql("mysql://a:b@127.0.0.1/d").unwrap().is_local());
        assert!(!mysql("mysql://a:b@db.example/d").unwrap().is_local());
    }

    #[test]
    fn an_error_of_an_address_holds_nothing_of_it() {
        for url in [
            "postgres://login:hunter2@h/d?sslmode=hunter2",
            "postgres://login:hunter2@h/d?sslcert=hunter2",
            "postgres://login:hunter2@h:port/d",
        ] {
            let error = postgres(url).err().expect("it is refused");
            assert!(
                !format!("{error:?} {error}").contains("hunter2"),
                "{error:?}"
            );
        }
        let error = mysql("mysql://login:hunter2@h/d?ssl-mode=hunter2").err();
        assert!(error.is_some_and(|error| !format!("{error:?}").contains("hunter2")));
    }
}
