//! Where objects lie: a folder, or a prefix in a bucket. Bytes under names; nothing here knows what they mean.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use landfast_types::Secret;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, ObjectStore as _, ObjectStoreExt as _, PutPayload,
    RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as ObjectPath,
};

use crate::{RepositoryError, freeing};

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// For one request with all its repetitions. A pack of 16 MiB gets through at 2 Mbit/s.
const PATIENCE: Duration = Duration::from_secs(75);
const RETRIES_MAX: usize = 4;
/// A file between two states that nobody has touched for so long was left by a process that died.
const LEFT_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// What a file is called that is being written.
const NEW: &str = "new";

/// Where a repository is.
#[derive(Debug, Clone)]
pub enum Place {
    /// A folder, on this host or mounted. It is made if its parent is there.
    Folder(PathBuf),
    S3(S3Place),
}

/// A prefix in a bucket.
#[derive(Debug, Clone)]
pub struct S3Place {
    pub bucket: String,
    /// Without slashes at its ends; may be empty.
    pub prefix: String,
    pub region: String,
    /// For anything but AWS: `https://s3.example:9000`. Plain HTTP is taken for loopback only.
    pub endpoint: Option<String>,
    /// `https://endpoint/bucket/…` instead of `https://bucket.endpoint/…`.
    pub is_path_style: bool,
    /// The authority of the endpoint's certificate, PEM.
    pub authority: Option<String>,
    pub access_key: String,
    pub secret_key: Secret<String>,
}

/// Objects by name. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Storage {
    label: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Folder(Arc<Path>),
    S3 {
        bucket: Arc<AmazonS3>,
        prefix: String,
    },
}

/// The name of an object and its length.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

impl Storage {
    /// Makes ready to reach a place; nothing is asked yet.
    ///
    /// # Errors
    /// [`RepositoryError::Unreachable`] where the address cannot be used.
    pub fn new(place: &Place) -> Result<Self, RepositoryError> {
        match place {
            Place::Folder(folder) => Ok(Self {
                label: folder.display().to_string(),
                kind: Kind::Folder(folder.as_path().into()),
            }),
            Place::S3(place) => Self::s3(place),
        }
    }

    fn s3(place: &S3Place) -> Result<Self, RepositoryError> {
        let label = format!("s3://{}/{}", place.bucket, place.prefix);
        let unusable =
            |source: Box<dyn std::error::Error + Send + Sync>| RepositoryError::Unreachable {
                place: label.clone(),
                doing: "use the address".into(),
                source,
            };
        let mut options = ClientOptions::new()
            .with_connect_timeout(CONNECT_MAX)
            .with_timeout(PATIENCE);
        if let Some(authority) = &place.authority {
            let certificates = Certificate::from_pem_bundle(authority.as_bytes());
            for certificate in certificates.map_err(|error| unusable(error.into()))? {
                options = options.with_root_certificate(certificate);
            }
        }
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES_MAX,
            retry_timeout: PATIENCE,
        };
        let mut builder = AmazonS3Builder::new()
            .with_retry(retry)
            .with_bucket_name(&place.bucket)
            .with_region(&place.region)
            .with_virtual_hosted_style_request(!place.is_path_style)
            .with_access_key_id(&place.access_key)
            .with_secret_access_key(place.secret_key.reveal());
        if let Some(endpoint) = &place.endpoint {
            let is_plain = endpoint.starts_with("http://");
            if is_plain && !is_loopback(endpoint) {
                return Err(unusable(
                    "plain HTTP is for loopback only; use https".into(),
                ));
            }
            options = options.with_allow_http(is_plain);
            builder = builder.with_endpoint(endpoint);
        }
        let bucket = builder.with_client_options(options).build();
        Ok(Self {
            kind: Kind::S3 {
                bucket: Arc::new(bucket.map_err(|error| unusable(error.into()))?),
                prefix: place.prefix.trim_matches('/').to_owned(),
            },
            label,
        })
    }

    /// What it is called in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Puts an object, whole or not at all; it is durable when this returns.
    pub(crate) async fn put(&self, name: &str, bytes: Bytes) -> Result<(), RepositoryError> {
        self.put_parts(name, vec![bytes]).await
    }

    /// Puts an object that lies in parts, one behind the other.
    pub(crate) async fn put_parts(
        &self,
        name: &str,
        parts: Vec<Bytes>,
    ) -> Result<(), RepositoryError> {
        match &self.kind {
            Kind::Folder(folder) => {
                let path = folder.join(name);
                let put = blocking(move || put_file(&path, &parts)).await;
                put.map_err(|error| self.failed("write", name, error))
            }
            Kind::S3 { bucket, .. } => {
                let path = self.path(name);
                let put = bucket.put(&path, PutPayload::from_iter(parts));
                let put = self.patiently("write", name, put).await?;
                put.map(drop)
                    .map_err(|error| self.failed("write", name, error))
            }
        }
    }

    /// Gets an object; `None` where there is none.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<Bytes>, RepositoryError> {
        match &self.kind {
            Kind::Folder(folder) => {
                let path = folder.join(name);
                match blocking(move || fs::read(path)).await {
                    Ok(bytes) => Ok(Some(bytes.into())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(self.failed("read", name, error)),
                }
            }
            Kind::S3 { bucket, .. } => {
                let path = self.path(name);
                let get = async { bucket.get(&path).await?.bytes().await };
                match self.patiently("read", name, get).await? {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(object_store::Error::NotFound { source, .. })
                        if !is_no_bucket(&*source) =>
                    {
                        Ok(None)
                    }
                    Err(error) => Err(self.failed("read", name, error)),
                }
            }
        }
    }

    /// Removes an object; one that is not there is removed already.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), RepositoryError> {
        match &self.kind {
            Kind::Folder(folder) => {
                let path = folder.join(name);
                let removed = blocking(move || freeing::remove_file(&path)).await;
                removed.map_err(|error| self.failed("delete", name, error))
            }
            Kind::S3 { bucket, .. } => {
                let path = self.path(name);
                let delete = bucket.delete(&path);
                match self.patiently("delete", name, delete).await? {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                    Err(error) => Err(self.failed("delete", name, error)),
                }
            }
        }
    }

    /// All objects in a folder of names and below, in order of their names.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<Listed>, RepositoryError> {
        let mut listed = match &self.kind {
            Kind::Folder(root) => {
                let (root, start) = (Arc::clone(root), folder.to_owned());
                let list = blocking(move || list_files(&root, &start, now())).await;
                list.map_err(|error| self.failed("list", folder, error))?
            }
            Kind::S3 { bucket, prefix } => {
                let path = self.path(folder);
                let path = (!path.as_ref().is_empty()).then_some(path);
                let list = bucket.list(path.as_ref()).map_ok(|meta| {
                    let name = meta.location.as_ref();
                    let name = name.strip_prefix(prefix.as_str()).unwrap_or(name);
                    Listed {
                        name: name.trim_start_matches('/').to_owned(),
                        bytes: meta.size,
                    }
                });
                let list = self.patiently("list", folder, list.try_collect::<Vec<_>>());
                list.await?
                    .map_err(|error| self.failed("list", folder, error))?
            }
        };
        listed.sort();
        Ok(listed)
    }

    fn path(&self, name: &str) -> ObjectPath {
        match &self.kind {
            Kind::S3 { prefix, .. } if !prefix.is_empty() => {
                ObjectPath::from(format!("{prefix}/{name}"))
            }
            Kind::S3 { .. } | Kind::Folder(_) => ObjectPath::from(name),
        }
    }

    async fn patiently<T>(
        &self,
        verb: &str,
        name: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, RepositoryError> {
        let timed = tokio::time::timeout(PATIENCE, work).await;
        timed.map_err(|_| RepositoryError::Silent {
            place: self.label.clone(),
            doing: format!("{verb} `{name}`"),
            seconds: PATIENCE.as_secs(),
        })
    }

    fn failed(
        &self,
        verb: &str,
        name: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> RepositoryError {
        RepositoryError::Unreachable {
            place: self.label.clone(),
            doing: format!("{verb} `{name}`"),
            source: source.into(),
        }
    }
}

/// A missing bucket is no missing object.
fn is_no_bucket(error: &(dyn std::error::Error + Send + Sync)) -> bool {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.contains("NoSuchBucket")
}

fn is_loopback(endpoint: &str) -> bool {
    let rest = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    host == "localhost" || host == "[::1]" || {
        let address = host.parse::<std::net::Ipv4Addr>();
        address.is_ok_and(|address| address.is_loopback())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Between two parts of an object: copied in one go, a pack keeps a core for some milliseconds, and whoever has to run on it waits.
const BREATH: Duration = Duration::from_micros(200);

/// What is unfinished begins with a dot; no object does.
fn put_file(path: &Path, parts: &[Bytes]) -> io::Result<()> {
    static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
    let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    let folder = path
        .parent()
        .expect("an object lies in the repository's folder");
    make_folders(folder)?;
    let unfinished = folder.join(format!(".{}.{attempt}.{NEW}", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&unfinished)?;
        for (number, part) in parts.iter().enumerate() {
            if number > 0 {
                std::thread::sleep(BREATH);
            }
            file.write_all(part)?;
        }
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

/// Every folder that is made is synced into the one above.
fn make_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(Path::new("/"));
    make_folders(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::File::open(above)?.sync_all()
}

/// Those that a process left half written or half removed, a day ago or longer, are removed on the way.
fn list_files(root: &Path, start: &str, now: Duration) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    let mut folders = vec![start.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(root.join(&folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with('.') {
                sweep(&entry, name, now);
                continue;
            }
            let name = if folder.is_empty() {
                name.to_owned()
            } else {
                format!("{folder}/{name}")
            };
            let metadata = match entry.metadata() {
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_dir() {
                folders.push(name);
            } else if metadata.is_file() {
                let bytes = metadata.len();
                listed.push(Listed { name, bytes });
            }
        }
    }
    Ok(listed)
}

/// Removes what a process that died left, and nothing else.
fn sweep(entry: &fs::DirEntry, name: &str, now: Duration) {
    if !freeing::is_going(name) && !freeing::is_between(name, NEW) {
        return;
    }
    // When it was renamed counts, too: its content may be old.
    let is_left = entry.metadata().is_ok_and(|about| {
        let changed = u64::try_from(about.ctime()).unwrap_or(0);
        about.is_file() && Duration::from_secs(changed).saturating_add(LEFT_AFTER) < now
    });
    if !is_left {
        return;
    }
    // Whoever only reads the repository may not.
    if let Err(error) = freeing::remove_left(&entry.path()) {
        tracing::debug!(file = %entry.path().display(), %error, "what a process left stays");
    }
}

/// Since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "compared with times of the file system, never recorded"
)]
fn now() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback() {
        for (endpoint, expected) in [
            ("http://127.0.0.1:9000", true),
            ("http://localhost", true),
            ("http://[::1]:9000/", true),
            ("http://127.0.0.1.example:80", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(endpoint), expected, "{endpoint}");
        }
    }

    #[test]
    fn an_unfinished_file_is_no_object() {
        let folder = tempfile::tempdir().unwrap();
        put_file(&folder.path().join("a/b/c"), &["x".into()]).unwrap();
        fs::write(folder.path().join("a/b/.7.0.new"), b"half").unwrap();
        let listed = list_files(folder.path(), "a", now()).unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].name.as_str(), listed[0].bytes), ("a/b/c", 1));
    }

    #[test]
    fn what_a_dead_process_left_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        let ours = [".7.0.new", ".7.1.going"];
        let others = [
            ".going",
            ".7.going",
            ".x.1.going",
            ".nfs.7.1",
            ".7.1.old",
            "c",
        ];
        for name in ours.iter().chain(&others) {
            fs::write(below.join(name), vec![1; 5 << 20]).unwrap();
        }
        fs::create_dir(below.join(".8.0.new")).unwrap();
        let there = || {
            let names = fs::read_dir(&below).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let all = there();
        // Somebody may be at work on them.
        let listed = list_files(folder.path(), "a", now()).unwrap();
        assert_eq!((listed.len(), there()), (1, all.clone()));
        let later = now() + 2 * LEFT_AFTER;
        let listed = list_files(folder.path(), "a", later).unwrap();
        let mut left = all;
        left.retain(|name| !ours.contains(&name.as_str()));
        assert_eq!((listed.len(), there()), (1, left));
    }
}
