//! TLS: which certificate a client gets, by the name it asks for. Certificates are files, read when a snapshot
//! names them, and again when they change on disk: whoever renews them tells nobody. One that cannot be read is a
//! problem in the status; the hosts it is for keep the last good one.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, OnceLock},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use landfast_routing::snapshot::Certificate;
use rustls::{
    ServerConfig, SupportedCipherSuite,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::challenge::{self, ACME_TLS, Challenges};

type ByHost = HashMap<String, Arc<CertifiedKey>>;

/// The certificates in use, by host (exact, or `*.` and a domain), and the answers to authorities.
#[derive(Clone, Default)]
pub(crate) struct Certificates {
    by_host: Arc<ArcSwap<ByHost>>,
    /// Where there is one certificate and no other: clients that name no host mean it.
    only: Arc<ArcSwapOption<CertifiedKey>>,
    config: Arc<OnceLock<Arc<ServerConfig>>>,
    pub(crate) challenges: Arc<Challenges>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificates of {} hosts", self.by_host.load().len())
    }
}

impl Certificates {
    /// Reads what a snapshot names and puts it in use. Answers what could not be read.
    pub(crate) fn load(&self, wanted: &[Certificate]) -> Vec<String> {
        let before = self.by_host.load();
        let mut by_host = ByHost::new();
        let mut problems = Vec::new();
        let mut only = None;
        for certificate in wanted {
            let read = read(certificate);
            let hosts: Vec<_> = certificate
                .hosts
                .iter()
                .map(|host| host.to_ascii_lowercase())
                .collect();
            if let Err(problem) = &read {
                let kept = hosts.iter().any(|host| before.contains_key(host));
                let then = if kept {
                    "the last good one stays in use"
                } else {
                    "there is none before it"
                };
                problems.push(format!(
                    "certificate of {}: {problem}; {then}",
                    hosts.join(", ")
                ));
            }
            for host in hosts {
                let key = read
                    .as_ref()
                    .ok()
                    .or_else(|| before.get(&host))
                    .map(Arc::clone);
                if let Some(key) = key {
                    only = Some(Arc::clone(&key));
                    by_host.entry(host).or_insert(key);
                }
            }
        }
        self.only.store(only.filter(|_| by_host.len() == 1));
        self.by_host.store(Arc::new(by_host));
        problems
    }

    /// The configuration of all listeners: TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1. Threads share it, so that a
    /// session that began on one is resumed on another.
    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        let config = self.config.get_or_init(|| self.new_config());
        Arc::clone(config)
    }

    fn new_config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver {
                by_host: Arc::clone(&self.by_host),
                only: Arc::clone(&self.only),
                challenges: Arc::clone(&self.challenges),
            }));
        // Tickets are sealed with a key of this process that is changed every six hours.
        match aws_lc_rs::Ticketer::new() {
            Ok(ticketer) => config.ticketer = ticketer,
            Err(error) => tracing::warn!(%error, "no session tickets"),
        }
        // One is enough to come back with, and each costs every new client the making of it.
        config.send_tls13_tickets = 1;
        // Ours is the order of suites, not the client's.
        config.ignore_client_order = true;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), ACME_TLS.to_vec()];
        Arc::new(config)
    }
}

/// The suites of rustls (all with forward secrecy and authenticated encryption), AES with 128 bits before 256: as
/// safe for what travels, and cheaper.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let is_longer = |suite: &SupportedCipherSuite| {
        let name = suite.suite().as_str().unwrap_or_default();
        (name.contains("CHACHA20"), name.contains("AES_256"))
    };
    provider.cipher_suites.sort_by_key(is_longer);
    provider
}

/// Chooses the certificate of a handshake. Not [`Certificates`] itself, or the configuration would hold itself.
#[derive(Debug)]
struct Resolver {
    by_host: Arc<ArcSwap<ByHost>>,
    only: Arc<ArcSwapOption<CertifiedKey>>,
    challenges: Arc<Challenges>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = hello.server_name() else {
            return self.only.load_full();
        };
        let name = name.to_ascii_lowercase();
        if challenge::is_question(&hello) {
            return self.challenges.certificate(&name);
        }
        let by_host = self.by_host.load();
        let wildcard = || by_host.get(&format!("*.{}", name.split_once('.')?.1));
        by_host.get(&name).or_else(wildcard).map(Arc::clone)
    }
}

/// Which files certificates were read from, as they were then: device, inode, length, and when it was changed.
pub(crate) type Stamps = BTreeMap<String, Option<(u64, u64, u64, i64, i64)>>;

/// Looks at the files of certificates; one that cannot be seen has no stamp.
pub(crate) fn stamps(certificates: &[Certificate]) -> Stamps {
    let paths = certificates
        .iter()
        .flat_map(|certificate| [&certificate.chain_path, &certificate.key_path]);
    let stamp = |path: &String| {
        let seen = fs::metadata(path).ok()?;
        let (second, nanosecond) = (seen.mtime(), seen.mtime_nsec());
        Some((seen.dev(), seen.ino(), seen.len(), second, nanosecond))
    };
    paths.map(|path| (path.clone(), stamp(path))).collect()
}

/// Whether the proxy could use a certificate and its key, so that a deploy can be refused before it cannot.
///
/// # Errors
/// A sentence fragment that names the file and what is wrong: unreadable, no certificate in it, not a pair.
pub fn check_certificate(certificate: &Certificate) -> Result<(), String> {
    read(certificate).map(|_usable| ())
}

fn read(certificate: &Certificate) -> Result<Arc<CertifiedKey>, String> {
    let (chain, key) = read_files(certificate)?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map(Arc::new)
        .map_err(|error| cannot_be_used(certificate, &error))
}

/// Reads a certificate that nobody verifies and that holds a critical extension only an authority understands: what
/// [`read`] looks at would refuse it.
pub(crate) fn read_answer(certificate: &Certificate) -> Result<Arc<CertifiedKey>, String> {
    let (chain, key) = read_files(certificate)?;
    let key = aws_lc_rs::default_provider()
        .key_provider
        .load_private_key(key);
    let key = key.map_err(|error| cannot_be_used(certificate, &error))?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

type Files = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_files(certificate: &Certificate) -> Result<Files, String> {
    let chain = CertificateDer::pem_file_iter(Path::new(&certificate.chain_path))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("failed to read `{}`: {error}", certificate.chain_path))?;
    if chain.is_empty() {
        return Err(format!("`{}` holds no certificate", certificate.chain_path));
    }
    let key = PrivateKeyDer::from_pem_file(Path::new(&certificate.key_path))
        .map_err(|error| format!("failed to read `{}`: {error}", certificate.key_path))?;
    Ok((chain, key))
}

fn cannot_be_used(certificate: &Certificate, error: &rustls::Error) -> String {
    let (chain, key) = (&certificate.chain_path, &certificate.key_path);
    format!("`{chain}` and `{key}` cannot be used: {error}")
}
