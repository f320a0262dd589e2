//! The folder with everything ACME knows: `accounts/`, `hosts/<host>.pem` (key and chain in one file, so that the two
//! can never be of different certificates), `hosts/<host>.json` (what became of the attempts, and the order that is
//! open), `challenges/<host>.pem`. All of it is mode 0600, written whole, synced and renamed.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use instant_acme::AccountCredentials;
use landfast_routing::snapshot::{Certificate, Challenge};
use landfast_types::Digest;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{facts::Facts, plan::Attempts};

/// Why the folder could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to {doing} `{}`", .path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("`{0}` cannot name a certificate's file")]
    Host(String),
}

/// See the head of the module.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// What is remembered of one host beside its certificate.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(default)]
    pub(crate) attempts: Attempts,
    #[serde(default)]
    pub(crate) open: Option<OpenOrder>,
}

/// An order that was begun: taken up again after a crash, with the same key.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct OpenOrder {
    /// The directory it was placed at.
    pub(crate) directory: String,
    pub(crate) url: String,
    /// PEM. The certificate that comes out of the order is of this key.
    pub(crate) key: String,
    /// What the authority may be asking for just now: it goes on being answered while the server starts.
    #[serde(default)]
    pub(crate) answer: Option<Challenge>,
}

impl std::fmt::Debug for OpenOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "order {}", self.url)
    }
}

impl Store {
    /// Opens the folder, and makes it where there is none.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let folder = folder.into();
        // The proxy reads these paths from a folder of its own.
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        for part in [
            folder.clone(),
            folder.join("accounts"),
            folder.join("hosts"),
            folder.join("challenges"),
        ] {
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&part);
            made.map_err(|source| StoreError::Io {
                doing: "create",
                path: part,
                source,
            })?;
        }
        Ok(Self { folder })
    }

    /// The certificates that are there and can be used, in order of name. One that cannot counts as not there: it
    /// is ordered again.
    pub fn certificates(&self) -> Vec<Certificate> {
        let mut hosts = self.hosts(".pem");
        hosts.retain(|host| self.facts(host).is_some());
        hosts
            .iter()
            .filter_map(|host| self.certificate(host))
            .collect()
    }

    /// The answers of orders that were open when the server ended.
    pub fn challenges(&self) -> Vec<Challenge> {
        let records = self.hosts(".json").into_iter();
        let open = records.filter_map(|host| self.record(&host).open);
        open.filter_map(|open| open.answer).collect()
    }

    /// The hosts that have a file with this ending, in order of name.
    fn hosts(&self, ending: &str) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join("hosts"));
        let hosts = entries.into_iter().flatten().filter_map(|entry| {
            let name = entry.ok()?.file_name();
            Some(name.to_str()?.strip_suffix(ending)?.to_owned())
        });
        let mut hosts: Vec<_> = hosts.collect();
        hosts.sort();
        hosts
    }

    /// What a host's certificate says, where it has one that the proxy could use.
    pub(crate) fn facts(&self, host: &str) -> Option<Facts> {
        let path = self.path_of("hosts", host, "pem").ok()?;
        let pem = match fs::read(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(host, %error, "its certificate cannot be read");
                return None;
            }
        };
        match usable(&pem, host) {
            Ok(facts) => Some(facts),
            Err(problem) => {
                tracing::warn!(host, problem, "its certificate cannot be used");
                None
            }
        }
    }

    /// The files of a host's certificate.
    pub(crate) fn certificate(&self, host: &str) -> Option<Certificate> {
        let path = self.path_of("hosts", host, "pem").ok()?;
        let path = path.to_str()?.to_owned();
        Some(Certificate {
            hosts: vec![host.to_owned()],
            chain_path: path.clone(),
            key_path: path,
        })
    }

    pub(crate) fn keep_certificate(&self, host: &str, pem: &str) -> Result<(), StoreError> {
        write(&self.path_of("hosts", host, "pem")?, pem.as_bytes())
    }

    /// Keeps the certificate that answers a TLS-ALPN-01 challenge; gives its path.
    pub(crate) fn keep_challenge(&self, host: &str, pem: &str) -> Result<String, StoreError> {
        let path = self.path_of("challenges", host, "pem")?;
        write(&path, pem.as_bytes())?;
        Ok(path.display().to_string())
    }

    pub(crate) fn drop_challenge(&self, host: &str) {
        let Ok(path) = self.path_of("challenges", host, "pem") else {
            return;
        };
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(host, %error, "the answer to a challenge stays on disk");
        }
    }

    /// What is remembered of a host; nothing where that cannot be read.
    pub(crate) fn record(&self, host: &str) -> Record {
        let path = self.path_of("hosts", host, "json");
        path.ok().and_then(|path| read(&path)).unwrap_or_default()
    }

    pub(crate) fn keep_record(&self, host: &str, record: &Record) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(record).expect("a record has text keys");
        write(&self.path_of("hosts", host, "json")?, &bytes)
    }

    pub(crate) fn account(&self, directory: &str) -> Option<AccountCredentials> {
        read(&self.account_path(directory))
    }

    pub(crate) fn keep_account(
        &self,
        directory: &str,
        account: &AccountCredentials,
    ) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(account).expect("an account has text keys");
        write(&self.account_path(directory), &bytes)
    }

    /// Forgets an account the authority does not know any more.
    pub(crate) fn drop_account(&self, directory: &str) {
        if let Err(error) = fs::remove_file(self.account_path(directory)) {
            tracing::debug!(%error, "the old account stays on disk");
        }
    }

    /// Each directory has accounts of its own.
    fn account_path(&self, directory: &str) -> PathBuf {
        let digest = Digest::of(directory.as_bytes()).to_string();
        let name: String = digest.chars().filter(char::is_ascii_alphanumeric).collect();
        self.folder.join("accounts").join(format!("{name}.json"))
    }

    fn path_of(&self, part: &str, host: &str, ending: &str) -> Result<PathBuf, StoreError> {
        let known =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        let is_name = !host.is_empty()
            && host.len() <= 253
            && host.chars().all(known)
            && host.split('.').all(|label| !label.is_empty());
        if !is_name {
            return Err(StoreError::Host(host.to_owned()));
        }
        Ok(self.folder.join(part).join(format!("{host}.{ending}")))
    }
}

/// Whether a PEM text is a certificate for a host, with its key.
///
/// # Errors
/// A fragment that says what is wrong.
pub(crate) fn usable(pem: &[u8], host: &str) -> Result<Facts, String> {
    use rustls::{crypto::aws_lc_rs, sign::CertifiedKey};
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

    let facts = Facts::read(pem)?;
    if !facts.covers(host) {
        return Err(format!("it is for {}", facts.names.join(", ")));
    }
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| error.to_string())?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map_err(|error| error.to_string())?;
    Ok(facts)
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot be read");
            return None;
        }
    };
    let read = serde_json::from_slice(&bytes);
    read.map_err(|error| tracing::warn!(path = %path.display(), %error, "is not what was written"))
        .ok()
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    try_write(path, bytes).map_err(|source| StoreError::Io {
        doing: "write",
        path: path.to_owned(),
        source,
    })
}

fn try_write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let folder = path.parent().expect("a file of the folder");
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn gives_back_what_was_kept_for_its_owner_alone_and_nothing_that_cannot_be_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().join("certificates")).expect("a store");
        let issued = rcgen::generate_simple_self_signed(["a.example".to_owned()]).expect("made");
        let key = issued.signing_key.serialize_pem();
        let whole = format!("{key}{}", issued.cert.pem());
        store.keep_certificate("a.example", &whole).expect("kept");
        assert!(store.facts("a.example").is_some());
        let path = store.certificates().remove(0).key_path;
        let mode = fs::metadata(path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let another = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        let mixed = format!("{another}{}", issued.cert.pem());
        for (host, pem) in [
            ("b.example", whole.as_str()),
            ("a.example", &mixed),
            ("a.example", &key),
        ] {
            store.keep_certificate(host, pem).expect("kept");
            assert!(store.facts(host).is_none(), "{host}");
        }
        for name in ["../a", "", ".a", "A.example", "a..example", "*.example"] {
            assert!(store.keep_certificate(name, "x").is_err(), "{name}");
        }
    }

    #[test]
    fn remembers_attempts_and_forgets_what_was_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("a store");
        let mut record = Record::default();
        record.attempts.failures = 3;
        record.attempts.reason = Some("no".into());
        store.keep_record("a.example", &record).expect("kept");
        assert_eq!(store.record("a.example").attempts, record.attempts);
        fs::write(folder.path().join("hosts/a.example.json"), b"{").expect("written");
        assert_eq!(store.record("a.example").attempts, Attempts::default());
    }
}
