//! A fixed rate in an open loop: each connection has a timetable, and a request that had to wait for the one before it
//! counts its latency from the timetable, not from when it was sent. What is late is so never left out.

use std::{
    cell::RefCell,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{task::JoinSet, time::Instant};

use crate::target::{self, Target};

/// What is asked, and how often.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) path: String,
    pub(crate) host: String,
    /// Requests per second over all connections.
    pub(crate) rate: u32,
    pub(crate) connections: u32,
    pub(crate) time: Duration,
}

/// What became of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Done {
    answered: usize,
    failed: u64,
    /// The first failure.
    error: Option<String>,
}

/// When a request should have gone out (microseconds since the epoch), and how long after that its answer was whole.
pub(crate) type Row = (i64, u64);

/// Keeps the rate for a time, and writes a line `instant latency` for each answer, both in microseconds.
pub(crate) async fn run(target: Target, plan: Plan, log: &Path) -> anyhow::Result<Done> {
    let rows: Rc<RefCell<Vec<Row>>> = Rc::default();
    let mut tasks = JoinSet::new();
    for timetable in timetables(plan.rate, plan.connections, plan.time) {
        let (target, plan, rows) = (target.clone(), plan.clone(), Rc::clone(&rows));
        tasks.spawn_local(async move { keep(&target, &plan, timetable, &rows).await });
    }
    let mut done = Done::default();
    for (failed, error) in tasks.join_all().await {
        done.failed += failed;
        done.error = done.error.or(error);
    }
    let rows = rows.take();
    done.answered = rows.len();
    write(log, &rows).with_context(|| format!("failed to write `{}`", log.display()))?;
    Ok(done)
}

/// When one connection's requests are due.
#[derive(Clone, Copy)]
pub(crate) struct Timetable {
    /// Which connection it is, from 0.
    pub(crate) number: u32,
    begin: Instant,
    /// The same instant by the wall clock.
    epoch: i64,
    /// After the beginning, the first one.
    pub(crate) offset: Duration,
    /// From one to the next.
    pub(crate) pace: Duration,
    pub(crate) time: Duration,
}

/// A rate, shared out evenly over connections.
pub(crate) fn timetables(
    rate: u32,
    connections: u32,
    time: Duration,
) -> impl Iterator<Item = Timetable> {
    let pace = Duration::from_secs(u64::from(connections)) / rate.max(1);
    let begin = now() + Duration::from_millis(200);
    let epoch = epoch_micros() + 200_000;
    (0..connections).map(move |number| Timetable {
        number,
        begin,
        epoch,
        offset: pace * number / connections,
        pace,
        time,
    })
}

impl Timetable {
    pub(crate) async fn wait(&self, due: Duration) {
        tokio::time::sleep_until(self.begin + due).await;
    }

    /// The row of a request that was due then and is answered now.
    pub(crate) fn row(&self, due: Duration) -> Row {
        let latency = now().saturating_duration_since(self.begin + due);
        (self.epoch + micros(due), micros(latency).unsigned_abs())
    }
}

async fn keep(
    target: &Target,
    plan: &Plan,
    timetable: Timetable,
    rows: &RefCell<Vec<Row>>,
) -> (u64, Option<String>) {
    let mut failed = (0, None);
    let mut connection = None;
    let mut due = timetable.offset;
    while due < timetable.time {
        timetable.wait(due).await;
        let answered = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => target.connect().await?,
            };
            let keep_alive = target::ask(&mut open, &plan.path, &plan.host, "").await?;
            Ok::<_, std::io::Error>(keep_alive.then_some(open))
        };
        match answered.await {
            Ok(open) => {
                connection = open;
                rows.borrow_mut().push(timetable.row(due));
            }
            Err(error) => {
                failed.0 += 1;
                failed.1.get_or_insert_with(|| error.to_string());
            }
        }
        due += timetable.pace;
    }
    failed
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

pub(crate) fn write(log: &Path, rows: &[Row]) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(log)?);
    for (at, latency) in rows {
        writeln!(file, "{at} {latency}")?;
    }
    file.flush()
}

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "a load generator measures time")]
    let now = std::time::Instant::now();
    now.into()
}

fn epoch_micros() -> i64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "its log is compared with others' times"
    )]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).map_or(0, micros)
}
