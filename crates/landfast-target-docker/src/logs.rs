//! What containers write, followed into the same segments that shims write.
//!
//! The daemon keeps a bounded file of it; each line there has its instant. Where a server stopped reading is told by
//! the segments themselves: the last instant of each stream, and how many lines have it. So nothing is read twice
//! after a restart of either, and nothing is missed that the daemon still has.

use std::{collections::BTreeMap, io, path::Path, time::Duration};

use bollard::{container::LogOutput, query_parameters::LogsOptionsBuilder};
use bytes::Bytes;
use futures_util::StreamExt as _;
use landfast_shim::{
    logs::{LogLine, LogStream, LogWriter, Splitter, segments},
    wire::{LogSettings, OutputStream},
};
use landfast_target::InstanceRef;
use landfast_types::Timestamp;

use crate::{clock, core::Core, daemon::DaemonError, exits, record::Record};

/// A stream that ended although its container did not is opened again after this.
const OPEN_AGAIN: Duration = Duration::from_millis(500);
/// And after this at most, where there is nothing to read.
const OPEN_AGAIN_MAX: Duration = Duration::from_secs(2);
/// Pieces that came at once are written at once.
const PIECES_MAX: usize = 256;
const NANOS_LEN_MAX: usize = "2026-11-22T06:24:37.503413655+00:00".len();

/// Where a stream was left: the last instant, and how many lines of it are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Mark {
    at: Option<Timestamp>,
    lines: u64,
}

/// One stream of a container on its way into segments.
struct Follow {
    splitter: Splitter,
    left: Mark,
    /// Lines of the mark's instant that came again.
    again: u64,
}

impl Follow {
    fn new(stream: OutputStream, left: Mark) -> Self {
        Self {
            splitter: Splitter::new(stream),
            left,
            again: 0,
        }
    }

    /// Takes what the daemon has stamped, unless it is written already.
    fn take(&mut self, message: &[u8], log: &mut LogWriter) -> Option<Timestamp> {
        let (at, text) = stamped(message)?;
        if let Some(left) = self.left.at {
            if at < left {
                return Some(at);
            }
            if at == left && self.again < self.left.lines {
                self.again += u64::from(text.ends_with(b"\n"));
                return Some(at);
            }
        }
        self.splitter.gather(at, text, log);
        Some(at)
    }
}

/// `2026-11-22T06:24:37.503413655Z text`, as a daemon writes a line with its instant.
fn stamped(message: &[u8]) -> Option<(Timestamp, &[u8])> {
    let head = &message[..message.len().min(NANOS_LEN_MAX + 1)];
    let space = head.iter().position(|byte| *byte == b' ')?;
    let stamp = std::str::from_utf8(&message[..space]).ok()?;
    Some((exits::instant(stamp)?, &message[space + 1..]))
}

/// Where the segments of a folder end, for each stream.
fn marks(folder: &Path) -> io::Result<BTreeMap<char, Mark>> {
    let mut marks = BTreeMap::from([('o', Mark::default()), ('e', Mark::default())]);
    // The newest segment may hold lines of one stream only.
    for (_, path) in segments(folder)?.into_iter().rev() {
        let bytes = std::fs::read(path)?;
        let mut here: BTreeMap<char, Mark> = BTreeMap::new();
        for line in bytes
            .split(|byte| *byte == b'\n')
            .filter_map(LogLine::parse)
        {
            let stream = match line.stream {
                LogStream::Stdout => 'o',
                LogStream::Stderr => 'e',
                LogStream::Shim => continue,
            };
            let mark = here.entry(stream).or_default();
            match mark.at {
                Some(at) if at == line.at => mark.lines += 1,
                Some(_) | None => (mark.at, mark.lines) = (Some(line.at), 1),
            }
        }
        for (stream, found) in here {
            let mark = marks.entry(stream).or_default();
            match mark.at {
                None => *mark = found,
                // The instant began in the segment before.
                Some(at) if found.at == Some(at) => mark.lines += found.lines,
                Some(_) => {}
            }
        }
        if marks.values().all(|mark| mark.at.is_some()) {
            break;
        }
    }
    Ok(marks)
}

impl Core {
    /// Follows one container until it has ended and all it wrote is read, or it is gone.
    pub(crate) async fn follow(&self, id: &InstanceRef) {
        let mut pause = OPEN_AGAIN;
        loop {
            // Where the segments end is not looked up for a daemon that is away; whoever watches it asks on.
            while self.daemon.outage().is_some() {
                tokio::time::sleep(OPEN_AGAIN).await;
            }
            let record = match self.remembered(id).await {
                Ok(Some(record)) => record,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(scope = %id.scope, instance = %id.instance, %error, "what it writes is not read");
                    return;
                }
            };
            let Some(started) = &record.started else {
                return;
            };
            match self.read(&record, &started.container).await {
                Ok(true) => pause = OPEN_AGAIN,
                Ok(false) | Err(DaemonError::Refused { .. }) => {}
                Err(error) => {
                    self.daemon.note_error(&error);
                    tracing::debug!(instance = %id.instance, %error, "what it writes cannot be read just now");
                }
            }
            // The stream ends with the container, and with the daemon.
            match self.inspect(&started.container).await {
                Ok(None) => return,
                Ok(Some(found)) => {
                    let state = found.state.unwrap_or_default();
                    let life = exits::life(&state, None);
                    if !matches!(life, exits::Life::Runs { .. }) {
                        return;
                    }
                }
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(OPEN_AGAIN_MAX);
        }
    }

    /// Reads until the stream ends. True when something came.
    async fn read(&self, record: &Record, container: &str) -> Result<bool, DaemonError> {
        let folder = record.log_folder.clone();
        let marks = self.with_records(move |_| marks(&folder)).await;
        let marks = marks.map_err(|error| DaemonError::Away(error.to_string()))?;
        let settings = LogSettings {
            folder: record.log_folder.clone(),
            segment_bytes_max: self.settings.log_segment_bytes_max,
            segments_kept: self.settings.log_segments_kept,
        };
        let mut log = LogWriter::resume(settings);
        let mark = |stream| marks.get(&stream).copied().unwrap_or_default();
        let mut stdout = Follow::new(OutputStream::Stdout, mark('o'));
        let mut stderr = Follow::new(OutputStream::Stderr, mark('e'));
        let since = marks
            .values()
            .map(|mark| mark.at.map_or(0, |at| at.as_micros() / 1_000_000))
            .min();
        let options = LogsOptionsBuilder::default()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .since(i32::try_from(since.unwrap_or(0)).unwrap_or(0))
            .tail("all")
            .build();
        let client = self.daemon.client().await?;
        let mut pieces = client
            .logs(container, Some(options))
            .ready_chunks(PIECES_MAX);
        let mut last = None;
        let mut told = Ok(());
        'reading: while let Some(batch) = pieces.next().await {
            for piece in batch {
                let (message, follow): (Bytes, _) = match piece {
                    Ok(LogOutput::StdErr { message }) => (message, &mut stderr),
                    Ok(
                        LogOutput::StdOut { message }
                        | LogOutput::Console { message }
                        | LogOutput::StdIn { message },
                    ) => (message, &mut stdout),
                    Err(error) => {
                        told = Err(error.into());
                        break 'reading;
                    }
                };
                last = follow.take(&message, &mut log).or(last);
            }
            log.flush(last.unwrap_or_else(clock::now));
        }
        let at = last.unwrap_or_else(clock::now);
        // A line without an end is whole only when nothing more can come; where it does, it is read again.
        if told.is_ok() && self.has_ended(container).await {
            stdout.splitter.finish(at, &mut log);
            stderr.splitter.finish(at, &mut log);
        }
        log.flush(at);
        told.map(|()| last.is_some())
    }

    async fn has_ended(&self, container: &str) -> bool {
        let found = self.inspect(container).await;
        found.is_ok_and(|found| {
            found.is_none_or(|found| {
                let life = exits::life(&found.state.unwrap_or_default(), None);
                !matches!(life, exits::Life::Runs { .. })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(folder: &Path) -> LogSettings {
        LogSettings {
            folder: folder.join("logs"),
            segment_bytes_max: 1 << 20,
            segments_kept: 5,
        }
    }

    fn lines(folder: &Path) -> Vec<String> {
        let all = segments(&folder.join("logs")).unwrap();
        let text: String = all
            .iter()
            .map(|(_, path)| std::fs::read_to_string(path).unwrap())
            .collect();
        text.lines()
            .map(|line| line.split_once("Z ").unwrap().1.to_owned())
            .collect()
    }

    /// One life of a server: reads all the daemon has from where the segments end.
    fn read(folder: &Path, messages: &[(&str, OutputStream)]) {
        let marks = marks(&folder.join("logs")).unwrap();
        let mut log = LogWriter::resume(settings(folder));
        let mut stdout = Follow::new(OutputStream::Stdout, marks[&'o']);
        let mut stderr = Follow::new(OutputStream::Stderr, marks[&'e']);
        for (message, stream) in messages {
            let follow = match stream {
                OutputStream::Stdout => &mut stdout,
                OutputStream::Stderr => &mut stderr,
            };
            assert!(follow.take(message.as_bytes(), &mut log).is_some());
        }
        log.flush(Timestamp::EPOCH);
    }

    #[test]
    fn reads_nothing_twice_and_misses_nothing() {
        use OutputStream::{Stderr, Stdout};
        let folder = tempfile::tempdir().unwrap();
        let at = |nanos: &str| format!("2026-11-22T06:24:37.{nanos}Z");
        let message = |nanos: &str, text: &str| format!("{} {text}", at(nanos));
        let all = [
            (message("503413655", "one\n"), Stdout),
            // The same microsecond, and the same text.
            (message("503413755", "one\n"), Stdout),
            (message("503413855", "oh\n"), Stderr),
            (message("503413955", "one\n"), Stdout),
            // A line that came in two pieces.
            (message("600000001", "long "), Stdout),
            (message("600000101", "er\n"), Stderr),
            (message("700000001", "line\n"), Stdout),
            (message("800000001", "last\n"), Stdout),
        ];
        let all: Vec<_> = all
            .iter()
            .map(|(text, stream)| (text.as_str(), *stream))
            .collect();
        let expected = [
            "o one",
            "o one",
            "e oh",
            "o one",
            "e er",
            "o long line",
            "o last",
        ];
        // Whoever reads may end after any message and begin again with all of them.
        for cut in 0..=all.len() {
            let folder = folder.path().join(cut.to_string());
            read(&folder, &all[..cut]);
            read(&folder, &all);
            read(&folder, &all);
            assert_eq!(lines(&folder), expected, "after {cut}");
        }
    }
}
