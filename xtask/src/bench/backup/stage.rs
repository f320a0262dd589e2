//! The database that is backed up, and whoever runs beside it: all in one folder, all as the database's user, argv only.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::live::{command, scratch, signal, target_folder, wait_until};

/// Debian's folder of PostgreSQL 15.
pub(super) const BIN: &str = "/usr/lib/postgresql/15/bin";
const START_MAX: Duration = Duration::from_secs(120);

/// As whom everything runs.
#[derive(Debug, Clone)]
struct Account {
    home: PathBuf,
    user: Option<(u32, u32)>,
}

impl Account {
    /// A program with nothing of our variables.
    fn command(&self, program: &Path) -> Command {
        let mut command = command(program);
        command
            .env_clear()
            .env("PATH", format!("{BIN}:/usr/bin:/bin"))
            .env("LC_ALL", "C")
            .env("HOME", &self.home)
            .current_dir(&self.home)
            .stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

/// The folder of this run. It goes with it.
pub(super) struct Stage {
    pub(super) folder: PathBuf,
    account: Account,
}

impl Stage {
    pub(super) fn prepare() -> anyhow::Result<Self> {
        let built = target_folder().join("release/examples/measure");
        let shown = built.display();
        ensure!(
            built.is_file(),
            "`{shown}` was not built; run `make bench-backup`"
        );
        let folder = scratch("backup")?;
        // The database's user may not reach where it was built.
        fs::copy(&built, folder.join("measure"))?;
        let account = Account {
            home: folder.clone(),
            user: postgres_user()?,
        };
        let this = Self { folder, account };
        this.own(&this.folder)?;
        Ok(this)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes an empty folder of the database's user, whatever was there.
    pub(super) fn fresh(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir(&path)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        self.own(&path)?;
        Ok(path)
    }

    pub(super) fn write(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        fs::write(path, text)?;
        self.own(path)
    }

    fn own(&self, path: &Path) -> anyhow::Result<()> {
        if let Some((uid, gid)) = self.account.user {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// A program as the database's user.
    pub(super) fn command(&self, program: impl AsRef<Path>) -> Command {
        self.account.command(program.as_ref())
    }

    /// The same, giving way to others.
    pub(super) fn nice_command(&self, niceness: &str, program: &str) -> Command {
        let mut command = self.command("/usr/bin/nice");
        command.args(["-n", niceness, program]);
        command
    }

    /// What was built of ours.
    pub(super) fn measure(&self) -> Command {
        self.command(self.path("measure"))
    }

    /// Drops files from the page cache.
    pub(super) fn forget(&self, paths: &[&Path]) -> anyhow::Result<()> {
        let mut forget = self.measure();
        run(forget.arg("forget").args(paths)).map(drop)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} stays: {error}", self.folder.display());
        }
    }
}

/// PostgreSQL refuses to run as root.
fn postgres_user() -> anyhow::Result<Option<(u32, u32)>> {
    if run(command("id").arg("-u"))?.trim() != "0" {
        return Ok(None);
    }
    let id = |what| -> anyhow::Result<u32> {
        Ok(run(command("id").args([what, "postgres"]))?
            .trim()
            .parse()?)
    };
    Ok(Some((id("-u")?, id("-g")?)))
}

/// Runs a program to its end and gives what it printed.
pub(super) fn run(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("failed to start {shown}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{shown} failed: {said} {text}");
    Ok(text)
}

/// A server that runs.
pub(super) struct Cluster {
    child: Child,
    pub(super) data: PathBuf,
    pub(super) sockets: PathBuf,
    account: Account,
}

pub(super) const PORT: &str = "5432";

impl Cluster {
    /// Starts a server on a data folder; it answers, and is out of recovery, when this returns.
    pub(super) fn start(
        stage: &Stage,
        data: &Path,
        sockets: &Path,
        settings: &[&str],
    ) -> anyhow::Result<Self> {
        let log = fs::File::create(sockets.join("log"))?;
        let mut postgres = stage.command(Path::new(BIN).join("postgres"));
        postgres.arg("-D").arg(data).args(["-p", PORT]);
        postgres
            .arg("-c")
            .arg(format!("unix_socket_directories={}", sockets.display()));
        postgres.args(["-c", "listen_addresses="]);
        for setting in settings {
            postgres.args(["-c", setting]);
        }
        postgres.stdout(log.try_clone()?).stderr(log);
        let child = crate::live::spawn(&mut postgres)?;
        let mut this = Self {
            child,
            data: data.to_owned(),
            sockets: sockets.to_owned(),
            account: stage.account.clone(),
        };
        let mut has_ended = false;
        wait_until("the server answers", START_MAX, || {
            has_ended = !matches!(this.child.try_wait(), Ok(None));
            has_ended
                || this
                    .ask("SELECT pg_is_in_recovery()")
                    .is_ok_and(|text| text == "f")
        })?;
        if has_ended {
            let log = fs::read_to_string(sockets.join("log")).unwrap_or_default();
            bail!("the server on `{}` ended: {log}", data.display());
        }
        Ok(this)
    }

    /// One of PostgreSQL's clients, led to this server.
    pub(super) fn client(&self, program: &str) -> Command {
        let mut command = self.account.command(&Path::new(BIN).join(program));
        command.arg("--host").arg(&self.sockets);
        command.args(["--port", PORT, "--username", "postgres"]);
        command
    }

    /// Runs SQL; gives rows as bare text.
    pub(super) fn ask(&self, sql: &str) -> anyhow::Result<String> {
        let mut psql = self.client("psql");
        psql.args(["-XqAt", "--set", "ON_ERROR_STOP=1", "--dbname", "postgres"]);
        Ok(run(psql.args(["--command", sql]))?.trim().to_owned())
    }

    /// Shuts it down in order.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id(), "-INT");
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error}");
        }
    }
}

/// A child of ours that answers each line with a line of JSON.
pub(super) struct Talk {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Talk {
    pub(super) fn start(command: &mut Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = crate::live::spawn(command)?;
        let output = child.stdout.take().context("it has an output")?;
        Ok(Self {
            input: child.stdin.take(),
            output: BufReader::new(output),
            child,
        })
    }

    pub(super) fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).context("what is measured ended before its answer")
    }

    pub(super) fn ask(&mut self, line: &str) -> anyhow::Result<Value> {
        let input = self.input.as_mut().context("it is not told to end yet")?;
        writeln!(input, "{line}")?;
        self.answer()
    }

    /// Lets it end in order.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        drop(self.input.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "what is measured ended with {status}");
        Ok(())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        drop(self.input.take());
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
        }
        drop(self.child.wait());
    }
}
