//! Reads what instances wrote: the last lines of many, merged by time, and what comes after.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use landfast_shim::logs::{LogLine, LogStream, segments};
use landfast_types::{InstanceId, Timestamp};

/// What is read of one segment at most for the past.
const TAIL_BYTES_MAX: u64 = 1 << 20;
/// What is read at once of one instance when following.
const READ_BYTES_MAX: u64 = 256 << 10;

/// The logs of ended instances that are kept of each service and job.
const ENDED_KEPT: usize = 20;
/// How long any of them is kept.
const ENDED_AGE_MAX: Duration = Duration::from_secs(14 * 24 * 3_600);

/// One line of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub at: Timestamp,
    pub instance: InstanceId,
    pub stream: LogStream,
    pub text: String,
}

/// Follows the logs of an environment from a point on.
#[derive(Debug)]
pub struct Follower {
    folder: PathBuf,
    wanted: Wanted,
    places: BTreeMap<InstanceId, Place>,
}

/// Whose lines are wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// A service or job.
    pub process: Option<String>,
    pub instance: Option<String>,
}

impl Wanted {
    fn takes(&self, instance: &InstanceId) -> bool {
        let id = instance.as_str();
        let process = process_of(instance);
        let of_process = self
            .process
            .as_ref()
            .is_none_or(|wanted| wanted == process || process.strip_prefix("job-") == Some(wanted));
        of_process && self.instance.as_ref().is_none_or(|wanted| wanted == id)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    segment: u64,
    offset: u64,
}

impl Follower {
    /// Begins at the end of what is there, and returns the last `tail` lines of it, oldest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn begin(folder: PathBuf, wanted: Wanted, tail: usize) -> io::Result<(Self, Vec<Line>)> {
        let mut follower = Self {
            folder,
            wanted,
            places: BTreeMap::new(),
        };
        let mut lines = Vec::new();
        for (id, folder) in follower.instances()? {
            let segments = segments(&folder)?;
            let mut own = Vec::new();
            for (number, path) in segments.iter().rev() {
                let (mut newest, end) = read_tail(&id, path)?;
                follower.places.entry(id.clone()).or_insert(Place {
                    segment: *number,
                    offset: end,
                });
                newest.append(&mut own);
                own = newest;
                if own.len() >= tail {
                    break;
                }
            }
            let surplus = own.len().saturating_sub(tail);
            lines.extend(own.drain(surplus..));
        }
        lines.sort_by(|a, b| (a.at, &a.instance).cmp(&(b.at, &b.instance)));
        let surplus = lines.len().saturating_sub(tail);
        Ok((follower, lines.split_off(surplus)))
    }

    /// The lines that came since, of instances that started since as well.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn more(&mut self) -> io::Result<Vec<Line>> {
        let mut lines = Vec::new();
        for (id, folder) in self.instances()? {
            let mut place = self.places.get(&id).copied().unwrap_or_default();
            for (number, path) in segments(&folder)? {
                if number < place.segment {
                    continue;
                }
                if number > place.segment {
                    place = Place {
                        segment: number,
                        offset: 0,
                    };
                }
                place.offset += read_from(&id, &path, place.offset, &mut lines)?;
            }
            self.places.insert(id, place);
        }
        lines.sort_by_key(|line| line.at);
        Ok(lines)
    }

    fn instances(&self) -> io::Result<Vec<(InstanceId, PathBuf)>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let id = name
                .to_str()
                .and_then(|name| name.parse::<InstanceId>().ok());
            found.extend(
                id.filter(|id| self.wanted.takes(id))
                    .map(|id| (id, entry.path())),
            );
        }
        found.sort();
        Ok(found)
    }
}

/// Removes the logs of instances that ended long ago: of each service and job the newest twenty stay, for two weeks.
///
/// # Errors
/// When the folder cannot be read. What cannot be removed stays.
pub(crate) fn collect(
    folder: &Path,
    kept: &BTreeSet<InstanceId>,
    now: Timestamp,
) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut ended = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.parse::<InstanceId>().ok());
        if let Some(id) = id.filter(|id| !kept.contains(id)) {
            ended.push((id, last_written(&entry.path())));
        }
    }
    for id in surplus(ended, now) {
        if let Err(error) = fs::remove_dir_all(folder.join(id.as_str())) {
            tracing::debug!(instance = %id, %error, "its log stays");
        }
    }
    Ok(())
}

/// Which logs of ended instances are let go, by when each was last written.
fn surplus(mut ended: Vec<(InstanceId, Timestamp)>, now: Timestamp) -> Vec<InstanceId> {
    ended.sort_by(|(one, at), (other, then)| (then, other).cmp(&(at, one)));
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut is_surplus = |id: &InstanceId, at: Timestamp| {
        let count = counts.entry(process_of(id).to_owned()).or_default();
        *count += 1;
        *count > ENDED_KEPT || now.since(at) > ENDED_AGE_MAX
    };
    ended.retain(|(id, at)| is_surplus(id, *at));
    ended.into_iter().map(|(id, _)| id).collect()
}

/// When a log was last written to; at the epoch where that cannot be told.
fn last_written(folder: &Path) -> Timestamp {
    let segments = segments(folder).unwrap_or_default();
    let newest = segments.last().map_or(folder, |(_, path)| path.as_path());
    let modified = fs::metadata(newest).and_then(|metadata| metadata.modified());
    let since = modified
        .ok()
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    Timestamp::EPOCH + since
}

/// The service or job of an instance.
fn process_of(id: &InstanceId) -> &str {
    let id = id.as_str();
    id.split('.').next().unwrap_or(id)
}

/// The last line an instance wrote itself.
pub fn last_line(folder: &Path) -> Option<String> {
    let segments = segments(folder).ok()?;
    let (_, path) = segments.last()?;
    let text = read_end(path).ok()?.0;
    let lines = text
        .split(|byte| *byte == b'\n')
        .rev()
        .filter_map(LogLine::parse);
    let mut own = lines.filter(|line| line.stream != LogStream::Shim && !line.text.is_empty());
    own.next()
        .map(|line| String::from_utf8_lossy(line.text).into_owned())
}

/// The last lines an instance wrote itself.
pub(crate) fn end_of(folder: &Path) -> String {
    let segments = segments(folder).unwrap_or_default();
    let text = segments.last().and_then(|(_, path)| read_end(path).ok());
    let (text, _) = text.unwrap_or_default();
    let lines = text
        .split(|byte| *byte == b'\n')
        .filter_map(LogLine::parse)
        .filter(|line| line.stream != LogStream::Shim);
    let lines = lines.map(|line| String::from_utf8_lossy(line.text).into_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// The line that most likely says why an instance failed: the first that speaks of an error, else the last one.
pub fn causal_line(folder: &Path) -> Option<String> {
    const WORDS: [&str; 6] = [
        "panicked",
        "fatal",
        "error",
        "exception",
        "failed",
        "cannot",
    ];
    let segments = segments(folder).ok()?;
    let (_, path) = segments.first()?;
    let mut text = Vec::new();
    File::open(path)
        .ok()?
        .take(TAIL_BYTES_MAX)
        .read_to_end(&mut text)
        .ok()?;
    let lines = text.split(|byte| *byte == b'\n').filter_map(LogLine::parse);
    let own = lines.filter(|line| line.stream != LogStream::Shim);
    let mut words = own.map(|line| String::from_utf8_lossy(line.text).into_owned());
    let speaks = |line: &String| {
        let line = line.to_ascii_lowercase();
        WORDS.iter().any(|word| line.contains(word))
    };
    words.find(speaks).or_else(|| last_line(folder))
}

fn read_tail(id: &InstanceId, path: &Path) -> io::Result<(Vec<Line>, u64)> {
    let (text, end) = read_end(path)?;
    let whole = text
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let unfinished = (text.len() - whole) as u64;
    Ok((parse_lines(id, &text[..whole]), end - unfinished))
}

fn read_end(path: &Path) -> io::Result<(Vec<u8>, u64)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(TAIL_BYTES_MAX);
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut text)?;
    let end = from + text.len() as u64;
    Ok((text, end))
}

/// Reads whole lines from an offset on and returns how many bytes they were.
fn read_from(id: &InstanceId, path: &Path, offset: u64, lines: &mut Vec<Line>) -> io::Result<u64> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        // Rotated away between listing and opening.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut text = Vec::new();
    file.take(READ_BYTES_MAX).read_to_end(&mut text)?;
    let whole = text
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    lines.extend(parse_lines(id, &text[..whole]));
    Ok(whole as u64)
}

fn parse_lines(id: &InstanceId, text: &[u8]) -> Vec<Line> {
    let lines = text.split(|byte| *byte == b'\n').filter_map(LogLine::parse);
    let line = |line: LogLine<'_>| Line {
        at: line.at,
        instance: id.clone(),
        stream: line.stream,
        text: String::from_utf8_lossy(line.text).into_owned(),
    };
    lines.map(line).collect()
}

#[cfg(test)]
mod tests {
    use landfast_types::ReleaseId;

    use super::*;

    #[test]
    fn keeps_the_newest_logs_of_each_process_for_two_weeks() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let days = |days: u64| {
            let ago = i64::try_from(days * 24 * 3_600 * 1_000).unwrap();
            Timestamp::from_millis(1_800_000_000_000 - ago)
        };
        let id = |process: &str, number| InstanceId::new(process, ReleaseId(1), number);
        let later = |number| days(1) + Duration::from_secs(number);
        let mut ended: Vec<_> = (1..=25)
            .map(|number| (id("api", number), later(number)))
            .collect();
        ended.push((id("work", 26), days(13)));
        ended.push((id("job-smoke", 1), days(15)));
        let mut gone = surplus(ended, now);
        gone.sort();
        let mut expected: Vec<_> = (1..=5).map(|number| id("api", number)).collect();
        expected.push(id("job-smoke", 1));
        expected.sort();
        assert_eq!(gone, expected);
    }
}
