//! Log segments: what an instance writes, line by line, in files of bounded size and number.
//!
//! A line is `2026-11-20T23:43:12.123456Z o text`: the instant it was read in UTC, the stream (`o` standard output,
//! `e` standard error, `s` a word of the shim) and the text. `o+` and `e+` mark a piece of a line that was cut at
//! [`LINE_BYTES_MAX`]; the next piece of that stream goes on with it. Segments are `00000001.log` and so on; the
//! highest number is the one being written, so a reader follows by number and never sees a file change its name.
//!
//! Writing never fails: what the disk does not take is dropped and counted, and the count is written down as soon
//! as there is room again.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use landfast_types::Timestamp;

use crate::wire::{LogSettings, OutputStream};

/// Longer lines are cut into pieces of this size.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Lines are gathered up to this size before they are written.
const BATCH_BYTES_MAX: usize = 64 << 10;
/// A buffer that grew beyond this for one long line is given back.
const BUFFER_KEPT_BYTES: usize = 4 << 10;
const STAMP_LEN: usize = "2026-11-20T23:43:12.123456Z".len();

/// The segments in a log folder, oldest first. A folder that does not exist has none.
///
/// # Errors
/// When the folder cannot be read.
pub fn segments(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_suffix(".log")?.parse().ok());
        if let Some(number) = number {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Who wrote a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    Stdout,
    Stderr,
    /// The shim itself.
    Shim,
}

/// One line of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLine<'a> {
    pub at: Timestamp,
    pub stream: LogStream,
    /// The next line of this stream goes on with this one.
    pub is_partial: bool,
    pub text: &'a [u8],
}

impl<'a> LogLine<'a> {
    /// Reads a line without its newline; `None` for what no shim wrote whole.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let (stamp, rest) = line.split_at_checked(STAMP_LEN)?;
        let (stream, rest) = rest.strip_prefix(b" ")?.split_first()?;
        let stream = match stream {
            b'o' => LogStream::Stdout,
            b'e' => LogStream::Stderr,
            b's' => LogStream::Shim,
            _ => return None,
        };
        let (is_partial, rest) = match rest.strip_prefix(b"+") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        Some(Self {
            at: parse_stamp(stamp)?,
            stream,
            is_partial,
            text: rest.strip_prefix(b" ")?,
        })
    }
}

/// Cuts one output stream into lines.
pub struct Splitter {
    letter: u8,
    /// The begin of a line whose end has not come yet.
    begun: Vec<u8>,
}

impl Splitter {
    /// For one stream of one instance.
    pub fn new(stream: OutputStream) -> Self {
        let letter = match stream {
            OutputStream::Stdout => b'o',
            OutputStream::Stderr => b'e',
        };
        Self {
            letter,
            begun: Vec::new(),
        }
    }

    /// Takes what was read and writes the lines that are whole.
    pub fn feed(&mut self, now: Timestamp, bytes: &[u8], log: &mut LogWriter) {
        self.gather(now, bytes, log);
        log.flush(now);
    }

    /// Takes what was read; lines that are whole are written with the next [`LogWriter::flush`], or before.
    pub fn gather(&mut self, now: Timestamp, bytes: &[u8], log: &mut LogWriter) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (mut text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            while self.begun.len() + text.len() > LINE_BYTES_MAX {
                let (fits, rest) = text.split_at(LINE_BYTES_MAX - self.begun.len());
                log.line(now, self.letter, true, &[&self.begun, fits]);
                self.begun.clear();
                text = rest;
            }
            if ends {
                log.line(now, self.letter, false, &[&self.begun, text]);
                self.begun.clear();
            } else {
                self.begun.extend_from_slice(text);
            }
        }
        if self.begun.is_empty() && self.begun.capacity() > BUFFER_KEPT_BYTES {
            self.begun = Vec::new();
        }
    }

    /// Writes a last line that has no end.
    pub fn finish(&mut self, now: Timestamp, log: &mut LogWriter) {
        if !self.begun.is_empty() {
            log.line(now, self.letter, false, &[&self.begun]);
            self.begun = Vec::new();
            log.flush(now);
        }
    }
}

/// Writes lines to segments.
pub struct LogWriter {
    settings: LogSettings,
    number: u64,
    file: Option<File>,
    size: u64,
    batch: Vec<u8>,
    batch_lines: u64,
    /// Not yet confessed in the log.
    dropped: u64,
    dropped_ever: u64,
    /// A piece of a batch could not be taken back: the next line begins with a newline.
    is_torn: bool,
}

impl LogWriter {
    /// Begins another segment.
    pub fn new(settings: LogSettings) -> Self {
        // Where nothing can be listed nothing can be written either; that is found out, and counted, by the first line.
        let last = segments(&settings.folder)
            .ok()
            .and_then(|all| all.last().map(|(number, _)| *number));
        Self {
            settings,
            number: last.unwrap_or(0),
            file: None,
            size: 0,
            batch: Vec::new(),
            batch_lines: 0,
            dropped: 0,
            dropped_ever: 0,
            is_torn: false,
        }
    }

    /// Goes on in the newest segment where it has room: for who writes one log in turns.
    pub fn resume(settings: LogSettings) -> Self {
        let mut writer = Self::new(settings);
        let path = writer.settings.folder.join(segment_name(writer.number));
        if let Ok((file, size, ends_line)) = open_last(&path)
            && size < writer.settings.segment_bytes_max
        {
            (writer.file, writer.size, writer.is_torn) = (Some(file), size, !ends_line);
        }
        writer
    }

    /// Lines dropped so far.
    pub(crate) fn dropped_ever(&self) -> u64 {
        self.dropped_ever
    }

    fn line(&mut self, now: Timestamp, letter: u8, is_partial: bool, text: &[&[u8]]) {
        push_head(&mut self.batch, now, letter, is_partial);
        text.iter()
            .for_each(|piece| self.batch.extend_from_slice(piece));
        self.batch.push(b'\n');
        self.batch_lines += 1;
        if self.batch.len() >= BATCH_BYTES_MAX {
            self.flush(now);
        }
    }

    /// Writes what was gathered.
    pub fn flush(&mut self, now: Timestamp) {
        if self.batch.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        let lines = std::mem::take(&mut self.batch_lines);
        if self.dropped > 0 {
            let mut confession = Vec::new();
            push_head(&mut confession, now, b's', false);
            let words = format!(
                "{} lines were dropped: they could not be written\n",
                self.dropped
            );
            confession.extend_from_slice(words.as_bytes());
            batch.splice(0..0, confession);
        }
        if self.is_torn {
            batch.insert(0, b'\n');
        }
        match self.write(&batch) {
            Ok(()) => (self.dropped, self.is_torn) = (0, false),
            Err(_) => {
                self.dropped += lines;
                self.dropped_ever += lines;
            }
        }
        if batch.capacity() <= BUFFER_KEPT_BYTES {
            batch.clear();
            self.batch = batch;
        }
    }

    /// Writes all of it or, as far as the file system lets us, none.
    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        let len = batch.len() as u64;
        if self.file.is_none() || self.size > 0 && self.size + len > self.settings.segment_bytes_max
        {
            self.open_next()?;
        }
        let Some(file) = &mut self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        match file.write_all(batch) {
            Ok(()) => {
                self.size += len;
                Ok(())
            }
            Err(error) => {
                self.is_torn |= file.set_len(self.size).is_err();
                Err(error)
            }
        }
    }

    fn open_next(&mut self) -> io::Result<()> {
        fs::create_dir_all(&self.settings.folder)?;
        let number = self.number + 1;
        let path = self.settings.folder.join(segment_name(number));
        let file = File::options().create_new(true).append(true).open(path)?;
        (self.file, self.number, self.size) = (Some(file), number, 0);
        let kept = self.settings.segments_kept.max(1);
        for (old, path) in segments(&self.settings.folder)? {
            if old + kept <= number {
                // One that cannot be removed is tried again at the next rotation.
                drop(fs::remove_file(path));
            }
        }
        Ok(())
    }
}

fn segment_name(number: u64) -> String {
    format!("{number:08}.log")
}

/// A segment that is gone on with: its size, and whether its last line has an end.
fn open_last(path: &Path) -> io::Result<(File, u64, bool)> {
    let file = File::options().read(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    let mut last = [b'\n'];
    if size > 0 {
        file.read_exact_at(&mut last, size - 1)?;
    }
    Ok((file, size, last == *b"\n"))
}

fn push_head(out: &mut Vec<u8>, now: Timestamp, letter: u8, is_partial: bool) {
    push_stamp(out, now);
    out.extend_from_slice(&[b' ', letter]);
    if is_partial {
        out.push(b'+');
    }
    out.push(b' ');
}

const DAY_MICROS: i64 = 86_400_000_000;

/// RFC 3339 in UTC with microseconds. Written by hand because a formatting library would touch more memory than all
/// the rest of the shim.
fn push_stamp(out: &mut Vec<u8>, at: Timestamp) {
    let micros = at.as_micros();
    let (day, rest) = (micros.div_euclid(DAY_MICROS), micros.rem_euclid(DAY_MICROS));
    let (year, month, date) = civil_from_days(day);
    let seconds = rest / 1_000_000;
    let mut field = |value: i64, width: usize, after: u8| {
        let start = out.len();
        let mut value = value.max(0);
        for _ in 0..width {
            out.push(b'0' + u8::try_from(value % 10).unwrap_or(0));
            value /= 10;
        }
        out[start..].reverse();
        out.push(after);
    };
    field(year, 4, b'-');
    field(month, 2, b'-');
    field(date, 2, b'T');
    field(seconds / 3_600, 2, b':');
    field(seconds / 60 % 60, 2, b':');
    field(seconds % 60, 2, b'.');
    field(rest % 1_000_000, 6, b'Z');
}

fn parse_stamp(stamp: &[u8]) -> Option<Timestamp> {
    let field = |from: usize, to: usize| {
        let digits = stamp.get(from..to)?;
        digits.iter().try_fold(0_i64, |sum, digit| {
            digit
                .is_ascii_digit()
                .then(|| sum * 10 + i64::from(digit - b'0'))
        })
    };
    let marks = [
        (4, b'-'),
        (7, b'-'),
        (10, b'T'),
        (13, b':'),
        (16, b':'),
        (19, b'.'),
        (26, b'Z'),
    ];
    if !marks
        .iter()
        .all(|(index, mark)| stamp.get(*index) == Some(mark))
    {
        return None;
    }
    let (month, date) = (field(5, 7)?, field(8, 10)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&date) {
        return None;
    }
    let days = days_from_civil(field(0, 4)?, month, date);
    let seconds = field(11, 13)? * 3_600 + field(14, 16)? * 60 + field(17, 19)?;
    Some(Timestamp::from_micros(
        days * DAY_MICROS + seconds * 1_000_000 + field(20, 26)?,
    ))
}

/// Days since 1970-01-01 to year, month and day in the Gregorian calendar: eras of 400 years that begin on 1 March.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let date = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, date)
}

fn days_from_civil(year: i64, month: i64, date: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + date - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(folder: &Path, segment_bytes_max: u64) -> LogWriter {
        let folder = folder.join("logs");
        LogWriter::new(LogSettings {
            folder,
            segment_bytes_max,
            segments_kept: 5,
        })
    }

    fn content(folder: &Path) -> Vec<u8> {
        let all = segments(&folder.join("logs")).unwrap();
        all.iter()
            .flat_map(|(_, path)| fs::read(path).unwrap())
            .collect()
    }

    #[test]
    fn writes_instants_as_rfc_3339_says() {
        for micros in [
            0,
            1,
            -1,
            1_795_218_192_123_456,
            951_782_400_000_000,
            4_102_444_799_999_999,
        ] {
            let at = Timestamp::from_micros(micros);
            let mut stamp = Vec::new();
            push_stamp(&mut stamp, at);
            let expected = jiff::Timestamp::from_microsecond(micros).unwrap();
            assert_eq!(
                String::from_utf8(stamp.clone()).unwrap(),
                format!("{expected:.6}")
            );
            assert_eq!(parse_stamp(&stamp), Some(at));
        }
    }

    #[test]
    fn cuts_lines_wherever_the_reads_fell() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = writer(folder.path(), 8 << 20);
        let mut splitter = Splitter::new(OutputStream::Stderr);
        for piece in ["on", "e\ntwo\n\nth", "ree"] {
            splitter.feed(Timestamp::from_micros(0), piece.as_bytes(), &mut log);
        }
        splitter.finish(Timestamp::from_micros(0), &mut log);
        let head = "1970-01-01T00:00:00.000000Z e ";
        let expected = format!("{head}one\n{head}two\n{head}\n{head}three\n");
        assert_eq!(String::from_utf8(content(folder.path())).unwrap(), expected);
    }

    #[test]
    fn cuts_a_long_line_into_marked_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = writer(folder.path(), 8 << 20);
        let mut splitter = Splitter::new(OutputStream::Stdout);
        let long = vec![b'x'; LINE_BYTES_MAX * 2 + 7];
        for piece in long.chunks(50_000) {
            splitter.feed(Timestamp::EPOCH, piece, &mut log);
        }
        splitter.feed(Timestamp::EPOCH, b"\nshort\n", &mut log);
        let content = content(folder.path());
        let lines = content
            .split(|byte| *byte == b'\n')
            .filter_map(LogLine::parse);
        let seen: Vec<_> = lines
            .map(|line| (line.is_partial, line.text.len()))
            .collect();
        let max = LINE_BYTES_MAX;
        assert_eq!(seen, [(true, max), (true, max), (false, 7), (false, 5)]);
    }

    #[test]
    fn keeps_the_newest_segments_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = writer(folder.path(), 1_000);
        let mut splitter = Splitter::new(OutputStream::Stdout);
        for number in 0..500 {
            splitter.feed(
                Timestamp::EPOCH,
                format!("line {number}\n").as_bytes(),
                &mut log,
            );
        }
        let kept = segments(&folder.path().join("logs")).unwrap();
        assert_eq!(kept.len(), 5);
        assert!(
            kept.iter()
                .all(|(_, path)| fs::metadata(path).unwrap().len() <= 1_000)
        );
        assert!(content(folder.path()).ends_with(b"line 499\n"));
        // A later writer goes on after the last segment.
        let mut later = writer(folder.path(), 1_000);
        splitter.feed(Timestamp::EPOCH, b"again\n", &mut later);
        assert_eq!(
            segments(&folder.path().join("logs"))
                .unwrap()
                .last()
                .unwrap()
                .0,
            kept[4].0 + 1
        );
    }

    #[test]
    fn goes_on_in_the_segment_it_left() {
        let folder = tempfile::tempdir().unwrap();
        let settings = writer(folder.path(), 200).settings;
        let mut splitter = Splitter::new(OutputStream::Stdout);
        for text in ["one\n", "two\n"] {
            let mut log = LogWriter::resume(settings.clone());
            splitter.feed(Timestamp::EPOCH, text.as_bytes(), &mut log);
        }
        let segments_now = || segments(&folder.path().join("logs")).unwrap();
        assert_eq!(segments_now().len(), 1);
        // What was cut short there stays a line of its own.
        let path = &segments_now()[0].1;
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(b"torn").unwrap();
        let mut log = LogWriter::resume(settings.clone());
        splitter.feed(Timestamp::EPOCH, b"three\n", &mut log);
        let text = String::from_utf8(content(folder.path())).unwrap();
        assert!(text.contains(" o two\ntorn\n1970"), "{text}");
        let filling = format!("{}\n", "x".repeat(200));
        splitter.feed(Timestamp::EPOCH, filling.as_bytes(), &mut log);
        let mut log = LogWriter::resume(settings);
        splitter.feed(Timestamp::EPOCH, b"four\n", &mut log);
        assert_eq!(segments_now().len(), 3);
    }

    #[test]
    fn drops_and_counts_what_the_disk_does_not_take() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = writer(folder.path(), 8 << 20);
        let mut splitter = Splitter::new(OutputStream::Stdout);
        // The kernel's own full disk.
        log.file = Some(File::options().append(true).open("/dev/full").unwrap());
        splitter.feed(Timestamp::EPOCH, b"one\ntwo\n", &mut log);
        assert_eq!((log.dropped_ever(), log.is_torn), (2, true));
        log.file = None;
        splitter.feed(Timestamp::EPOCH, b"three\n", &mut log);
        let content = String::from_utf8(content(folder.path())).unwrap();
        assert!(content.contains(" s 2 lines were dropped"), "{content}");
        assert!(content.ends_with(" o three\n"), "{content}");
        splitter.feed(Timestamp::EPOCH, b"four\n", &mut log);
        assert_eq!(log.dropped_ever(), 2);
    }

    #[test]
    fn drops_lines_while_the_folder_cannot_be_made() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("logs"), "in the way").unwrap();
        let mut log = writer(folder.path(), 8 << 20);
        let mut splitter = Splitter::new(OutputStream::Stdout);
        splitter.feed(Timestamp::EPOCH, b"one\n", &mut log);
        assert_eq!(log.dropped_ever(), 1);
        fs::remove_file(folder.path().join("logs")).unwrap();
        splitter.feed(Timestamp::EPOCH, b"two\n", &mut log);
        assert!(content(folder.path()).ends_with(b" o two\n"));
    }
}
