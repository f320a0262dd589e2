//! A Docker engine of its own: own data, own socket, own networks.

use std::{
    fs,
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::StartError;

const STEP: Duration = Duration::from_millis(50);
const STEPS: usize = 1_200;

/// A running daemon.
pub struct Dockerd {
    folder: TempDir,
    child: Option<Child>,
    pool: u8,
}

impl Dockerd {
    /// Starts one.
    pub fn start() -> Result<Self, StartError> {
        let folder = tempfile::Builder::new().prefix("lfd").tempdir();
        let folder = folder.map_err(io)?;
        let pool = (std::process::id() % 100) as u8 + 100;
        let mut daemon = Self {
            folder,
            child: None,
            pool,
        };
        daemon.boot()?;
        Ok(daemon)
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("unix://{}", self.folder.path().join("s").display())
    }

    /// Starts it again on the same folders.
    pub fn boot(&mut self) -> Result<(), StartError> {
        let path = |name: &str| self.folder.path().join(name);
        fs::write(path("config.json"), "{}").map_err(io)?;
        let log = fs::File::create(path("log")).map_err(io)?;
        let child = Command::new("dockerd")
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .arg("--config-file")
            .arg(path("config.json"))
            .args([
                "--host",
                &self.address(),
                "--bridge",
                "none",
                "--live-restore",
            ])
            .arg("--default-address-pool")
            .arg(format!("base=10.{}.0.0/16,size=24", self.pool))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(io)?;
        self.child = Some(child);
        for _ in 0..STEPS {
            if UnixStream::connect(path("s")).is_ok() && self.answers() {
                return Ok(());
            }
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                let log = fs::read_to_string(path("log")).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default().to_owned();
                return Err(failed(format!("it ended with {status}: {last}")));
            }
            std::thread::sleep(STEP);
        }
        Err(failed("it did not answer".into()))
    }

    fn answers(&self) -> bool {
        let output = Command::new("docker")
            .args(["info", "--format", "{{.ID}}"])
            .env("DOCKER_HOST", self.address())
            .output();
        output.is_ok_and(|output| output.status.success())
    }

    /// kill -9: what it runs goes on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        drop(fs::remove_file(self.folder.path().join("pid")));
    }

    fn client(&self, arguments: &[&str]) -> String {
        let output = Command::new("docker")
            .args(arguments)
            .env("DOCKER_HOST", self.address())
            .output();
        let output = output.map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).into_owned()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if self.child.is_none() {
            drop(self.boot());
        }
        let all = self.client(&["ps", "--all", "--quiet"]);
        let mut remove = vec!["rm", "--force"];
        remove.extend(all.lines());
        if remove.len() > 2 {
            self.client(&remove);
        }
        self.client(&["network", "prune", "--force"]);
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            drop(child.wait());
        }
    }
}

fn io(source: std::io::Error) -> StartError {
    StartError::Io {
        what: "start dockerd".into(),
        source,
    }
}

fn failed(output: String) -> StartError {
    StartError::Failed {
        what: "dockerd did not come up".into(),
        output,
    }
}
