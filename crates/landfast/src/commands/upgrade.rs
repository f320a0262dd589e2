//! `landfast upgrade`: server and proxy of this host move to another binary. Traffic, streams and instances go on; shims
//! stay what they are, as they speak one protocol.
//!
//! # What happens, in order
//!
//! 1. *Check*: the new binary says its version, and reads the journal back, beside the server that runs.
//! 2. *Place*: what runs now is kept as `<path>.previous`; the new one gets the path by a rename.
//! 3. *Proxy*: SIGHUP to its holder; another worker and another holder of the new binary take over.
//! 4. *Server*: SIGUSR2; the same process goes on as the new binary, with a generation above the old one's.
//!
//! Whatever does not come up in its time is taken back: the kept binary gets its path again, and the proxy and the server go
//! the same way backwards. A process is signalled only after its pidfd is open and its binary was found to be ours.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use landfast_client::Client;
use landfast_proxy::control::ControlClient;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use tokio::time::{sleep, timeout};

use crate::{
    args::{self, Global},
    clock,
    exit::{Exit, Failure},
    out::Printer,
};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the new binary may take to read the journal.
const CHECK_MAX: Duration = Duration::from_secs(300);
const WORKER_MAX: Duration = Duration::from_secs(30);
/// A holder moves within this after its worker, or is too old to know how.
const HOLDER_MAX: Duration = Duration::from_secs(20);
/// One answer of a server that is there.
const ANSWER_MAX: Duration = Duration::from_millis(500);
const SERVER_MAX: Duration = Duration::from_secs(60);
/// Who started the server may start it again; only then it is done here.
const RESTARTED_MAX: Duration = Duration::from_secs(5);

/// What was done, for `--json`.
#[derive(Debug, Serialize)]
struct Upgraded {
    from: String,
    to: String,
    binary: PathBuf,
    previous: PathBuf,
    generation: u64,
    proxy_pid: u32,
    holder_pid: Option<u32>,
    /// How long nobody answered at the API, at most.
    api_away_ms: u64,
}

/// The host as it is before.
struct Upgrade<'a> {
    printer: &'a Printer,
    client: &'a Client,
    proxy: ControlClient,
    server: Process,
    generation: u64,
    /// Of the proxy's worker.
    boot: String,
    path: PathBuf,
    previous: PathBuf,
}

/// A process that plays a role of ours, by a handle that no other process can come to stand behind.
struct Process {
    pid: u32,
    handle: OwnedFd,
    /// Its binary, as it was named when it was started.
    path: PathBuf,
}

pub(super) async fn upgrade(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &args::Upgrade,
) -> Result<Exit, Failure> {
    if global.host.is_some() {
        let error = anyhow!("`upgrade` replaces the binary of the host it runs on");
        return Err(
            Failure::new(Exit::Usage, error).hint("log in there, and run it without `--host`")
        );
    }
    let host = client.host().await?;
    let source = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => std::env::current_exe().context("failed to find this program's own file")?,
    };
    let to = check(&source, Path::new(&host.folders.state))
        .await
        .map_err(|error| {
            Failure::new(Exit::Failed, error)
                .hint("nothing was changed; name another binary with `--binary`")
        })?;
    printer.say(&format!(
        "`{}` is {to}, and reads the journal",
        source.display()
    ));
    let server = Process::open(host.pid).context("failed to reach the server's process")?;
    let path = server.path.clone();
    let proxy = ControlClient::new(Path::new(&host.folders.run).join("proxy.sock"));
    let status = proxy.status().await.context("the proxy does not answer")?;
    let upgrade = Upgrade {
        printer,
        client,
        proxy,
        boot: status.boot,
        generation: host.generation,
        previous: beside(&path, ".previous"),
        path,
        server,
    };
    let restart = Restart::of(upgrade.server.pid);
    upgrade.place(&source)?;
    match upgrade.go_forward().await {
        Ok((generation, away)) => {
            let status = upgrade.proxy.status().await.map_err(anyhow::Error::from)?;
            upgrade.report(&Upgraded {
                from: host.version,
                to,
                binary: upgrade.path.clone(),
                previous: upgrade.previous.clone(),
                generation,
                proxy_pid: status.pid,
                holder_pid: status.holder_pid,
                api_away_ms: u64::try_from(away.as_millis()).unwrap_or(u64::MAX),
            })
        }
        Err(error) => {
            printer.say(&format!(
                "the new binary did not come up ({error:#}); going back to the old one"
            ));
            upgrade
                .go_back(restart)
                .await
                .context("the old binary could not be brought back")?;
            let error = error.context("went back to the old binary");
            Err(Failure::new(Exit::Failed, error).hint("traffic went on; the server's log and `proxy/proxy.log` in the state folder say why"))
        }
    }
}

/// Asks the new binary for its version, and to read the journal.
async fn check(binary: &Path, state: &Path) -> anyhow::Result<String> {
    let shown = binary.display();
    let version = run(binary, &["--version".as_ref()]).await?;
    let Some(version) = version.trim().strip_prefix("landfast ") else {
        bail!(
            "`{shown}` is no Landfast: it calls itself `{}`",
            version.trim()
        );
    };
    let arguments = [
        "server".as_ref(),
        "--check".as_ref(),
        "--state".as_ref(),
        state.as_os_str(),
    ];
    run(binary, &arguments)
        .await
        .with_context(|| format!("`{shown}` ({version}) cannot go on with this journal"))?;
    Ok(version.to_owned())
}

async fn run(binary: &Path, arguments: &[&std::ffi::OsStr]) -> anyhow::Result<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the binary that is to take over is asked, argv by argv"
    )]
    let mut command = tokio::process::Command::new(binary);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(CHECK_MAX, command.output())
        .await
        .with_context(|| {
            format!(
                "`{}` said nothing for {} s",
                binary.display(),
                CHECK_MAX.as_secs()
            )
        })?
        .with_context(|| format!("failed to run `{}`", binary.display()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

impl Upgrade<'_> {
    /// Keeps the binary that runs, then puts the new one in its place.
    fn place(&self, source: &Path) -> anyhow::Result<()> {
        // What runs, whatever lies at its path by now.
        let running = PathBuf::from(format!("/proc/{}/exe", self.server.pid));
        replace(&running, &self.previous)?;
        replace(source, &self.path)?;
        self.printer.say(&format!(
            "`{}` is replaced; the old one is kept as `{}`",
            self.path.display(),
            self.previous.display()
        ));
        Ok(())
    }

    async fn go_forward(&self) -> anyhow::Result<(u64, Duration)> {
        self.hand_proxy_over().await?;
        self.printer.say("the proxy serves from the new binary");
        self.server.signal(Signal::USR2)?;
        let (generation, away) = self.server_answers(SERVER_MAX).await?;
        self.printer.say(&format!(
            "the server is back as generation {generation}; its API was away for at most {} ms",
            away.as_millis()
        ));
        Ok((generation, away))
    }

    /// Has worker and holder of the proxy replaced by those of the binary that is now at the path.
    async fn hand_proxy_over(&self) -> anyhow::Result<()> {
        let before = self
            .proxy
            .status()
            .await
            .context("the proxy does not answer")?;
        let holder = before
            .holder_pid
            .context("the proxy does not say who its holder is")?;
        let holder = Process::open(holder).context("failed to reach the proxy's holder")?;
        ensure!(
            holder.path == self.path,
            "the proxy runs from `{}`, not from the server's binary",
            holder.path.display()
        );
        holder.signal(Signal::HUP)?;
        let is_replaced = async || {
            let status = self.proxy.status().await.ok()?;
            (status.boot != before.boot).then_some(())
        };
        until(WORKER_MAX, is_replaced)
            .await
            .context("no worker of the new binary came up in the proxy")?;
        let has_moved = async || {
            let status = self.proxy.status().await.ok()?;
            (status.holder_pid.is_some() && status.holder_pid != before.holder_pid).then_some(())
        };
        if until(HOLDER_MAX, has_moved).await.is_some() {
            return Ok(());
        }
        // A holder that is too old to move. The worker has the descriptors and starts another when this one dies.
        holder.signal(Signal::KILL)?;
        until(HOLDER_MAX, has_moved)
            .await
            .context("no holder of the new binary came up in the proxy")
    }

    /// Waits for a server with a newer generation; says how long none answered.
    async fn server_answers(&self, limit: Duration) -> anyhow::Result<(u64, Duration)> {
        let mut gone: Option<Instant> = None;
        let begun = clock::instant();
        loop {
            // The client itself waits for a server that is away; here that is to be noticed.
            let asked = clock::instant();
            match timeout(ANSWER_MAX, self.client.health()).await {
                Ok(Ok(health)) if health.generation > self.generation => {
                    let gone = gone.unwrap_or(asked);
                    return Ok((health.generation, clock::instant().duration_since(gone)));
                }
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => gone = gone.or(Some(asked)),
            }
            ensure!(
                clock::instant().duration_since(begun) < limit,
                "no server answered within {} s",
                limit.as_secs()
            );
            if gone.is_some() && !self.server.is_alive() {
                bail!("the server ended");
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The kept binary gets its path again, and whatever has moved goes back.
    async fn go_back(&self, restart: io::Result<Restart>) -> anyhow::Result<()> {
        replace(&self.previous, &self.path)?;
        let status = self
            .proxy
            .status()
            .await
            .context("the proxy does not answer")?;
        if status.boot != self.boot {
            self.hand_proxy_over().await?;
            self.printer
                .say("the proxy serves from the old binary again");
        }
        let health = timeout(ANSWER_MAX * 10, self.client.health()).await;
        if matches!(health, Ok(Ok(health)) if health.generation == self.generation) {
            return Ok(());
        }
        if self.server.is_alive() {
            // It took the new binary and serves nothing.
            self.server.signal(Signal::TERM)?;
        }
        if self.server_answers_again(RESTARTED_MAX).await.is_none() {
            restart
                .context("how the server was started is not known")?
                .start()?;
            self.server_answers_again(SERVER_MAX)
                .await
                .context("the old server does not come up either")?;
        }
        self.printer
            .say("the server runs from the old binary again");
        Ok(())
    }

    async fn server_answers_again(&self, limit: Duration) -> Option<()> {
        until(limit, async || {
            let health = timeout(ANSWER_MAX, self.client.health()).await.ok()?.ok()?;
            (health.generation > self.generation).then_some(())
        })
        .await
    }

    fn report(&self, upgraded: &Upgraded) -> Result<Exit, Failure> {
        if self.printer.json {
            self.printer.json(upgraded)?;
        } else {
            let Upgraded { from, to, .. } = upgraded;
            self.printer
                .data(&format!("upgraded from {from} to {to}"))?;
        }
        Ok(Exit::Done)
    }
}

/// How the server was started, to start it again the same way.
struct Restart {
    path: PathBuf,
    arguments: Vec<std::ffi::OsString>,
    variables: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    folder: PathBuf,
    /// Where its log went, if that was a file.
    log: Option<File>,
}

impl Restart {
    fn of(pid: u32) -> io::Result<Self> {
        use std::os::unix::ffi::OsStringExt as _;
        let parts = |name: &str| -> io::Result<Vec<Vec<u8>>> {
            let bytes = fs::read(format!("/proc/{pid}/{name}"))?;
            let parts = bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec);
            Ok(parts.collect())
        };
        let mut arguments = parts("cmdline")?;
        arguments.pop_if(|last| last.is_empty());
        let variables = parts("environ")?;
        let variables = variables.into_iter().filter_map(|variable| {
            let at = variable.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (variable[..at].to_vec(), variable[at + 1..].to_vec());
            Some((
                std::ffi::OsString::from_vec(name),
                std::ffi::OsString::from_vec(value),
            ))
        });
        Ok(Self {
            path: binary_of(pid)?,
            arguments: arguments
                .into_iter()
                .skip(1)
                .map(std::ffi::OsString::from_vec)
                .collect(),
            variables: variables.collect(),
            folder: fs::read_link(format!("/proc/{pid}/cwd"))?,
            log: File::options()
                .append(true)
                .open(format!("/proc/{pid}/fd/2"))
                .ok(),
        })
    }

    fn start(self) -> anyhow::Result<()> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the server that was ended is started again, argv by argv"
        )]
        let mut command = std::process::Command::new(&self.path);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(self.variables)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log.map_or_else(Stdio::null, Stdio::from))
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("failed to start `{}`", self.path.display()))?;
        tracing::debug!(pid = child.id(), "started the server");
        Ok(())
    }
}

impl Process {
    fn open(pid: u32) -> anyhow::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.with_context(|| format!("{pid} is no process id"))?;
        let handle = pidfd_open(number, PidfdFlags::empty()).context("there is no such process")?;
        // Looked at after the handle is open: so it is this process's.
        let path =
            binary_of(pid).context("its binary cannot be seen; run this as the server's user")?;
        Ok(Self { pid, handle, path })
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        pidfd_send_signal(&self.handle, signal)
            .with_context(|| format!("failed to signal process {}", self.pid))
    }

    fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let state = stat
            .rsplit(')')
            .next()
            .map(str::trim_start)
            .unwrap_or_default();
        !state.is_empty() && !state.starts_with(['Z', 'X'])
    }
}

/// The path of a process's binary, without the kernel's mark that another lies there by now.
fn binary_of(pid: u32) -> io::Result<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe"))?;
    let text = path.to_string_lossy();
    Ok(PathBuf::from(
        text.strip_suffix(" (deleted)").unwrap_or(&text),
    ))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// Puts a copy of a file in the place of another, whole or not at all.
fn replace(from: &Path, to: &Path) -> anyhow::Result<()> {
    let fresh = beside(to, ".new");
    let copied = fs::copy(from, &fresh).and_then(|_| File::open(&fresh)?.sync_all());
    copied.with_context(|| {
        format!(
            "failed to copy `{}` to `{}`",
            from.display(),
            fresh.display()
        )
    })?;
    fs::rename(&fresh, to).with_context(|| format!("failed to place `{}`", to.display()))
}

async fn until<T>(limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(limit, looking).await.ok()
}
