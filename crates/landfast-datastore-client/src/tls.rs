//! TLS to stores of somebody else: what is demanded of the server's certificate, and what is wrong with it in words.
//!
//! The words for the demands are those of libpq, because the same address is read by the app's own client.

use std::{
    error::Error,
    fmt, fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use ::aws_lc_rs::digest;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use crate::StoreError;

/// What a connection demands before it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protection {
    /// Nothing: it is read by whoever is on the way.
    Off,
    /// Encrypted where the server offers it, whoever the server is.
    Preferred,
    /// Encrypted, whoever the server is: safe from who listens, not from who answers in its place.
    Encrypted,
    /// A certificate of a trusted authority, for whatever name.
    Authority,
    /// A certificate of a trusted authority for the name of the address.
    Full,
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "without TLS",
            Self::Preferred => "with TLS if the server offers it, its certificate unchecked",
            Self::Encrypted => "with TLS, its certificate unchecked",
            Self::Authority => "with TLS, its certificate's authority checked",
            Self::Full => "with TLS, its certificate checked",
        })
    }
}

/// The certificates that are trusted: those of the file, or those of the host.
///
/// # Errors
/// [`StoreError::Authority`]: the file cannot be read or holds none, or the host trusts nobody.
pub(crate) fn trusted(
    authority: Option<&Path>,
) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let failed = |reason: String| StoreError::Authority { reason };
    let Some(path) = authority else {
        let certificates = rustls_native_certs::load_native_certs().certs;
        if certificates.is_empty() {
            let reason =
                "this host trusts no authority at all; install the package `ca-certificates`";
            return Err(failed(reason.to_owned()));
        }
        return Ok(certificates);
    };
    let shown = path.display();
    let text =
        fs::read(path).map_err(|error| failed(format!("`{shown}` cannot be read: {error}")))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(failed(format!(
            "`{shown}` holds no certificate in PEM form"
        ))),
    }
}

/// Makes TLS of a connection to a PostgreSQL.
#[derive(Clone)]
pub(crate) struct Connector {
    config: Arc<ClientConfig>,
    binds: bool,
}

impl Connector {
    /// Whether it `binds` the login to the certificate is for addresses that demand it.
    ///
    /// # Errors
    /// [`StoreError::Authority`].
    pub(crate) fn new(
        protection: Protection,
        authority: Option<&Path>,
        binds: bool,
    ) -> Result<Self, StoreError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Verifier::new(&provider, protection, authority)?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for both versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Self {
            config: Arc::new(config),
            binds,
        })
    }
}

/// What rustls does, and beside it what libpq does: no check, a check without the name, and the server's own
/// certificate as the file of the authority.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: whoever the server is.
    checks: Option<Arc<WebPkiServerVerifier>>,
    pinned: Vec<CertificateDer<'static>>,
    with_name: bool,
}

impl Verifier {
    fn new(
        provider: &Arc<CryptoProvider>,
        protection: Protection,
        authority: Option<&Path>,
    ) -> Result<Self, StoreError> {
        let mut this = Self {
            provider: Arc::clone(provider),
            checks: None,
            pinned: Vec::new(),
            with_name: protection == Protection::Full,
        };
        if protection < Protection::Authority {
            return Ok(this);
        }
        let certificates = trusted(authority)?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        let checks =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                .build();
        let checks = checks.map_err(|error| StoreError::Authority {
            reason: error.to_string(),
        })?;
        this.checks = Some(checks);
        // A whole host's roots are authorities, not servers.
        this.pinned = authority.map_or_else(Vec::new, |_| certificates);
        Ok(this)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(checks) = &self.checks else {
            return Ok(ServerCertVerified::assertion());
        };
        if self.pinned.iter().any(|pinned| pinned == certificate) {
            in_its_time(certificate, now)?;
            if self.with_name {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let checked = checks.verify_server_cert(certificate, intermediates, name, ocsp, now);
        match checked {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.with_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl<S> MakeTlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type TlsConnect = Handshake;
    type Error = rustls_pki_types::InvalidDnsNameError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Handshake, Self::Error> {
        Ok(Handshake {
            connector: TlsConnector::from(Arc::clone(&self.config)),
            name: ServerName::try_from(domain)?.to_owned(),
            binds: self.binds,
        })
    }
}

/// One handshake.
pub(crate) struct Handshake {
    connector: TlsConnector,
    name: ServerName<'static>,
    binds: bool,
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let connected = self.connector.connect(self.name, stream).await;
            connected.map(|stream| Encrypted {
                stream: Box::new(stream),
                binds: self.binds,
            })
        })
    }
}

/// A connection in TLS.
pub(crate) struct Encrypted<S> {
    stream: Box<tokio_rustls::client::TlsStream<S>>,
    binds: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    /// None unless the address demands it: with a certificate that was checked there is nobody in between to be bound against.
    fn channel_binding(&self) -> ChannelBinding {
        let certificates = self.stream.get_ref().1.peer_certificates();
        let server = certificates.and_then(<[_]>::first);
        match server.filter(|_| self.binds).and_then(end_point) {
            Some(hash) => ChannelBinding::tls_server_end_point(hash),
            None => ChannelBinding::none(),
        }
    }
}

/// The hash of a certificate by which a login is bound to it (RFC 5929, section 4.1): that of its signature, SHA-256 in the place of
/// older ones. `None` where the signature names no hash, as Ed25519 does.
fn end_point(certificate: &CertificateDer<'static>) -> Option<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let algorithm = match parsed.signature_algorithm.algorithm.to_id_string().as_str() {
        // MD5, SHA-1 and SHA-256 with RSA; SHA-1 and SHA-256 with ECDSA.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => &digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

/// A certificate that is trusted for itself is looked at by nobody else.
fn in_its_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    let (_, parsed) = parsed.map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// What is wrong with the server's certificate, if that is why a connection failed, and what helps.
pub(crate) fn untrusted(
    error: &(dyn Error + 'static),
    host: &str,
    authority: Option<&PathBuf>,
    words: &Words,
) -> Option<String> {
    let found = in_chain(error)?;
    let rustls::Error::InvalidCertificate(wrong) = found else {
        return None;
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the rest is for the library's own words, whatever it adds"
    )]
    let reason = match wrong {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => match authority {
            Some(path) => format!(
                "the certificate of `{host}` was not made by the authority in `{}`; give the file of the one that made it in `{}`",
                path.display(),
                words.authority
            ),
            None => format!(
                "the certificate of `{host}` was made by an authority that this host does not trust; name its file: `{}=/path/ca.pem`",
                words.authority
            ),
        },
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let or = words.without_name.map_or_else(String::new, |word| {
                format!(", or `{word}`, which does not look at names")
            });
            format!(
                "the certificate is not for `{host}`; write the address with a name it is for{or}"
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the certificate of `{host}` has expired; renew it on the server")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!(
                "the certificate of `{host}` is not valid yet; compare the clocks of both hosts"
            )
        }
        other => format!("the certificate of `{host}` is refused: {other}"),
    };
    Some(reason)
}

/// How an engine's addresses call things.
pub(crate) struct Words {
    pub(crate) authority: &'static str,
    /// What does not look at the name; `None` where everything does.
    pub(crate) without_name: Option<&'static str>,
}

fn in_chain<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // The source of an I/O error is not what it holds, but the source of that.
        let held = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if let Some(found) = held.and_then(|held| held.downcast_ref::<rustls::Error>()) {
            return Some(found);
        }
        next = error.source();
    }
    None
}
