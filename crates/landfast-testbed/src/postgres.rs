//! PostgreSQL 15 in a private folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;

use crate::{
    StartError,
    folder::{Folder, account, program},
    ports::free_port,
    process::{Server, run},
};

const BINARIES: &[&str] = &["/usr/lib/postgresql/15/bin", "/usr/local/bin", "/usr/bin"];
const PACKAGE: &str = "postgresql-15";

/// A PostgreSQL server with the superuser `postgres`, password authentication over TCP and trust over its socket.
pub struct Postgres {
    // Dropped first: the server has to be gone before its folder is.
    server: Option<Server>,
    folder: Folder,
    port: u16,
    settings: Vec<String>,
    user: Option<(u32, u32)>,
}

/// The superuser's password. It opens nothing but a loopback port that lives as long as a test.
const PASSWORD: &str = "testbed";

impl Postgres {
    /// Starts a server with few resources.
    pub fn start() -> Result<Self, StartError> {
        Self::with_settings(&[])
    }

    /// Starts a server with settings of its own, as in `postgresql.conf`: `("wal_level", "logical")`.
    pub fn with_settings(settings: &[(&str, &str)]) -> Result<Self, StartError> {
        let mut this = Self::stopped(settings, &[])?;
        this.boot()?;
        Ok(this)
    }

    /// As [`Postgres::with_settings`], with a checksum in every page.
    pub fn with_checksums(settings: &[(&str, &str)]) -> Result<Self, StartError> {
        let mut this = Self::stopped(settings, &["--data-checksums"])?;
        this.boot()?;
        Ok(this)
    }

    /// Starts a server that speaks TLS with this certificate and key (PEM), and over TCP nothing else.
    pub fn with_tls(certificate: &str, key: &str) -> Result<Self, StartError> {
        let mut this = Self::stopped(&[("ssl", "on")], &[])?;
        for (setting, name, text) in [
            ("ssl_cert_file", "certificate.pem", certificate),
            ("ssl_key_file", "key.pem", key),
        ] {
            let path = this.folder.path().join(name);
            write_private(&path, text, this.user)?;
            this.settings.push(format!("{setting}={}", path.display()));
        }
        let access = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
        write(&this.folder.path().join("data/pg_hba.conf"), access)?;
        this.boot()?;
        Ok(this)
    }

    fn stopped(settings: &[(&str, &str)], how: &[&str]) -> Result<Self, StartError> {
        let user = account("postgres");
        let folder = Folder::new("postgres", user)?;
        let password = folder.path().join("password");
        write(&password, PASSWORD)?;
        let mut initdb = Command::new(program("initdb", PACKAGE, BINARIES)?);
        initdb
            .arg("--pgdata")
            .arg(folder.path().join("data"))
            .args([
                "--username=postgres",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
            ])
            .args(["--encoding=UTF8", "--no-locale", "--no-sync"])
            .args(how)
            .arg(format!("--pwfile={}", password.display()));
        run(initdb, user, "initdb")?;
        Ok(Self {
            server: None,
            port: free_port()?,
            settings: settings
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            folder,
            user,
        })
    }

    /// Starts the server again after [`Postgres::stop`] or [`Postgres::kill`], on the same folder and port.
    pub fn boot(&mut self) -> Result<(), StartError> {
        let mut command = Command::new(program("postgres", PACKAGE, BINARIES)?);
        command
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .arg("-k")
            .arg(self.folder.path())
            .arg("-p")
            .arg(self.port.to_string());
        let fixed = [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "shared_buffers=32MB",
            "max_connections=60",
            "log_min_messages=warning",
        ];
        for setting in fixed
            .iter()
            .copied()
            .chain(self.settings.iter().map(String::as_str))
        {
            command.arg("-c").arg(setting);
        }
        let mut server = Server::start(command, self.user, &self.folder.path().join("log"))?;
        self.folder.note_server(server.pid());
        let socket = self.folder.path().display().to_string();
        let port = self.port.to_string();
        let isready = program(
            "pg_isready",
            PACKAGE,
            &["/usr/lib/postgresql/15/bin", "/usr/bin"],
        )?;
        server.wait_ready(|| {
            let mut probe = Command::new(&isready);
            probe.args(["--quiet", "--host", &socket, "--port", &port]);
            run(probe, None, "pg_isready").is_ok()
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// Ends the server in an orderly way (fast shutdown).
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.end(Signal::INT);
        }
    }

    /// Kills the server as a crash would; its folder stays.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Where the socket lies.
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// The loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection URL of the superuser, over TCP, for a database (`postgres` is there from the start).
    pub fn url(&self, database: &str) -> String {
        self.url_of("postgres", PASSWORD, database)
    }

    /// A connection URL of any role.
    pub fn url_of(&self, role: &str, password: &str, database: &str) -> String {
        format!(
            "postgres://{role}:{password}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// Runs SQL as the superuser through `psql`, which stops at the first error; gives rows as bare text, columns
    /// separated by `|`.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String, StartError> {
        let mut psql = Command::new(program("psql", "postgresql-client-15", &["/usr/bin"])?);
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .args([
                "--set",
                "ON_ERROR_STOP=1",
                "--username",
                "postgres",
                "--host",
            ])
            .arg(self.folder.path())
            .args([
                "--port",
                &self.port.to_string(),
                "--dbname",
                database,
                "--command",
                sql,
            ]);
        run(psql, None, "psql").map(|text| text.trim_end().to_owned())
    }

    /// The folder of the data, for tests that look at or damage it.
    pub fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown: the postmaster takes its children along, where SIGKILL would leave them for a while.
        if let Some(mut server) = self.server.take() {
            server.end(Signal::QUIT);
        }
    }
}

/// A file that only the server's user reads.
pub(crate) fn write_private(
    path: &Path,
    text: &str,
    user: Option<(u32, u32)>,
) -> Result<(), StartError> {
    use std::os::unix::fs::{OpenOptionsExt as _, chown};
    let write = || {
        let mut options = fs::File::options();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        match user {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    };
    write().map_err(|source| StartError::Io {
        what: format!("write {}", path.display()),
        source,
    })
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), StartError> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
        .map_err(|source| StartError::Io {
            what: format!("write {}", path.display()),
            source,
        })
}
