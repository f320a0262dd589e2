//! Takes out of a dump of MariaDB whose rights views, triggers and routines run with.
//!
//! They would keep their rights on the database that was dumped, and write to it from the copy; those of logins that have no
//! rights on the copy would fail there. Without a definer it is whoever restores them. A definer that is missed here is refused by the
//! server, since the login that restores may give nobody else's rights.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// What lines with a definer begin with, as `mariadb-dump` and `mysqldump` write them: routines, triggers, views.
const HEADS: [&[u8]; 4] = [
    b"CREATE DEFINER=",
    b"/*!50003 CREATE*/ /*!50017 DEFINER=",
    b"/*!50003 CREATE*/ /*!50020 DEFINER=",
    b"/*!50013 DEFINER=",
];
/// A head, a user of 128 characters and a host of 255 bytes.
const LINE_READ_MAX: usize = 1 << 10;
const READ_AT_ONCE: usize = 1 << 20;

/// Writes spaces over the definers in a dump, which keeps its length. One that is removed meanwhile is not read further.
///
/// # Errors
/// When it cannot be read or written, or is no file.
pub(super) fn clear(dump: &Path) -> io::Result<()> {
    let no_links = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(no_links)
        .open(dump)?;
    let mut lines = Lines::default();
    let mut bytes = vec![0; READ_AT_ONCE];
    loop {
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let read = (&file).read(&mut bytes)?;
        if read == 0 || about.nlink() == 0 {
            return lines.end(&file);
        }
        lines.take(&bytes[..read], &file)?;
    }
}

/// The beginning of the line that is being read, and where in the file it lies.
#[derive(Default)]
struct Lines {
    beginning: Vec<u8>,
    begins_at: u64,
    read: u64,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], file: &File) -> io::Result<()> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_READ_MAX - self.beginning.len();
            self.beginning
                .extend_from_slice(&part[..part.len().min(room)]);
            self.read += u64::try_from(part.len()).unwrap_or(u64::MAX);
            if part.ends_with(b"\n") {
                self.end(file)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, file: &File) -> io::Result<()> {
        if let Some(found) = definer(&self.beginning) {
            let start = u64::try_from(found.start).unwrap_or(u64::MAX);
            file.write_all_at(&vec![b' '; found.len()], self.begins_at + start)?;
        }
        self.beginning.clear();
        self.begins_at = self.read;
        Ok(())
    }
}

/// Where a line has its definer: ``DEFINER=`name`@`host` ``, or a role, which has no host.
fn definer(line: &[u8]) -> Option<Range<usize>> {
    let head = HEADS.iter().find(|head| line.starts_with(head))?;
    let start = head.len() - b"DEFINER=".len();
    let mut end = head.len() + quoted(&line[head.len()..])?;
    if line[end..].starts_with(b"@") {
        end += 1 + quoted(&line[end + 1..])?;
    }
    Some(start..end)
}

/// The length of a name in backquotes; one inside is doubled.
fn quoted(text: &[u8]) -> Option<usize> {
    let mut rest = text.strip_prefix(b"`")?;
    loop {
        let close = rest.iter().position(|byte| *byte == b'`')?;
        rest = &rest[close + 1..];
        match rest.strip_prefix(b"`") {
            Some(after) => rest = after,
            None => return Some(text.len() - rest.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn cleared(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let dump = folder.path().join("dump");
        fs::write(&dump, text).unwrap();
        clear(&dump).unwrap();
        let after = fs::read_to_string(&dump).unwrap();
        assert_eq!(after.len(), text.len());
        let words: Vec<_> = after.split(' ').filter(|word| !word.is_empty()).collect();
        words.join(" ")
    }

    #[test]
    fn definers_go_and_nothing_else() {
        for (text, left) in [
            (
                "/*!50003 CREATE*/ /*!50017 DEFINER=`operator`@`%`*/ /*!50003 TRIGGER t BEFORE INSERT",
                "/*!50003 CREATE*/ /*!50017 */ /*!50003 TRIGGER t BEFORE INSERT",
            ),
            (
                "CREATE DEFINER=`a``b`@`%` PROCEDURE `p`()\nBEGIN\nEND ;;\n",
                "CREATE PROCEDURE `p`()\nBEGIN\nEND ;;\n",
            ),
            ("CREATE DEFINER=`role` FUNCTION f", "CREATE FUNCTION f"),
            (
                "x\n/*!50013 DEFINER=`release_1`@`%` SQL SECURITY DEFINER */\n",
                "x\n/*!50013 SQL SECURITY DEFINER */\n",
            ),
            (
                "INSERT INTO `t` VALUES (1,'CREATE DEFINER=`a`@`%`');\n",
                "INSERT INTO `t` VALUES (1,'CREATE DEFINER=`a`@`%`');\n",
            ),
            ("CREATE DEFINER=`unclosed\n", "CREATE DEFINER=`unclosed\n"),
        ] {
            assert_eq!(cleared(text), left, "{text}");
        }
    }

    #[test]
    fn lines_longer_than_what_is_read_at_once_are_read_on() {
        let long = "x".repeat(READ_AT_ONCE * 2 + 7);
        let text = format!("{long}\nCREATE DEFINER=`a`@`%` PROCEDURE p\n");
        assert_eq!(cleared(&text), format!("{long}\nCREATE PROCEDURE p\n"));
        // A definer across the border of two pieces.
        let long = "x".repeat(READ_AT_ONCE - 20);
        let text = format!("{long}\nCREATE DEFINER=`a`@`%` PROCEDURE p\n");
        assert_eq!(cleared(&text), format!("{long}\nCREATE PROCEDURE p\n"));
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (real, dump) = (folder.path().join("real"), folder.path().join("dump"));
        fs::write(&real, "CREATE DEFINER=`a`@`%` PROCEDURE p\n").unwrap();
        std::os::unix::fs::symlink(&real, &dump).unwrap();
        assert!(clear(&dump).is_err());
    }
}
