//! Writes and reads items in an open loop, and holds what it reads against what was acknowledged.
//!
//! Each connection has items of its own, so what it reads must be what it wrote last, whichever release answers.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
    rc::Rc,
    time::Duration,
};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
};

use crate::{
    rate::{self, Row, Timetable},
    target::{self, Connected, Target},
};

/// What is written, and how often.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) host: String,
    /// Requests per second over all connections.
    pub(crate) rate: u32,
    pub(crate) connections: u32,
    pub(crate) time: Duration,
    /// Items with the numbers 1 to this exist.
    pub(crate) items: u64,
}

/// What became of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Done {
    answered: usize,
    written: u64,
    read: u64,
    failed: u64,
    /// Reads that gave another value than the one acknowledged last.
    mismatched: u64,
    /// The first failure, or the first mismatch.
    error: Option<String>,
}

/// The value of each item that was acknowledged last; `None` where a write has failed, and either may stand there.
type Acknowledged = BTreeMap<u64, Option<String>>;

/// Keeps the rate for a time. `log` takes a line `instant latency` for each answer, in microseconds; `acknowledged` a line
/// `item value` for each item whose value is known.
pub(crate) async fn run(
    target: Target,
    plan: Plan,
    log: &Path,
    acknowledged: &Path,
) -> anyhow::Result<Done> {
    let rows: Rc<RefCell<Vec<Row>>> = Rc::default();
    let mut tasks = JoinSet::new();
    let ended: Rc<Cell<bool>> = Rc::default();
    for timetable in rate::timetables(plan.rate, plan.connections, plan.time) {
        let (target, rows, ended) = (target.clone(), Rc::clone(&rows), Rc::clone(&ended));
        let mut one = Writer::new(timetable.number, plan.clone());
        tasks.spawn_local(async move {
            one.keep(&target, timetable, &ended, &rows).await;
            one
        });
    }
    // Whoever started it may end it early, by closing its input.
    tokio::task::spawn_local(async move {
        drop(tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await);
        ended.set(true);
    });
    let (mut done, mut known) = (Done::default(), Acknowledged::new());
    for one in tasks.join_all().await {
        done.written += one.done.written;
        done.read += one.done.read;
        done.failed += one.done.failed;
        done.mismatched += one.done.mismatched;
        done.error = done.error.or(one.done.error);
        known.extend(one.acknowledged);
    }
    let rows = rows.take();
    done.answered = rows.len();
    rate::write(log, &rows).with_context(|| format!("failed to write `{}`", log.display()))?;
    let mut file = BufWriter::new(File::create(acknowledged)?);
    for (item, value) in &known {
        if let Some(value) = value {
            writeln!(file, "{item} {value}")?;
        }
    }
    file.flush()?;
    Ok(done)
}

struct Writer {
    number: u32,
    plan: Plan,
    turn: u64,
    acknowledged: Acknowledged,
    done: Done,
}

impl Writer {
    fn new(number: u32, plan: Plan) -> Self {
        Self {
            number,
            plan,
            turn: 0,
            acknowledged: Acknowledged::new(),
            done: Done::default(),
        }
    }

    async fn keep(
        &mut self,
        target: &Target,
        timetable: Timetable,
        ended: &Cell<bool>,
        rows: &RefCell<Vec<Row>>,
    ) {
        let mut connection = None;
        let mut due = timetable.offset;
        while due < timetable.time && !ended.get() {
            timetable.wait(due).await;
            match self.turn(target, &mut connection).await {
                Ok(()) => rows.borrow_mut().push(timetable.row(due)),
                Err(error) => {
                    self.done.failed += 1;
                    self.done.error.get_or_insert_with(|| error.to_string());
                }
            }
            due += timetable.pace;
        }
    }

    /// One request: a change of an old item, a new item, or a look at one that was written before, in turns.
    async fn turn(&mut self, target: &Target, kept: &mut Option<Connected>) -> io::Result<()> {
        self.turn += 1;
        let (turn, own) = (self.turn, u64::from(self.number));
        let every = u64::from(self.plan.connections);
        let (method, item) = match turn % 3 {
            0 => {
                // Scattered over all that it wrote.
                let at = (turn.wrapping_mul(0x9E37_79B9) % self.acknowledged.len().max(1) as u64)
                    as usize;
                match self.acknowledged.keys().nth(at) {
                    Some(item) => ("GET", *item),
                    None => return Ok(()),
                }
            }
            1 => {
                let slots = (self.plan.items / every).max(1);
                let slot = turn.wrapping_mul(0x9E37_79B9) % slots;
                ("POST", slot * every + own + 1)
            }
            _ => ("PUT", self.plan.items + turn * every + own + 1),
        };
        let value = format!("w{own}-{turn}");
        let body = if method == "GET" { "" } else { value.as_str() };
        let mut open = match kept.take() {
            Some(open) => open,
            None => target.connect().await?,
        };
        let answered = exchange(&mut open, method, item, &self.plan.host, body).await;
        if method != "GET" {
            self.done.written += 1;
            let known = answered.is_ok().then(|| value.clone());
            self.acknowledged.insert(item, known);
        }
        let (keep_alive, text) = answered?;
        if method == "GET" {
            self.done.read += 1;
            let expected = self.acknowledged.get(&item).and_then(Option::as_ref);
            if expected.is_some_and(|expected| *expected != text) {
                self.done.mismatched += 1;
                let said = format!("item {item} is `{text}`, and `{expected:?}` was acknowledged");
                self.done.error.get_or_insert(said);
            }
        }
        *kept = keep_alive.then_some(open);
        Ok(())
    }
}

/// Sends a request and reads its answer, which must be 200: whether the connection may be used again, and the body.
async fn exchange(
    connection: &mut Connected,
    method: &str,
    item: u64,
    host: &str,
    body: &str,
) -> io::Result<(bool, String)> {
    let request = format!(
        "{method} /items/{item} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).await?;
    let (head, mut text) = target::head_and_rest(connection).await?;
    let length = target::field(&head, "content-length").and_then(|value| value.parse().ok());
    let length: usize = length.ok_or_else(|| io::Error::other("the answer has no length"))?;
    while text.len() < length {
        if connection.read_buf(&mut text).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    if !head.starts_with("HTTP/1.1 200 ") {
        let line = head.lines().next().unwrap_or_default();
        return Err(io::Error::other(format!(
            "{method} /items/{item}: `{line}`: {text}"
        )));
    }
    let close = target::field(&head, "connection");
    Ok((
        !close.is_some_and(|value| value.eq_ignore_ascii_case("close")),
        text,
    ))
}
