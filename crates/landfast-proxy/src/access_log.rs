//! The access log: one JSON line per request, written by a thread of its own from a bounded queue. Under
//! pressure lines are dropped and counted rather than a request held up.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
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

use crate::{counters::Counter, settings::WorkerSettings};

/// Lines that may wait for the disk.
const QUEUE_MAX: usize = 4_096;

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
    /// Starts the writer where a path is set.
    pub(crate) fn start(settings: &WorkerSettings) -> Self {
        let Some(path) = settings.access_log.clone() else {
            return Self::default();
        };
        let (queue, lines) = sync_channel(QUEUE_MAX);
        let bytes_max = settings.access_log_bytes_max;
        let thread = std::thread::Builder::new().name("access-log".into());
        let writer = match thread.spawn(move || write_lines(&lines, &path, bytes_max)) {
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

fn write_lines(lines: &Receiver<Line>, path: &Path, bytes_max: u64) {
    let mut log = Log {
        path: path.to_owned(),
        bytes_max,
        open: None,
        failed: false,
    };
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
    open: Option<(BufWriter<File>, u64)>,
    failed: bool,
}

impl Log {
    fn write(&mut self, line: &Line) {
        let result = self.try_write(line);
        self.note(result);
    }

    fn flush(&mut self) {
        let result = self.open.as_mut().map_or(Ok(()), |(file, _)| file.flush());
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
        if self
            .open
            .as_ref()
            .is_some_and(|(_, size)| *size >= self.bytes_max)
        {
            self.flush();
            self.open = None;
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
        }
        if self.open.is_none() {
            if let Some(folder) = self.path.parent() {
                fs::create_dir_all(folder)?;
            }
            let mut options = File::options();
            let file = options
                .append(true)
                .create(true)
                .mode(0o640)
                .open(&self.path)?;
            let size = file.metadata()?.len();
            self.open = Some((BufWriter::with_capacity(32 << 10, file), size));
        }
        let Some((file, size)) = &mut self.open else {
            return Ok(());
        };
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        *size += bytes.len() as u64;
        file.write_all(&bytes)
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
