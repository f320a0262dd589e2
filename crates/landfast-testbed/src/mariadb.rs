//! MariaDB 10.11 in a private folder.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;

use crate::{
    StartError,
    folder::{Folder, account, program},
    ports::free_port,
    postgres::{write, write_private},
    process::{Server, run},
};

const PACKAGE: &str = "mariadb-server";

/// A MariaDB server with the user `landfast` (all rights, password over TCP and socket).
pub struct Mariadb {
    server: Option<Server>,
    folder: Folder,
    port: u16,
    user: Option<(u32, u32)>,
    arguments: Vec<String>,
}

/// The user's password. It opens nothing but a loopback port that lives as long as a test.
const PASSWORD: &str = "testbed";

impl Mariadb {
    /// Starts a server with few resources.
    pub fn start() -> Result<Self, StartError> {
        let mut this = Self::stopped()?;
        this.boot()?;
        Ok(this)
    }

    /// Starts a server that speaks TLS with this certificate and key (PEM), and over TCP nothing else.
    pub fn with_tls(certificate: &str, key: &str) -> Result<Self, StartError> {
        let mut this = Self::stopped()?;
        this.arguments
            .push("--require-secure-transport=ON".to_owned());
        for (argument, name, text) in [
            ("--ssl-cert", "certificate.pem", certificate),
            ("--ssl-key", "key.pem", key),
        ] {
            let path = this.folder.path().join(name);
            write_private(&path, text, this.user)?;
            this.arguments
                .push(format!("{argument}={}", path.display()));
        }
        this.boot()?;
        Ok(this)
    }

    fn stopped() -> Result<Self, StartError> {
        let user = account("mysql");
        let folder = Folder::new("mariadb", user)?;
        // A server that starts removes what looks like temporary tables in its folder for them, also those of another.
        let mut install = Command::new(program("mariadb-install-db", PACKAGE, &["/usr/bin"])?);
        install
            .arg("--no-defaults")
            .arg(format!(
                "--datadir={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--tmpdir={}", folder.path().display()))
            .args(["--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg("--skip-name-resolve");
        run(install, user, "mariadb-install-db")?;
        // Read by the server itself as it starts: no client has to be let in without a password first.
        write(
            &folder.path().join("init.sql"),
            &format!(
                "CREATE USER IF NOT EXISTS landfast@'%' IDENTIFIED BY '{PASSWORD}';\n\
                 GRANT ALL ON *.* TO landfast@'%' WITH GRANT OPTION;\n\
                 CREATE DATABASE IF NOT EXISTS app CHARACTER SET utf8mb4;\n"
            ),
        )?;
        Ok(Self {
            server: None,
            port: free_port()?,
            folder,
            user,
            arguments: Vec::new(),
        })
    }

    /// Starts the server again after [`Mariadb::stop`] or [`Mariadb::kill`], on the same folder and port.
    pub fn boot(&mut self) -> Result<(), StartError> {
        let mut command = Command::new(program("mariadbd", PACKAGE, &["/usr/sbin", "/usr/bin"])?);
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        command
            .arg("--no-defaults")
            .arg(format!("--datadir={}", at("data")))
            .arg(format!("--tmpdir={}", at("data")))
            .arg(format!("--socket={}", at("s")))
            .arg(format!("--pid-file={}", at("pid")))
            .arg(format!("--init-file={}", at("init.sql")))
            .arg(format!("--port={}", self.port))
            .args(["--bind-address=127.0.0.1", "--skip-name-resolve"])
            .args([
                "--innodb-buffer-pool-size=32M",
                "--innodb-flush-log-at-trx-commit=0",
            ])
            .args(["--innodb-log-file-size=16M", "--performance-schema=OFF"])
            .args(&self.arguments);
        let mut server = Server::start(command, self.user, &self.folder.path().join("log"))?;
        self.folder.note_server(server.pid());
        server.wait_ready(|| self.sql("app", "SELECT 1").is_ok())?;
        self.server = Some(server);
        Ok(())
    }

    /// Ends the server in an orderly way.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.end(Signal::TERM);
        }
    }

    /// Kills the server as a crash would; its folder stays.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// The loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection URL of the user `landfast`, over TCP (`app` is there from the start).
    pub fn url(&self, database: &str) -> String {
        format!(
            "mysql://landfast:{PASSWORD}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// Runs SQL through the `mariadb` client; gives rows as bare text, columns separated by tabs.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String, StartError> {
        let mut client = Command::new(program("mariadb", "mariadb-client", &["/usr/bin"])?);
        client
            .args([
                "--no-defaults",
                "--batch",
                "--skip-column-names",
                "--user=landfast",
            ])
            .arg(format!("--password={PASSWORD}"))
            .arg(format!("--socket={}", self.socket().display()))
            .args(["--database", database, "--execute", sql]);
        run(client, None, "mariadb").map(|text| text.trim_end().to_owned())
    }

    /// The folder of the data.
    pub fn data_folder(&self) -> PathBuf {
        Path::new(self.folder.path()).join("data")
    }
}
