//! The access log: one JSON line per request, written by a thread of its own from a bounded queue. Under
//! pressure lines are dropped and counted rather than a request held up.
//!
//! After a hand-over several workers append to one file. Only the newest rotates it; each notices within a second that another
//! file lies at the path and writes there.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use landfast_types::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{clock, counters::Counter, settings::WorkerSettings};

/// Lines that may wait for the disk.
const QUEUE_MAX: usize = 4_096;
/// How often a worker looks whether the file at the path is still the one it writes.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One request. The query is left out: it may hold what must not be written down.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) at: String,
    pub(crate) request_id: String,
    pub(crate) client: String,
    pub(crate) protocol: &'static str,
    pub(crate) route: Option<String>,
    pub(crate) service: Option<String>,
    pub(crate) release: Option<u64>,
    pub(crate) backend: Option<String>,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) status: u16,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) first_byte_ms: Option<f64>,
    pub(crate) duration_ms: f64,
    pub(crate) retries: u32,
    pub(crate) cause: Option<String>,
}

/// Takes lines.
#[derive(Debug, Default)]
pub(crate) struct AccessLog {
    queue: Mutex<Option<SyncSender<Line>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    enabled: bool,
    pub(crate) dropped: Counter,
}

impl AccessLog {
    /// Starts the writer where a path is set. From `leaving` on it rotates nothing.
    pub(crate) fn start(settings: &WorkerSettings, leaving: CancellationToken) -> Self {
        let Some(path) = settings.access_log.clone() else {
            return Self::default();
        };
        let (queue, lines) = sync_channel(QUEUE_MAX);
        let bytes_max = settings.access_log_bytes_max;
        let thread = std::thread::Builder::new().name("access-log".into());
        let writer = match thread
            .spawn(move || write_lines(&lines, Log::new(path, bytes_max, leaving)))
        {
            Ok(writer) => writer,
            Err(error) => {
                tracing::error!(%error, "failed to start the access log's thread; no access log is written");
                return Self::default();
            }
        };
        Self {
            queue: Mutex::new(Some(queue)),
            writer: Mutex::new(Some(writer)),
            enabled: true,
            dropped: Counter::default(),
        }
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn write(&self, line: Line) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue
            .as_ref()
            .is_some_and(|queue| queue.try_send(line).is_err())
        {
            self.dropped.add(1);
        }
    }

    /// Writes out what waits.
    pub(crate) fn finish(&self) {
        drop(
            self.queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the access log's thread panicked");
        }
    }
}

fn write_lines(lines: &Receiver<Line>, mut log: Log) {
    while let Ok(line) = lines.recv() {
        log.write(&line);
        while let Ok(line) = lines.try_recv() {
            log.write(&line);
        }
        log.flush();
    }
}

struct Log {
    path: PathBuf,
    bytes_max: u64,
    leaving: CancellationToken,
    open: Option<Open>,
    failed: bool,
}

struct Open {
    file: BufWriter<File>,
    size: u64,
    looked_at: Duration,
}

impl Log {
    fn new(path: PathBuf, bytes_max: u64, leaving: CancellationToken) -> Self {
        Self {
            path,
            bytes_max,
            leaving,
            open: None,
            failed: false,
        }
    }

    fn write(&mut self, line: &Line) {
        let result = self.try_write(line);
        self.note(result);
    }

    fn flush(&mut self) {
        let result = self.open.as_mut().map_or(Ok(()), |open| open.file.flush());
        self.note(result);
    }

    /// Says once that writing fails, and once that it works again.
    fn note(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failed = false,
            Err(error) => {
                self.open = None;
                if !self.failed {
                    tracing::error!(path = %self.path.display(), %error, "failed to write the access log");
                }
                self.failed = true;
            }
        }
    }

    fn try_write(&mut self, line: &Line) -> io::Result<()> {
        self.look(clock::coarse())?;
        let is_full = |open: &Open| open.size >= self.bytes_max;
        if !self.leaving.is_cancelled() && self.open.as_ref().is_some_and(is_full) {
            self.flush();
            self.open = None;
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(Open::at(&self.path)?),
        };
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        open.size += bytes.len() as u64;
        open.file.write_all(&bytes)
    }

    /// Lets go of a file that another worker has rotated, and counts what others have written.
    fn look(&mut self, now: Duration) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        if now.saturating_sub(open.looked_at) < LOOK_EVERY {
            return Ok(());
        }
        open.looked_at = now;
        open.file.flush()?;
        let mine = open.file.get_ref().metadata()?;
        let is_mine = |there: fs::Metadata| (there.dev(), there.ino()) == (mine.dev(), mine.ino());
        open.size = mine.len();
        if !fs::metadata(&self.path).is_ok_and(is_mine) {
            self.open = None;
        }
        Ok(())
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = File::options();
        let file = options.append(true).create(true).mode(0o640).open(path)?;
        Ok(Self {
            size: file.metadata()?.len(),
            file: BufWriter::with_capacity(32 << 10, file),
            looked_at: clock::coarse(),
        })
    }
}

/// Milliseconds with three decimals.
pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The time of day of something that began `ago`.
pub(crate) fn began(now: Timestamp, ago: Duration) -> String {
    let micros = i64::try_from(ago.as_micros()).unwrap_or(0);
    Timestamp::from_micros(now.as_micros() - micros).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str) -> Line {
        Line {
            at: String::new(),
            request_id: String::new(),
            client: String::new(),
            protocol: "HTTP/1.1",
            route: None,
            service: None,
            release: None,
            backend: None,
            method: "GET".to_owned(),
            host: String::new(),
            path: path.to_owned(),
            status: 200,
            bytes_in: 0,
            bytes_out: 0,
            first_byte_ms: None,
            duration_ms: 0.0,
            retries: 0,
            cause: None,
        }
    }

    fn say(log: &mut Log, path: &str) {
        log.write(&line(path));
        log.flush();
        assert!(!log.failed);
    }

    /// As if the next look were due.
    fn wait(log: &mut Log) {
        log.look(clock::coarse() + LOOK_EVERY).expect("it looks");
    }

    #[test]
    fn only_the_newest_worker_rotates_and_the_older_one_follows() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let paths = |name: &str| -> Vec<String> {
            let text = fs::read_to_string(folder.path().join(name)).unwrap_or_default();
            let line =
                |line: &str| -> serde_json::Value { serde_json::from_str(line).expect("json") };
            text.lines()
                .map(|text| line(text)["path"].as_str().expect("a path").to_owned())
                .collect()
        };
        let leaving = CancellationToken::new();
        // One line is one too many.
        let mut elder = Log::new(path.clone(), 1, leaving.clone());
        say(&mut elder, "/1");
        leaving.cancel();
        let mut newest = Log::new(path, 1, CancellationToken::new());
        say(&mut newest, "/2");
        say(&mut newest, "/3");
        assert_eq!(paths("access.log.1"), ["/1", "/2"]);

        say(&mut elder, "/4");
        assert_eq!(paths("access.log"), ["/3"], "the older one rotated it");
        wait(&mut elder);
        say(&mut elder, "/5");
        assert_eq!(paths("access.log.1"), ["/1", "/2", "/4"]);
        assert_eq!(paths("access.log"), ["/3", "/5"]);

        wait(&mut newest);
        say(&mut newest, "/6");
        assert_eq!(paths("access.log.1"), ["/3", "/5"]);
        assert_eq!(paths("access.log"), ["/6"]);
    }
}
