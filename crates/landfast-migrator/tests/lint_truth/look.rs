//! Runs a statement on PostgreSQL and writes down what it did.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};

use crate::world::{LOCKS, OLD_RELEASE, RELATIONS};

/// These stop writers, the last one readers too.
const STOPPING: [&str; 4] = [
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    EVERYBODY,
];
const EVERYBODY: &str = "AccessExclusiveLock";

/// What a statement was seen to do to what was there before.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The strongest lock of those that stop somebody, by table or index.
    pub(crate) locks: BTreeMap<String, String>,
    /// Tables and indexes that lie in another file now.
    pub(crate) rewritten: BTreeSet<String>,
    /// Tables of which every row was read. In a transaction only.
    pub(crate) scanned: BTreeSet<String>,
    /// What of the old release fails or comes to something else.
    pub(crate) broken: Vec<String>,
    /// The server's own words.
    pub(crate) refused: Option<String>,
    pub(crate) warned: Vec<String>,
    /// The statement wrote so many rows.
    pub(crate) rows: u64,
    /// The limit that the runner had set is not in force any more.
    pub(crate) unlimited: bool,
}

impl Seen {
    pub(crate) fn stops_writers(&self) -> bool {
        !self.locks.is_empty()
    }

    pub(crate) fn stops_everybody(&self) -> bool {
        self.locked_against_everybody() > 0
    }

    pub(crate) fn locked_against_everybody(&self) -> usize {
        self.locks
            .values()
            .filter(|mode| *mode == EVERYBODY)
            .count()
    }

    /// Whether a table stays locked for longer the more rows it has.
    pub(crate) fn works_under_lock(&self) -> bool {
        let mut worked = self.rewritten.iter().chain(&self.scanned);
        self.stops_writers() && worked.next().is_some()
    }
}

struct Relation {
    name: String,
    file: String,
    rows: i64,
    read: i64,
}

/// A session and the server's warnings to it.
struct Connection {
    client: Client,
    warnings: Arc<Mutex<Vec<String>>>,
    _other_half: JoinSet<()>,
}

impl Connection {
    async fn open(url: &str) -> Self {
        let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        let warnings = Arc::<Mutex<Vec<String>>>::default();
        let told = Arc::clone(&warnings);
        let mut other_half = JoinSet::new();
        other_half.spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notice(notice) = message
                    && notice.severity() == "WARNING"
                {
                    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                    told.push(notice.message().to_owned());
                }
            }
        });
        Self {
            client,
            warnings,
            _other_half: other_half,
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut told = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *told)
    }

    async fn run(&self, sql: &str) {
        let done = self.client.batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {}", said(&error)));
    }

    /// The rows as text, or the server's refusal.
    async fn text(&self, query: &str) -> Result<String, String> {
        let answer = self.client.simple_query(query).await;
        let answer = answer.map_err(|error| said(&error))?;
        let rows = answer.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|index| row.get(index).unwrap_or("NULL"));
                Some(cells.collect::<Vec<_>>().join("|"))
            }
            _ => None,
        });
        Ok(rows.collect::<Vec<_>>().join("\n"))
    }

    async fn pid(&self) -> i32 {
        let row = self.client.query_one("SELECT pg_backend_pid()", &[]).await;
        row.unwrap().get(0)
    }

    /// Each answer of the old release. Nothing of what it does stays.
    async fn old_release(&self) -> Vec<Result<String, String>> {
        let mut answers = Vec::new();
        for query in OLD_RELEASE {
            self.run("SAVEPOINT old").await;
            answers.push(self.text(query).await);
            self.run("ROLLBACK TO SAVEPOINT old; RELEASE SAVEPOINT old")
                .await;
        }
        answers
    }

    async fn relations(&self) -> BTreeMap<String, Relation> {
        let rows = self.client.query(RELATIONS, &[]).await.unwrap();
        let relation = |row: &tokio_postgres::Row| {
            let relation = Relation {
                name: row.get(1),
                file: row.get(2),
                rows: row.get(3),
                read: row.get(4),
            };
            (row.get(0), relation)
        };
        rows.iter().map(relation).collect()
    }

    /// The strongest stopping lock of a session on each table and index, by its number.
    async fn locks_of(&self, pid: i32) -> BTreeMap<String, String> {
        let rows = self.client.query(LOCKS, &[&pid]).await.unwrap();
        let mut locks = BTreeMap::<String, String>::new();
        let strength = |mode: &str| STOPPING.iter().position(|known| *known == mode);
        for row in &rows {
            let (number, mode): (String, String) = (row.get(0), row.get(1));
            let known = locks.get(&number).and_then(|mode| strength(mode));
            if strength(&mode) > known {
                locks.insert(number, mode);
            }
        }
        locks
    }

    /// Runs it; whether the server took it.
    async fn statement(&self, sql: &str, seen: &mut Seen) -> bool {
        match self.client.simple_query(sql).await {
            Ok(messages) => {
                let written = messages.iter().map(|message| match message {
                    SimpleQueryMessage::CommandComplete(rows) => *rows,
                    _ => 0,
                });
                seen.rows += written.sum::<u64>();
                true
            }
            Err(error) => {
                seen.refused = Some(said(&error));
                false
            }
        }
    }
}

fn said(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

fn differences(before: &[Result<String, String>], after: &[Result<String, String>]) -> Vec<String> {
    let pairs = OLD_RELEASE.iter().zip(before.iter().zip(after));
    pairs
        .filter(|(_, (before, after))| before != after)
        .map(|(query, (before, after))| format!("{query}: {before:?}, then {after:?}"))
        .collect()
}

impl Seen {
    fn note_locks(&mut self, known: &BTreeMap<String, Relation>, locks: BTreeMap<String, String>) {
        let strength = |mode: &str| STOPPING.iter().position(|known| *known == mode);
        for (number, mode) in locks {
            let Some(relation) = known.get(&number) else {
                continue;
            };
            let noted = self.locks.entry(relation.name.clone()).or_default();
            if strength(&mode) > strength(noted) {
                *noted = mode;
            }
        }
    }

    fn note_files(
        &mut self,
        before: &BTreeMap<String, Relation>,
        after: &BTreeMap<String, Relation>,
    ) {
        for (number, old) in before {
            if after.get(number).is_some_and(|now| now.file != old.file) {
                self.rewritten.insert(old.name.clone());
            }
        }
    }
}

const PREPARED: &str = "PREPARE every_column AS SELECT * FROM items WHERE id = 7";

/// As the runner does it: in a transaction with a limit on locks, which is then taken back. `emptied`: with no rows in `items`.
pub(crate) async fn in_transaction(url: &str, statements: &[String], emptied: bool) -> Seen {
    let connection = Connection::open(url).await;
    connection.run(PREPARED).await;
    connection.run("BEGIN; SET LOCAL lock_timeout = '2s'").await;
    if emptied {
        connection.run("DELETE FROM items").await;
    }
    let pid = connection.pid().await;
    let answers = connection.old_release().await;
    let before = connection.relations().await;
    connection.warnings();
    let mut seen = Seen::default();
    for statement in statements {
        if !connection.statement(statement, &mut seen).await {
            break;
        }
    }
    if seen.refused.is_none() {
        let limit = connection.text("SHOW lock_timeout").await.unwrap();
        seen.unlimited = limit != "2s";
        seen.note_locks(&before, connection.locks_of(pid).await);
        let after = connection.relations().await;
        seen.note_files(&before, &after);
        for (number, old) in &before {
            let read = after.get(number).map_or(0, |now| now.read - old.read);
            if old.rows > 0 && read >= old.rows {
                seen.scanned.insert(old.name.clone());
            }
        }
        // A file that ended the transaction left nothing that could be taken back to.
        if connection.text("SAVEPOINT still_there").await.is_ok() {
            seen.broken = differences(&answers, &connection.old_release().await);
        }
    }
    seen.warned = connection.warnings();
    connection.run("ROLLBACK").await;
    seen
}

/// Outside a transaction, in a database of its own, looked at by another session that has the table open.
pub(crate) async fn outside(url: &str, statements: &[String]) -> Seen {
    let connection = Connection::open(url).await;
    let other = Connection::open(url).await;
    let pid = connection.pid().await;
    connection.run(&format!("{PREPARED}; BEGIN")).await;
    let answers = connection.old_release().await;
    connection.run("ROLLBACK").await;
    let before = connection.relations().await;
    let mut seen = Seen::default();
    for statement in statements {
        // A lock that readers stop is waited for, and so it is seen.
        other
            .run("BEGIN; SELECT FROM items LIMIT 1; SELECT FROM parts LIMIT 1")
            .await;
        let mut holds = true;
        let mut ran = Seen::default();
        {
            let mut running = pin!(connection.statement(statement, &mut ran));
            loop {
                tokio::select! {
                    biased;
                    _done = &mut running => break,
                    () = tokio::time::sleep(Duration::from_millis(2)) => {}
                }
                seen.note_locks(&before, other.locks_of(pid).await);
                let waits = format!(
                    "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'"
                );
                if holds && other.text(&waits).await == Ok("1".to_owned()) {
                    seen.note_locks(&before, other.locks_of(pid).await);
                    other.run("COMMIT").await;
                    holds = false;
                }
            }
        }
        if holds {
            other.run("COMMIT").await;
        }
        seen.refused = seen.refused.or(ran.refused);
        seen.rows += ran.rows;
    }
    seen.note_files(&before, &connection.relations().await);
    let invalid =
        "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('i1') AND NOT indisvalid";
    if connection.text(invalid).await == Ok("1".to_owned()) {
        seen.warned
            .push("an INVALID index is still there".to_owned());
    }
    connection.run("BEGIN").await;
    seen.broken = differences(&answers, &connection.old_release().await);
    connection.run("ROLLBACK").await;
    // Once more, as a runner that cannot tell would.
    let nameless = |one: &String| one.starts_with("CREATE INDEX CONCURRENTLY ON");
    if statements.iter().all(nameless) {
        for statement in statements {
            connection.run(statement).await;
        }
        let twins = "SELECT count(*) > count(DISTINCT (indkey::text, indclass::text, pg_get_expr(indpred, indrelid)))
                     FROM pg_index WHERE indrelid = 'items'::regclass";
        if connection.text(twins).await == Ok("t".to_owned()) {
            seen.warned.push("run twice it is there twice".to_owned());
        }
    }
    seen
}
