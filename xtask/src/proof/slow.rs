//! Clients that are slow on purpose, thousands at a time, as slowhttptest plays them: what ordinary clients notice, and
//! what the slow ones cost.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use super::{latency::p99, probes::peers::start_landfast};
use crate::live::{
    Build, command, free_port, instant, is_short, now_micros, proportional_kib, scratch, signal,
    spawn, wait_until,
};

/// Requests per second of the ordinary client.
const RATE: u32 = 500;
const CONNECTIONS: u32 = 50;
const RATIO_MAX: f64 = 2.0;
/// What one slow client may hold of us. Beside it stands what the kernel keeps for its socket.
const KIB_MAX: f64 = 128.0;
/// The default of a route: the longest silence in a body, and what a client's patience is.
const IDLE_MS: u64 = 75_000;

/// In microseconds.
const WINDOW: i64 = 10_000_000;

/// What slowhttptest is told, and what it asks for.
const ATTACKS: [(&str, &[&str], &str); 3] = [
    ("slow heads", &["-H", "-i", "5", "-x", "24"], "/1k"),
    (
        "slow bodies",
        &["-B", "-i", "5", "-x", "10", "-s", "131072"],
        "/1k",
    ),
    (
        "slow readers",
        &[
            "-X", "-n", "2", "-z", "32", "-w", "512", "-y", "1024", "-k", "3",
        ],
        "/1m",
    ),
];

/// P99 of an ordinary client during each attack, by its P99 right before.
pub(crate) fn slow(build: &Build) -> anyhow::Result<()> {
    let (connections, steady, attack) = if is_short() {
        (500, 8, 10)
    } else {
        (4_000, 20, 90)
    };
    let stage = Stage::start(build)?;
    let mut missed = Vec::new();
    for (name, arguments, path) in ATTACKS {
        let log = stage.folder.join("rate.log");
        let warm = 2;
        let mut load = Load::start(build, stage.port, warm + steady + attack + 2, &log)?;
        sleep(Duration::from_secs(warm));
        let at_rest = proportional_kib(stage.worker()?);
        let from = now_micros();
        sleep(Duration::from_secs(steady));
        let begun = now_micros();
        let mut attackers = Attack::start(stage.port, connections, attack, arguments, path)?;
        let seen = watch(&stage, Duration::from_secs(attack))?;
        let to = now_micros();
        attackers.end();
        let done = load.finish()?;
        let rows = super::latency::rows(&log)?;
        let quiet = p99(&rows, from, begun)?;
        let during = p99(&rows, begun, to)?;
        let ratio = during as f64 / quiet as f64;
        let windows = windows(&rows, begun, to)?;
        println!("  {name}: P99 of each ten seconds, in ms: {windows}");
        let each = seen.kib.saturating_sub(at_rest) as f64 / seen.clients.max(1) as f64;
        println!(
            "figure: {name}: at most {} of {connections} connections held, {} at the end of {attack} s; P99 of {RATE} requests/s \
             quiet {quiet} us, during {during} us: {ratio:.2}; new connections answered after at most {} ms; worker {:.1} MB PSS at \
             rest, at most {:.1} MB ({each:.1} KiB for each slow client)",
            seen.clients,
            seen.left,
            seen.newcomer.as_millis(),
            at_rest as f64 / 1024.0,
            seen.kib as f64 / 1024.0,
        );
        if ratio > RATIO_MAX {
            missed.push(format!(
                "{name}: P99 during the attack is {ratio:.2} times quiet"
            ));
        }
        if each > KIB_MAX {
            missed.push(format!("{name}: {each:.1} KiB for each slow client"));
        }
        if done["failed"] != 0 {
            missed.push(format!("{name}: ordinary requests failed: {done}"));
        }
        if seen.clients < connections / 2 {
            missed.push(format!(
                "{name}: there was no attack: {} connections",
                seen.clients
            ));
        }
        wait_until("the attackers are gone", Duration::from_secs(60), || {
            stage
                .clients()
                .is_ok_and(|clients| clients <= u64::from(CONNECTIONS))
        })?;
    }
    ensure!(missed.is_empty(), "{}", missed.join("; "));
    Ok(())
}

/// When during an attack others had to wait.
fn windows(rows: &[(i64, u64)], from: i64, to: i64) -> anyhow::Result<String> {
    let mut shown = Vec::new();
    let mut start = from;
    while start + WINDOW <= to {
        let here = p99(rows, start, start + WINDOW)?;
        shown.push(format!("{:.1}", here as f64 / 1e3));
        start += WINDOW;
    }
    Ok(shown.join(" "))
}

/// What was seen while an attack ran.
#[derive(Default)]
struct Seen {
    /// Slow clients at a time, and at the end.
    clients: u64,
    left: u64,
    /// The worker's memory at its height.
    kib: u64,
    /// The longest a new client waited for its answer.
    newcomer: Duration,
}

fn watch(stage: &Stage, time: Duration) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let worker = stage.worker()?;
    let begun = instant();
    let mut looked = Duration::ZERO;
    while begun.elapsed() < time {
        let asked = instant();
        newcomer(stage.port).context("a new client was not served during the attack")?;
        seen.newcomer = seen.newcomer.max(asked.elapsed());
        if begun.elapsed() > looked {
            looked += Duration::from_secs(2);
            seen.left = stage.clients()?.saturating_sub(u64::from(CONNECTIONS) + 1);
            seen.clients = seen.clients.max(seen.left);
            seen.kib = seen.kib.max(proportional_kib(worker));
        }
        sleep(Duration::from_millis(100));
    }
    Ok(seen)
}

fn newcomer(port: u16) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /1k HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

/// Our proxy before a backend that costs next to nothing.
struct Stage {
    folder: PathBuf,
    port: u16,
    proxy: Child,
    backend: Child,
}

impl Stage {
    fn start(build: &Build) -> anyhow::Result<Self> {
        let folder = scratch("slow")?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut backend = command(build.bench());
        let backend = spawn(backend.args(["backend", &address.to_string()]))?;
        let port = free_port()?;
        let proxy = start_landfast(&folder, port, address, "slow", IDLE_MS)?;
        let stage = Self {
            folder,
            port,
            proxy,
            backend,
        };
        wait_until("the proxy answers", Duration::from_secs(20), || {
            newcomer(stage.port).is_ok()
        })?;
        Ok(stage)
    }

    fn ask(&self, path: &str) -> anyhow::Result<String> {
        let output = command("curl")
            .args(["-sS", "--max-time", "10", "--unix-socket"])
            .arg(self.folder.join("proxy.sock"))
            .arg(format!("http://proxy{path}"))
            .output()
            .context("failed to run curl")?;
        Ok(String::from_utf8(output.stdout)?)
    }

    fn worker(&self) -> anyhow::Result<u32> {
        let status: serde_json::Value = serde_json::from_str(&self.ask("/status")?)?;
        let pid = status["pid"].as_u64().context("no worker")?;
        Ok(u32::try_from(pid)?)
    }

    /// Connections of clients, by the proxy's own count.
    fn clients(&self) -> anyhow::Result<u64> {
        let metrics = self.ask("/metrics")?;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("landfast_proxy_clients "));
        Ok(line.context("the proxy does not count clients")?.parse()?)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Gently: a killed holder would leave its worker behind.
        signal(self.proxy.id(), "-TERM");
        drop(self.proxy.wait());
        drop(self.backend.kill());
        drop(self.backend.wait());
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// The ordinary client: an open loop that logs each request.
struct Load(Child);

impl Load {
    fn start(build: &Build, port: u16, seconds: u64, log: &Path) -> anyhow::Result<Self> {
        let mut load = command(build.bench());
        load.args(["rate", &format!("127.0.0.1:{port}")])
            .args(["--host", "a", "--path", "/1k"])
            .args(["--rate", &RATE.to_string()])
            .args(["--connections", &CONNECTIONS.to_string()])
            .args(["--milliseconds", &(seconds * 1_000).to_string()])
            .arg("--log")
            .arg(log)
            .stdout(Stdio::piped());
        spawn(&mut load).map(Self)
    }

    fn finish(&mut self) -> anyhow::Result<serde_json::Value> {
        let out = self.0.stdout.take().context("the load has an output")?;
        let done = serde_json::from_reader(out).context("the load says nothing")?;
        self.0.wait()?;
        Ok(done)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Attack(Child);

impl Attack {
    fn start(
        port: u16,
        connections: u64,
        seconds: u64,
        arguments: &[&str],
        path: &str,
    ) -> anyhow::Result<Self> {
        let mut attack = command("slowhttptest");
        attack
            .args(arguments)
            .args(["-c", &connections.to_string()])
            .args(["-r", &(connections / 10).to_string()])
            .args(["-l", &(seconds + 5).to_string(), "-p", "5", "-v", "0"])
            .args(["-u", &format!("http://127.0.0.1:{port}{path}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let started = spawn(&mut attack);
        started
            .map(Self)
            .context("slowhttptest is missing; run `make setup-proof`")
    }

    fn end(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.end();
    }
}
