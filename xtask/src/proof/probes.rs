//! The same hostile bytes to us, nginx and HAProxy, each before a backend that records what it gets. We must be as
//! strict as the strictest of the three in each row, and give the status the table says.

pub(super) mod peers;

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use self::peers::Peer;

/// The table that the proxy's own tests go by.
const TABLE: &str = include_str!("../../../crates/landfast-proxy/tests/probes.json");
/// Comes behind every probe.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
/// How long a peer may keep silent about a request it has not refused.
const SILENCE: Duration = Duration::from_millis(1_500);

struct Probe {
    name: String,
    bytes: Vec<u8>,
    status: u16,
    is_last: bool,
}

/// How far a peer let the bytes come. A lower one is stricter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// Nothing of the probe or after it went on.
    Refused,
    /// The probe was refused, and yet what came behind it was answered.
    Next,
    /// Some of the probe went on, and nothing after it.
    Probe,
    /// Both went on.
    Both,
}

struct Outcome {
    reach: Reach,
    statuses: Vec<u16>,
}

/// Prints the table, names where we are laxer than a peer, and fails where a row is not as it should be: a request
/// that must be refused and is not (so it is held to the strictest), or one that we alone let pass.
pub(super) fn run() -> anyhow::Result<()> {
    println!("proof probes");
    let probes = read_table()?;
    let peers = peers::start()?;
    let names: Vec<_> = peers.iter().map(|peer| peer.name).collect();
    println!("{:44} {}", "probe", columns(&names));
    let (mut laxer, mut wrong) = (Vec::new(), Vec::new());
    for probe in &probes {
        let outcomes = peers
            .iter()
            .map(|peer| send(peer, probe))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let shown: Vec<_> = outcomes.iter().map(Outcome::show).collect();
        println!("{:44} {}", probe.name, columns(&shown));
        let ours = &outcomes[0];
        let theirs = peers.iter().zip(&outcomes).skip(1);
        let stricter = theirs.filter(|(_, theirs)| ours.reach > theirs.reach);
        let stricter: Vec<_> = stricter.map(|(peer, _)| peer.name).collect();
        if !stricter.is_empty() {
            laxer.push(format!("{} (than {})", probe.name, stricter.join(", ")));
        }
        if stricter.len() == peers.len() - 1 {
            wrong.push(format!("{}: laxer than all others", probe.name));
        }
        wrong.extend(probe.judge(ours));
    }
    println!();
    for line in &laxer {
        println!("laxer: {line}");
    }
    for line in &wrong {
        println!("wrong: {line}");
    }
    let refused = probes.iter().filter(|probe| probe.is_refused()).count();
    println!(
        "{} probes, {refused} to be refused; laxer than a peer in {}, wrong in {}",
        probes.len(),
        laxer.len(),
        wrong.len()
    );
    ensure!(wrong.is_empty(), "a probe is not taken as the table says");
    Ok(())
}

fn columns<T: AsRef<str>>(cells: &[T]) -> String {
    cells
        .iter()
        .map(|cell| format!("{:22}", cell.as_ref()))
        .collect()
}

impl Probe {
    fn is_refused(&self) -> bool {
        self.status != 200
    }

    /// What is not as it should be.
    fn judge(&self, ours: &Outcome) -> Option<String> {
        let (reach, statuses) = match (self.is_refused(), self.is_last) {
            (true, _) => (Reach::Refused, vec![self.status]),
            (false, true) => (Reach::Probe, vec![200]),
            (false, false) => (Reach::Both, vec![200, 200]),
        };
        let is_right = ours.reach == reach && ours.statuses == statuses;
        (!is_right).then(|| format!("{}: {}", self.name, ours.show()))
    }
}

impl Outcome {
    fn show(&self) -> String {
        let statuses: Vec<_> = self.statuses.iter().map(u16::to_string).collect();
        let statuses = match statuses.len() {
            0 => "closed".to_owned(),
            _ => statuses.join(" "),
        };
        let reach = match self.reach {
            Reach::Refused => "refused",
            Reach::Next => "next passed",
            Reach::Probe => "passed",
            Reach::Both => "both passed",
        };
        format!("{reach} ({statuses})")
    }
}

fn read_table() -> anyhow::Result<Vec<Probe>> {
    let rows: Vec<Value> = serde_json::from_str(TABLE).context("failed to read the table")?;
    rows.iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().context("a row lacks a text");
            let mut send = text("send")?.to_owned();
            if let Some([what, count]) = row["repeat"].as_array().map(Vec::as_slice) {
                let count = usize::try_from(count.as_u64().unwrap_or(0))?;
                send = send.replace("{}", &what.as_str().unwrap_or("").repeat(count));
            }
            Ok(Probe {
                name: text("name")?.to_owned(),
                bytes: send.into_bytes(),
                status: u16::try_from(row["status"].as_u64().context("a row lacks a status")?)?,
                is_last: row["last"].as_bool().unwrap_or(false),
            })
        })
        .collect()
}

fn send(peer: &Peer, probe: &Probe) -> anyhow::Result<Outcome> {
    peer.backend.take();
    let mut stream = TcpStream::connect(peer.address)
        .with_context(|| format!("{} does not listen", peer.name))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    let bytes = [&probe.bytes[..], HIDDEN.as_bytes()].concat();
    // A peer may refuse and close before it has read all.
    let sent = stream.write_all(&bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..count]);
    }
    drop((sent, stream.shutdown(Shutdown::Both)));
    // What the peer has sent on is on its way through loopback.
    std::thread::sleep(Duration::from_millis(20));
    let seen = peer.backend.take();
    let has = |what: &[u8]| seen.windows(what.len()).any(|window| window == what);
    let statuses = statuses(&answer);
    let is_answered_twice = statuses.len() > 1;
    let reach = match (has(b"probe"), has(b"/hidden")) {
        (true, true) => Reach::Both,
        (true, false) => Reach::Probe,
        (false, true) => Reach::Next,
        (false, false) if is_answered_twice => Reach::Next,
        (false, false) => Reach::Refused,
    };
    Ok(Outcome { reach, statuses })
}

/// The statuses of all answers, in order. Their bodies never look like a status line.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    let rest = text.split("HTTP/1.").skip(1);
    rest.filter_map(|rest| rest.get(2..5)?.parse().ok())
        .filter(|status| *status != 100)
        .collect()
}
