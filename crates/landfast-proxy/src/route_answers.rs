//! What a route does with answers, ready to be used: the listings of its files and its error pages, read from the
//! store once and kept as long as a route names them. What cannot be read is a problem of the snapshot, and the
//! rest is served.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io::{self, Read as _},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use http::HeaderValue;
use landfast_routing::{
    snapshot::{MissingFile, RouteFiles},
    table::TableRoute,
};
use landfast_store::{EntryKind, Reader};
use landfast_types::{Digest, ReleaseId};

/// The largest error page.
const PAGE_BYTES_MAX: u64 = 64 << 10;
/// The page of a stopped app.
pub(crate) const MAINTENANCE: &str = "maintenance.html";
const PAGES: [&str; 5] = ["404.html", "502.html", "503.html", "504.html", MAINTENANCE];

/// What one route does with answers.
#[derive(Debug)]
pub(crate) struct RouteAnswers {
    pub(crate) compress: bool,
    pub(crate) files: Option<Files>,
    pub(crate) pages: Arc<ErrorPages>,
}

/// Static files in front of a service.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) roots: Vec<Root>,
    pub(crate) missing: MissingFile,
    pub(crate) cache_control: HeaderValue,
    pub(crate) store: Reader,
}

/// The files of one release.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) release: ReleaseId,
    /// The date of all its files, as HTTP writes it.
    pub(crate) modified: String,
    pub(crate) exposed: bool,
    pub(crate) folder: Arc<Folder>,
}

/// Everything a folder holds. What is not listed does not exist: there is no path to find a way out by. Symbolic
/// links are not listed.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    files: HashMap<String, Content>,
    folders: HashSet<String>,
}

/// The content of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Content {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Folder {
    fn read(store: &Reader, artifact: &Digest) -> io::Result<Self> {
        let mut folder = Self::default();
        for entry in store.listing(artifact)?.entries {
            match entry.kind {
                EntryKind::File { digest, size, .. } => {
                    folder.files.insert(entry.path, Content { digest, size });
                }
                EntryKind::Folder => {
                    folder.folders.insert(entry.path);
                }
                EntryKind::Symlink { .. } => {}
            }
        }
        Ok(folder)
    }

    pub(crate) fn file(&self, path: &str) -> Option<Content> {
        self.files.get(path).copied()
    }

    pub(crate) fn has_folder(&self, path: &str) -> bool {
        self.folders.contains(path)
    }
}

/// Pages for errors of the proxy's own, by the name of their file.
#[derive(Debug, Default)]
pub(crate) struct ErrorPages(BTreeMap<&'static str, Bytes>);

impl ErrorPages {
    pub(crate) fn page(&self, name: &str) -> Option<Bytes> {
        self.0.get(name).cloned()
    }

    fn read(store: &Reader, artifact: &Digest, problems: &mut Vec<String>) -> io::Result<Self> {
        let folder = Folder::read(store, artifact)?;
        let mut pages = BTreeMap::new();
        for name in PAGES {
            let Some(content) = folder.file(name) else {
                continue;
            };
            if content.size > PAGE_BYTES_MAX {
                problems.push(format!(
                    "error page `{name}` has {} bytes; at most {PAGE_BYTES_MAX} are served",
                    content.size
                ));
                continue;
            }
            let mut page = Vec::new();
            store.open(&content.digest)?.read_to_end(&mut page)?;
            pages.insert(name, Bytes::from(page));
        }
        Ok(Self(pages))
    }
}

/// What was read of artifacts, by their digests.
#[derive(Debug, Default)]
pub(crate) struct Artifacts {
    folders: BTreeMap<Digest, Arc<Folder>>,
    pages: BTreeMap<Digest, Arc<ErrorPages>>,
}

impl Artifacts {
    /// Prepares what each route does; nothing for a route that only passes answers on. What no route names any
    /// more is forgotten.
    pub(crate) fn prepare(
        &mut self,
        store: &str,
        routes: &[TableRoute],
        problems: &mut Vec<String>,
    ) -> Vec<Option<Arc<RouteAnswers>>> {
        let store = Reader::new(store);
        let mut used = BTreeSet::new();
        let mut prepared = Vec::with_capacity(routes.len());
        for TableRoute { route, .. } in routes {
            let wanted = &route.answers;
            let is_plain =
                !wanted.compress && wanted.files.is_none() && wanted.error_pages.is_none();
            if is_plain {
                prepared.push(None);
                continue;
            }
            let mut told = Vec::new();
            let files = wanted.files.as_ref();
            let files = files.map(|files| self.files(&store, files, &mut used, &mut told));
            let pages = wanted.error_pages.as_ref();
            let pages = pages.map(|artifact| self.pages(&store, artifact, &mut used, &mut told));
            let named = told
                .into_iter()
                .map(|it| format!("route `{}`: {it}", route.name));
            problems.extend(named);
            prepared.push(Some(Arc::new(RouteAnswers {
                compress: wanted.compress,
                files,
                pages: pages.unwrap_or_default(),
            })));
        }
        self.folders.retain(|digest, _| used.contains(digest));
        self.pages.retain(|digest, _| used.contains(digest));
        prepared
    }

    fn files(
        &mut self,
        store: &Reader,
        files: &RouteFiles,
        used: &mut BTreeSet<Digest>,
        problems: &mut Vec<String>,
    ) -> Files {
        let mut roots = Vec::with_capacity(files.roots.len());
        for root in &files.roots {
            used.insert(root.artifact);
            let known = self.folders.get(&root.artifact).cloned();
            let folder =
                match known.map_or_else(|| Folder::read(store, &root.artifact).map(Arc::new), Ok) {
                    Ok(folder) => folder,
                    Err(error) => {
                        let (release, artifact) = (root.release, root.artifact);
                        problems.push(format!(
                            "the files of release {release} ({artifact}) cannot be read: {error}"
                        ));
                        continue;
                    }
                };
            self.folders.insert(root.artifact, Arc::clone(&folder));
            let micros = u64::try_from(root.modified.as_micros()).unwrap_or(0);
            roots.push(Root {
                release: root.release,
                modified: httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_micros(micros)),
                exposed: root.exposed,
                folder,
            });
        }
        let cache_control = HeaderValue::from_str(&files.cache_control);
        Files {
            roots,
            missing: files.missing,
            cache_control: cache_control.unwrap_or(HeaderValue::from_static("no-cache")),
            store: store.clone(),
        }
    }

    fn pages(
        &mut self,
        store: &Reader,
        artifact: &Digest,
        used: &mut BTreeSet<Digest>,
        problems: &mut Vec<String>,
    ) -> Arc<ErrorPages> {
        used.insert(*artifact);
        if let Some(known) = self.pages.get(artifact) {
            return Arc::clone(known);
        }
        match ErrorPages::read(store, artifact, problems) {
            Ok(pages) => {
                let pages = Arc::new(pages);
                self.pages.insert(*artifact, Arc::clone(&pages));
                pages
            }
            Err(error) => {
                problems.push(format!(
                    "the error pages ({artifact}) cannot be read: {error}"
                ));
                Arc::default()
            }
        }
    }
}
