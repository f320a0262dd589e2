//! `.landfastignore`: which paths of a folder are left out of its artifact.
//!
//! One pattern per line, as in `.gitignore`: `#` begins a comment; a pattern without `/` (but at its end) matches
//! at any depth, one with `/` from the top; a trailing `/` matches folders only; `*` and `?` do not cross `/`, `**`
//! does; `!` takes back what an earlier line left out. The last line that matches decides.

#[derive(Debug, Default)]
pub(crate) struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    /// Matched against the whole path; for an unanchored pattern, `**/` stands before it.
    pattern: String,
    takes_back: bool,
    folders_only: bool,
}

impl Ignore {
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let rules = lines.filter(|line| !line.starts_with('#')).map(|line| {
            let (takes_back, line) = match line.strip_prefix('!') {
                Some(line) => (true, line),
                None => (false, line),
            };
            let (folders_only, line) = match line.strip_suffix('/') {
                Some(line) => (true, line),
                None => (false, line),
            };
            let pattern = match line.strip_prefix('/') {
                Some(anchored) => anchored.to_owned(),
                None if line.contains('/') => line.to_owned(),
                None => format!("**/{line}"),
            };
            Rule {
                pattern,
                takes_back,
                folders_only,
            }
        });
        Self {
            rules: rules.collect(),
        }
    }

    pub(crate) fn leaves_out(&self, path: &str, is_folder: bool) -> bool {
        let matching = self.rules.iter().rev().find(|rule| {
            (is_folder || !rule.folders_only) && matches(rule.pattern.as_bytes(), path.as_bytes())
        });
        matching.is_some_and(|rule| !rule.takes_back)
    }
}

fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', b'/', rest @ ..] => {
            // Nothing, or any number of whole folders.
            let folders = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            matches(rest, path)
                || folders
                    .map(|(end, _)| &path[end + 1..])
                    .any(|below| matches(rest, below))
        }
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|taken| matches(rest, &path[taken..])),
        [b'*', rest @ ..] => {
            let name_len = path
                .iter()
                .position(|byte| *byte == b'/')
                .unwrap_or(path.len());
            (0..=name_len).any(|taken| matches(rest, &path[taken..]))
        }
        [b'?', rest @ ..] => path
            .split_first()
            .is_some_and(|(byte, path)| *byte != b'/' && matches(rest, path)),
        [literal, rest @ ..] => path
            .split_first()
            .is_some_and(|(byte, path)| byte == literal && matches(rest, path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_out_as_git_would() {
        let ignore = Ignore::parse("# notes\n*.log\n!keep.log\ntmp/\n/build\ndocs/*.md\na/**/z\n");
        for (path, is_folder, expected) in [
            ("x.log", false, true),
            ("deep/down/x.log", false, true),
            ("deep/keep.log", false, false),
            ("tmp", true, true),
            ("tmp", false, false),
            ("deep/tmp", true, true),
            ("build", true, true),
            ("deep/build", true, false),
            ("docs/a.md", false, true),
            ("docs/deep/a.md", false, false),
            ("a/z", false, true),
            ("a/b/c/z", false, true),
            ("a/b/zz", false, false),
        ] {
            assert_eq!(ignore.leaves_out(path, is_folder), expected, "{path}");
        }
    }
}
