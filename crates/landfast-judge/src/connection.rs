//! Connections: TCP, and TLS over it.

use std::{io, sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{settings::Settings, tally::Reason};

const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// Either kind of connection.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A connection, plain or encrypted.
pub(crate) type Io = Box<dyn Duplex>;

/// Opens connections to the target.
#[derive(Clone)]
pub(crate) struct Connector {
    target: std::net::SocketAddr,
    tls: Option<(ServerName<'static>, TlsConnector, TlsConnector)>,
}

/// Which protocol to agree on by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Why there is no way to speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the CA's certificates cannot be read")]
    Ca(#[source] rustls_pki_types::pem::Error),
    #[error("`{0}` is no name a certificate could have")]
    Name(String),
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// What went wrong, and how it is called.
#[derive(Debug)]
pub(crate) struct Failure {
    pub reason: Reason,
    pub detail: String,
    /// Milliseconds the application worked on it, where that is known.
    pub app_ms: Option<u64>,
}

impl Failure {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            app_ms: None,
        }
    }
}

impl Connector {
    pub(crate) fn new(settings: &Settings) -> Result<Self, TlsError> {
        let Some(tls) = &settings.tls else {
            return Ok(Self {
                target: settings.target,
                tls: None,
            });
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&tls.ca_pem) {
            roots.add(certificate.map_err(TlsError::Ca)?)?;
        }
        let name = ServerName::try_from(settings.host.clone())
            .map_err(|_| TlsError::Name(settings.host.clone()))?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let with = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            TlsConnector::from(Arc::new(config))
        };
        Ok(Self {
            target: settings.target,
            tls: Some((name, with(b"http/1.1"), with(b"h2"))),
        })
    }

    /// Opens one connection.
    pub(crate) async fn open(&self, protocol: Protocol) -> Result<Io, Failure> {
        let opening = async {
            let stream = TcpStream::connect(self.target).await;
            let stream = stream.map_err(|error| not_connected(&error))?;
            drop(stream.set_nodelay(true));
            let Some((name, http1, http2)) = &self.tls else {
                return Ok(Box::new(stream) as Io);
            };
            let connector = if protocol == Protocol::Http1 {
                http1
            } else {
                http2
            };
            let stream = connector.connect(name.clone(), stream).await;
            let stream = stream
                .map_err(|error| Failure::new(Reason::Reset, format!("TLS handshake: {error}")))?;
            Ok(Box::new(stream) as Io)
        };
        let opened = timeout(CONNECT_TIME_MAX, opening).await;
        opened.unwrap_or_else(|_| Err(Failure::new(Reason::Refused, "no connection within 5 s")))
    }
}

fn not_connected(error: &io::Error) -> Failure {
    // Our own side has run out of ports or files (EMFILE and ENFILE have no kind): nobody else's fault.
    let own_side = error.kind() == io::ErrorKind::AddrNotAvailable
        || matches!(error.raw_os_error(), Some(23 | 24));
    let reason = if own_side {
        Reason::JudgeFault
    } else {
        Reason::Refused
    };
    Failure::new(reason, error.to_string())
}
