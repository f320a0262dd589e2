//! An S3 server nobody here wrote (moto, a Python package), which keeps its buckets in memory.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    StartError,
    folder::{Folder, program},
    ports::free_port,
    process::Server,
};

/// Where `.ci/setup` installs it.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/python/bin");
const PACKAGE: &str = "moto[server], by `make setup`";
const PATIENCE: Duration = Duration::from_secs(10);

/// A server of buckets. It takes any key, and signatures without looking at them.
pub struct S3 {
    server: Option<Server>,
    folder: Folder,
    port: u16,
}

impl S3 {
    /// The keys it may be asked with.
    pub const KEYS: (&'static str, &'static str) = ("testbed", "testbed-secret");

    /// Starts a server without a bucket.
    pub fn start() -> Result<Self, StartError> {
        let mut this = Self {
            server: None,
            folder: Folder::new("s3", None)?,
            port: free_port()?,
        };
        this.boot()?;
        Ok(this)
    }

    /// Starts the server again after [`S3::kill`], on the same port. What it kept is gone.
    pub fn boot(&mut self) -> Result<(), StartError> {
        let folder = Path::new(FOLDER).to_string_lossy().into_owned();
        let mut command = Command::new(program("moto_server", PACKAGE, &[&folder])?);
        command.args(["-H", "127.0.0.1", "-p", &self.port.to_string()]);
        let mut server = Server::start(command, None, &self.folder.path().join("log"))?;
        self.folder.note_server(server.pid());
        server.wait_ready(|| self.ask("GET", "/").is_ok_and(|status| status == 200))?;
        self.server = Some(server);
        Ok(())
    }

    /// Makes a bucket.
    pub fn make_bucket(&self, name: &str) -> Result<(), StartError> {
        let failed = |output: String| StartError::Failed {
            what: format!("make the bucket `{name}`"),
            output,
        };
        match self.ask("PUT", &format!("/{name}")) {
            Ok(200) => Ok(()),
            Ok(status) => Err(failed(status.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Ends the server in an orderly way.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.end(Signal::TERM);
        }
    }

    /// Kills the server as a crash would.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Where it is asked; buckets are the first part of the path.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn ask(&self, method: &str, path: &str) -> std::io::Result<u16> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // The server tells S3 from other services by the scope of a signature, which it does not check.
        let (key, _) = Self::KEYS;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 0\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential={key}/20270101/us-east-1/s3/aws4_request, \
             SignedHeaders=host, Signature=0\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        status.ok_or_else(|| std::io::Error::other(answer))
    }
}
