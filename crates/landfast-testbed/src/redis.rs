//! Redis 7.0 in a private folder.

use std::{path::PathBuf, process::Command};

use rustix::process::Signal;

use crate::{
    StartError,
    folder::{Folder, program},
    ports::free_port,
    process::{Server, run},
};

const PACKAGE: &str = "redis-server";

/// A Redis server without a password, appending to its log.
pub struct Redis {
    server: Option<Server>,
    folder: Folder,
    port: u16,
}

impl Redis {
    /// Starts a server with few resources.
    pub fn start() -> Result<Self, StartError> {
        let mut this = Self {
            server: None,
            folder: Folder::new("redis", None)?,
            port: free_port()?,
        };
        this.boot()?;
        Ok(this)
    }

    /// Starts the server again after [`Redis::stop`] or [`Redis::kill`], on the same folder and port.
    pub fn boot(&mut self) -> Result<(), StartError> {
        let mut command = Command::new(program("redis-server", PACKAGE, &["/usr/bin"])?);
        command
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args([
                "--appendonly",
                "yes",
                "--save",
                "",
                "--maxmemory",
                "64mb",
                "--dir",
            ])
            .arg(self.folder.path())
            .arg("--unixsocket")
            .arg(self.socket());
        let mut server = Server::start(command, None, &self.folder.path().join("log"))?;
        self.folder.note_server(server.pid());
        server.wait_ready(|| self.command(&["PING"]).is_ok_and(|answer| answer == "PONG"))?;
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

    /// A connection URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Runs one command through `redis-cli`.
    pub fn command(&self, words: &[&str]) -> Result<String, StartError> {
        let mut client = Command::new(program("redis-cli", "redis-tools", &["/usr/bin"])?);
        client.arg("-s").arg(self.socket()).args(words);
        run(client, None, "redis-cli").map(|text| text.trim_end().to_owned())
    }
}
