//! PgBouncer before a PostgreSQL of this crate.

use std::{net::TcpStream, process::Command};

use crate::{
    Postgres, StartError,
    folder::{Folder, account, program},
    ports::free_port,
    postgres::write,
    process::Server,
};

/// A pooling proxy that hands a server connection to another client after each transaction (`transaction`), or when the
/// client leaves (`session`).
pub struct PgBouncer {
    _server: Server,
    _folder: Folder,
    port: u16,
}

impl PgBouncer {
    /// Starts one before a server; `mode` is PgBouncer's `pool_mode`.
    pub fn start(postgres: &Postgres, mode: &str) -> Result<Self, StartError> {
        let user = account("postgres");
        let folder = Folder::new("pgbouncer", user)?;
        let port = free_port()?;
        write(&folder.path().join("users"), "\"postgres\" \"testbed\"\n")?;
        write(
            &folder.path().join("ini"),
            &format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 listen_port = {port}\nunix_socket_dir =\nauth_type = plain\nauth_file = {}\n\
                 pool_mode = {mode}\ndefault_pool_size = 4\nmax_client_conn = 50\n\
                 ignore_startup_parameters = extra_float_digits,options\n",
                postgres.port(),
                folder.path().join("users").display(),
            ),
        )?;
        let mut command = Command::new(program("pgbouncer", "pgbouncer", &["/usr/sbin"])?);
        command.arg(folder.path().join("ini"));
        let mut server = Server::start(command, user, &folder.path().join("log"))?;
        folder.note_server(server.pid());
        server.wait_ready(|| TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        Ok(Self {
            _server: server,
            _folder: folder,
            port,
        })
    }

    /// A connection URL of the superuser through the proxy.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://postgres:testbed@127.0.0.1:{}/{database}",
            self.port
        )
    }
}
