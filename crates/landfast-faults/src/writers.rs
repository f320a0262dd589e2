//! Writers that note each row the server acknowledged.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls};

/// What rows look like: a row whose text does not follow from its number was damaged.
pub(crate) const TABLE: &str =
    "CREATE TABLE acked (writer int, n bigint, pad text, PRIMARY KEY (writer, n))";
const INSERT: &str = "INSERT INTO acked SELECT $1::int, n, \
    repeat(md5($1::int || '/' || n), (1 + n % 8)::int) FROM generate_series($2::bigint, $3::bigint) n";

/// Writers of one kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) writers: i32,
    /// Rows of one commit.
    pub(crate) rows: i64,
    /// Between two commits of one writer.
    pub(crate) pause: Duration,
}

/// Single rows as from an app, and larger commits that fill segments.
pub(crate) const STEADY: &[Load] = &[
    Load {
        writers: 3,
        rows: 1,
        pause: Duration::from_millis(6),
    },
    Load {
        writers: 1,
        rows: 100,
        pause: Duration::from_millis(150),
    },
];

/// A commit that was acknowledged: rows `from` to `to` of a writer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ack {
    pub(crate) writer: i32,
    pub(crate) from: i64,
    pub(crate) to: i64,
    pub(crate) at: Instant,
    /// Microseconds of the system's clock, to hold against what an archive calls restorable.
    pub(crate) wall: i64,
}

/// Notes of all writers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    pub(crate) acks: Vec<Ack>,
    /// The last row each one asked for, acknowledged or not.
    pub(crate) sent: BTreeMap<i32, i64>,
    pub(crate) failures: u64,
}

impl Log {
    pub(crate) fn rows(&self) -> u64 {
        self.acks
            .iter()
            .map(|ack| (ack.to - ack.from + 1).unsigned_abs())
            .sum()
    }

    /// What was acknowledged by an instant.
    pub(crate) fn until(&self, end: Instant) -> Self {
        let acks = self.acks.iter().filter(|ack| ack.at <= end);
        Self {
            acks: acks.copied().collect(),
            ..self.clone()
        }
    }

    pub(crate) fn rows_between(&self, from: Instant, to: Instant) -> u64 {
        let within = self
            .acks
            .iter()
            .filter(|ack| from <= ack.at && ack.at <= to);
        within
            .map(|ack| (ack.to - ack.from + 1).unsigned_abs())
            .sum()
    }
}

/// Running writers.
pub(crate) struct Writing {
    stop: Arc<AtomicBool>,
    log: Arc<Mutex<Log>>,
    tasks: JoinSet<()>,
}

impl Writing {
    /// Starts writers on a server, numbered from `first`.
    pub(crate) fn start(socket: &Path, port: u16, loads: &[Load], first: i32) -> Self {
        let (stop, log) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Log>>::default());
        let mut tasks = JoinSet::new();
        let each = loads
            .iter()
            .flat_map(|load| (0..load.writers).map(|_| *load));
        for (writer, load) in (first..).zip(each) {
            let (socket, stop, log) = (socket.to_owned(), Arc::clone(&stop), Arc::clone(&log));
            tasks.spawn(write(socket, port, writer, load, stop, log));
        }
        Self { stop, log, tasks }
    }

    pub(crate) fn so_far(&self) -> Log {
        lock(&self.log).clone()
    }

    /// Ends them and gives their notes. A commit that is not answered within a second stays unacknowledged.
    pub(crate) async fn stop(mut self) -> Log {
        self.stop.store(true, Ordering::Relaxed);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        drop(tokio::time::timeout(Duration::from_secs(1), all).await);
        self.tasks.abort_all();
        lock(&self.log).clone()
    }
}

async fn write(
    socket: PathBuf,
    port: u16,
    writer: i32,
    load: Load,
    stop: Arc<AtomicBool>,
    log: Arc<Mutex<Log>>,
) {
    let mut next = 1;
    while !stop.load(Ordering::Relaxed) {
        let Ok(client) = connect(&socket, port, "postgres").await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let (from, to) = (next, next + load.rows - 1);
            next = to + 1;
            lock(&log).sent.insert(writer, to);
            if client
                .execute(INSERT, &[&writer, &from, &to])
                .await
                .is_err()
            {
                lock(&log).failures += 1;
                break;
            }
            let (at, wall) = (Instant::now(), wall());
            lock(&log).acks.push(Ack {
                writer,
                from,
                to,
                at,
                wall,
            });
            tokio::time::sleep(load.pause).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A connection over a socket, as the superuser.
pub(crate) async fn connect(
    socket: &Path,
    port: u16,
    database: &str,
) -> Result<Client, tokio_postgres::Error> {
    let mut config = Config::new();
    config
        .host_path(socket)
        .port(port)
        .user("postgres")
        .dbname(database)
        .application_name("faults")
        .connect_timeout(Duration::from_secs(5));
    let (client, connection) = config.connect(NoTls).await?;
    // It ends with its client.
    tokio::spawn(connection);
    Ok(client)
}

/// The system's clock, in microseconds.
pub(crate) fn wall() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}
