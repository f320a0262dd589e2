//! The canonical listing of a tree: what an artifact is, apart from where it lies.

use landfast_types::{Digest, Hasher};
use serde::{Deserialize, Serialize};

/// More entries than this are no artifact but a slip (a home folder, say).
const ENTRIES_MAX: usize = 200_000;

/// The entries of a tree, sorted by path. Every entry but those at the top has its folder listed before it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TreeListing {
    pub entries: Vec<Entry>,
}

/// One path in a tree, separated by `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub path: String,
    #[serde(flatten)]
    pub kind: EntryKind,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EntryKind {
    Folder,
    File {
        executable: bool,
        size: u64,
        digest: Digest,
    },
    Symlink {
        target: String,
    },
}

/// Why a listing is no artifact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("it is empty")]
    Empty,
    #[error("it has {0} entries; at most {ENTRIES_MAX} are taken")]
    TooMany(usize),
    #[error("`{0}` is not a plain path inside the tree")]
    Path(String),
    #[error("`{0}` is listed twice or out of order")]
    Order(String),
    #[error("`{0}` is in a folder that is not listed")]
    NoFolder(String),
    #[error("the symbolic link `{path}` points to `{target}`, outside the tree")]
    LinkLeaves { path: String, target: String },
}

impl TreeListing {
    /// Sorts entries into a listing and checks it.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, TreeError> {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let listing = Self { entries };
        listing.check()?;
        Ok(listing)
    }

    /// The name of the artifact: the digest of all entries, each field with its length before it.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(b"landfast tree 1\n");
        for entry in &self.entries {
            hasher.update_framed(entry.path.as_bytes());
            match &entry.kind {
                EntryKind::Folder => hasher.update(b"d"),
                EntryKind::File {
                    executable,
                    size,
                    digest,
                } => {
                    hasher.update(if *executable { b"x" } else { b"f" });
                    hasher.update(&size.to_be_bytes());
                    hasher.update(digest.as_bytes());
                }
                EntryKind::Symlink { target } => {
                    hasher.update(b"l");
                    hasher.update_framed(target.as_bytes());
                }
            }
        }
        hasher.finish()
    }

    /// The bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files().map(|(_, size)| size).sum()
    }

    /// The content it needs, with sizes.
    pub fn files(&self) -> impl Iterator<Item = (Digest, u64)> + '_ {
        self.entries.iter().filter_map(|entry| match entry.kind {
            EntryKind::File { digest, size, .. } => Some((digest, size)),
            EntryKind::Folder | EntryKind::Symlink { .. } => None,
        })
    }

    /// Checks what came from outside: paths that stay inside, each once, each in a listed folder.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn check(&self) -> Result<(), TreeError> {
        if self.entries.is_empty() {
            return Err(TreeError::Empty);
        }
        if self.entries.len() > ENTRIES_MAX {
            return Err(TreeError::TooMany(self.entries.len()));
        }
        let mut folders = std::collections::BTreeSet::new();
        let mut before: Option<&str> = None;
        for Entry { path, kind } in &self.entries {
            if !path.split('/').all(is_plain) {
                return Err(TreeError::Path(path.clone()));
            }
            if before.is_some_and(|before| before >= path.as_str()) {
                return Err(TreeError::Order(path.clone()));
            }
            before = Some(path);
            // Only real folders hold entries, so nothing is ever written through a link.
            if let Some((folder, _)) = path.rsplit_once('/')
                && !folders.contains(folder)
            {
                return Err(TreeError::NoFolder(path.clone()));
            }
            match kind {
                EntryKind::Folder => drop(folders.insert(path.as_str())),
                EntryKind::File { .. } => {}
                EntryKind::Symlink { target } => check_link(path, target)?,
            }
        }
        Ok(())
    }
}

/// A component that is a name: not empty, no dots that move, nothing a file system would refuse or misread.
fn is_plain(component: &str) -> bool {
    !matches!(component, "" | "." | "..") && component.len() <= 255 && !component.contains('\0')
}

/// `..` may only come first: after a name it would move relative to where *that* leads, which may be a link.
/// So every link goes up inside real folders and then down, and stays inside if each other link does.
fn check_link(path: &str, target: &str) -> Result<(), TreeError> {
    let leaves = || TreeError::LinkLeaves {
        path: path.to_owned(),
        target: target.to_owned(),
    };
    let mut depth = path.matches('/').count();
    let mut went_down = false;
    if target.is_empty() || target.starts_with('/') || target.contains('\0') {
        return Err(leaves());
    }
    for component in target.split('/') {
        match component {
            "" | "." => {}
            ".." if went_down || depth == 0 => return Err(leaves()),
            ".." => depth -= 1,
            _ => went_down = true,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Entry {
        let kind = EntryKind::File {
            executable: false,
            size: 1,
            digest: Digest::of(b"a"),
        };
        Entry {
            path: path.to_owned(),
            kind,
        }
    }

    fn folder(path: &str) -> Entry {
        Entry {
            path: path.to_owned(),
            kind: EntryKind::Folder,
        }
    }

    fn link(path: &str, target: &str) -> Entry {
        Entry {
            path: path.to_owned(),
            kind: EntryKind::Symlink {
                target: target.to_owned(),
            },
        }
    }

    #[test]
    fn refuses_paths_that_leave_the_tree() {
        for path in ["../a", "/a", "a/../b", "a//b", "./a", "a/", "", "a\0b"] {
            let listing = TreeListing {
                entries: vec![file(path)],
            };
            assert_eq!(
                listing.check(),
                Err(TreeError::Path(path.to_owned())),
                "{path:?}"
            );
        }
        assert_eq!(TreeListing::default().check(), Err(TreeError::Empty));
    }

    #[test]
    fn refuses_what_is_listed_twice_or_nowhere() {
        let twice = TreeListing {
            entries: vec![file("a"), file("a")],
        };
        assert_eq!(twice.check(), Err(TreeError::Order("a".to_owned())));
        assert_eq!(
            TreeListing::new(vec![file("a/b")]),
            Err(TreeError::NoFolder("a/b".to_owned()))
        );
        // A link is no folder: writing `a/b` would write wherever `a` leads.
        let through = TreeListing::new(vec![link("a", "c"), file("a/b"), folder("c")]);
        assert_eq!(through, Err(TreeError::NoFolder("a/b".to_owned())));
        assert!(TreeListing::new(vec![file("a/b"), folder("a")]).is_ok());
        // `a-b` sorts between `a` and `a/b`.
        assert!(TreeListing::new(vec![file("a/b"), folder("a"), file("a-b")]).is_ok());
    }

    #[test]
    fn refuses_links_that_leave_the_tree() {
        let check = |target: &str| {
            TreeListing::new(vec![folder("a"), folder("a/b"), link("a/b/l", target)])
        };
        for target in ["../../x", "..", "../..", "x", "./x/y", "../b/l"] {
            assert!(check(target).is_ok(), "{target}");
        }
        for target in ["../../../x", "/etc/passwd", "", "x/../../../..", "x/.."] {
            assert!(
                matches!(check(target), Err(TreeError::LinkLeaves { .. })),
                "{target}"
            );
        }
    }

    #[test]
    fn tells_trees_apart_by_everything_that_matters() {
        let digest = |entries| TreeListing::new(entries).unwrap().digest();
        let base = digest(vec![file("a")]);
        assert_eq!(base, digest(vec![file("a")]));
        let executable = EntryKind::File {
            executable: true,
            size: 1,
            digest: Digest::of(b"a"),
        };
        assert_ne!(
            base,
            digest(vec![Entry {
                path: "a".into(),
                kind: executable
            }])
        );
        assert_ne!(base, digest(vec![file("b")]));
        assert_ne!(base, digest(vec![link("a", "b")]));
        assert_ne!(base, digest(vec![file("a"), folder("b")]));
    }
}
