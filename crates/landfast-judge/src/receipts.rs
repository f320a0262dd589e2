//! The application's own logs of what it received, held against what was sent.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::Path,
};

use serde::{Deserialize, Serialize};

/// What the application's logs say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipts {
    pub files: usize,
    /// Ids of this run that were answered 200.
    pub acknowledged: u64,
    /// Ids of this run found in the logs, each counted once.
    pub found: u64,
    pub missing: u64,
    pub doubled: u64,
    /// In the logs without an answer that arrived: the request is counted where it was lost.
    pub unacknowledged: u64,
}

/// What became of a post, as far as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Post {
    /// Sent; nothing more is known.
    Sent,
    Acknowledged,
    /// Counted as lost already.
    Lost,
    /// Refused by a rate limit, so the application must not have it.
    Limited,
}

/// A post whose id is not exactly once where it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    Missing(u64),
    Doubled(u64),
}

/// Reads every `receipts-*.log` in `folder` and compares the ids `<run>-<number>` with `posts`.
pub(crate) fn compare(
    folder: &Path,
    run: &str,
    posts: &[Post],
) -> io::Result<(Receipts, Vec<Wrong>)> {
    let mut receipts = Receipts::default();
    let mut seen = vec![0_u8; posts.len()];
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !(name.starts_with("receipts-") && name.ends_with(".log")) {
            continue;
        }
        receipts.files += 1;
        for line in BufReader::new(File::open(entry.path())?).split(b'\n') {
            let line = line?;
            let number = line
                .strip_prefix(run.as_bytes())
                .and_then(|rest| rest.strip_prefix(b"-"));
            let number =
                number.and_then(|number| std::str::from_utf8(number).ok()?.parse::<usize>().ok());
            if let Some(count) = number.and_then(|number| seen.get_mut(number)) {
                *count = count.saturating_add(1);
            }
        }
    }
    let mut wrong = Vec::new();
    for (number, (post, count)) in posts.iter().zip(seen).enumerate() {
        let number = number as u64;
        receipts.acknowledged += u64::from(*post == Post::Acknowledged);
        receipts.found += u64::from(count > 0);
        match (*post, count) {
            (Post::Acknowledged, 0) => {
                receipts.missing += 1;
                wrong.push(Wrong::Missing(number));
            }
            (_, 2..) => {
                receipts.doubled += 1;
                // One that is lost already is not lost twice.
                if *post != Post::Lost {
                    wrong.push(Wrong::Doubled(number));
                }
            }
            (Post::Sent | Post::Lost, 1) => receipts.unacknowledged += 1,
            // It was told to come back later, and was served all the same.
            (Post::Limited, 1) => wrong.push(Wrong::Doubled(number)),
            (Post::Sent | Post::Lost | Post::Limited, 0) | (Post::Acknowledged, 1) => {}
        }
    }
    Ok((receipts, wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_missing_and_what_is_doubled_over_all_files() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("receipts-a.log", "run-0\nrun-1\nother-2\nrun-4\nrun-99\n");
        write("receipts-b.log", "run-1\nrun-3\nrun-4\nrun-");
        write("notes.log", "run-2\n");
        let posts = [
            Post::Acknowledged,
            Post::Acknowledged,
            Post::Acknowledged,
            Post::Sent,
            Post::Lost,
        ];
        let (receipts, wrong) = compare(folder.path(), "run", &posts).unwrap();
        assert_eq!(wrong, [Wrong::Doubled(1), Wrong::Missing(2)]);
        let expected = Receipts {
            files: 2,
            acknowledged: 3,
            found: 4,
            missing: 1,
            doubled: 2,
            unacknowledged: 1,
        };
        assert_eq!(receipts, expected);
    }
}
