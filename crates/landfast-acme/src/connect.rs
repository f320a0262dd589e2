//! The way to the authority: one HTTP/1.1 connection for each request, over TLS, bounded in time and size. Orders
//! are rare, and a connection of its own for each request has no state that could go stale in between.

use std::{future::Future, io, path::Path, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, Uri, header, uri::Scheme};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// A certificate chain has some kilobytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why the authority cannot be talked to at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("failed to read the authority's own certificate `{path}`")]
    Ca {
        path: String,
        source: rustls_pki_types::pem::Error,
    },
    #[error("`{path}` holds no certificate that could be a root")]
    NoRoot { path: String },
}

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("`{0}` is not an https address")]
    NotHttps(Uri),
    #[error("failed to connect to {host}")]
    Connect { host: String, source: io::Error },
    #[error("no TLS with {host}")]
    Tls { host: String, source: io::Error },
    #[error("the answer of {host} broke off")]
    Answer {
        host: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{host} did not answer within {} s", REQUEST_TIME_MAX.as_secs())]
    TimedOut { host: String },
}

/// Speaks HTTPS with the authority.
#[derive(Clone)]
pub(crate) struct Client {
    tls: Arc<ClientConfig>,
}

impl Client {
    /// Trusts what the system trusts (Mozilla's roots where it trusts nothing) and, with `ca`, the certificates in
    /// that PEM file too.
    pub(crate) fn new(ca: Option<&Path>) -> Result<Self, ConnectError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        if let Some(ca) = ca {
            let path = ca.display().to_string();
            let read = CertificateDer::pem_file_iter(ca);
            let read = read.and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let read = read.map_err(|source| ConnectError::Ca {
                path: path.clone(),
                source,
            })?;
            if roots.add_parsable_certificates(read).0 == 0 {
                return Err(ConnectError::NoRoot { path });
            }
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls) })
    }

    async fn send(
        self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, RequestError> {
        let uri = request.uri().clone();
        let Some(host) = uri.host().filter(|_| uri.scheme() == Some(&Scheme::HTTPS)) else {
            return Err(RequestError::NotHttps(uri));
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        let asked = timeout(REQUEST_TIME_MAX, self.ask(&host, &uri, request)).await;
        asked.unwrap_or(Err(RequestError::TimedOut { host }))
    }

    async fn ask(
        &self,
        host: &str,
        uri: &Uri,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, RequestError> {
        let named = || host.to_owned();
        let answer_error = |source| RequestError::Answer {
            host: named(),
            source,
        };
        let port = uri.port_u16().unwrap_or(443);
        let stream = TcpStream::connect((host, port)).await;
        let stream = stream.map_err(|source| RequestError::Connect {
            host: named(),
            source,
        })?;
        let name = ServerName::try_from(named());
        let name = name.map_err(|_not_a_name| RequestError::NotHttps(uri.clone()))?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(name, stream).await;
        let stream = stream.map_err(|source| RequestError::Tls {
            host: named(),
            source,
        })?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| answer_error(error.into()))?;
        let (mut parts, body) = request.into_parts();
        if let Some(authority) = uri.authority()
            && let Ok(authority) = authority.as_str().parse()
        {
            parts.headers.insert(header::HOST, authority);
        }
        parts.uri = origin_form(uri);
        let exchange = async {
            let answer = sender.send_request(Request::from_parts(parts, body)).await;
            let (parts, body) = answer
                .map_err(|error| answer_error(error.into()))?
                .into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(answer_error)?.to_bytes();
            Ok(Response::from_parts(parts, Full::new(body)))
        };
        let mut exchange = std::pin::pin!(exchange);
        // The connection is driven beside it, and ends with it.
        tokio::select! {
            answer = &mut exchange => answer,
            ended = connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(answer_error(error.into())),
            },
        }
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let sent = self.clone().send(request);
        Box::pin(async move {
            let answer = sent.await.map_err(|error| Error::Other(Box::new(error)))?;
            Ok(BytesResponse::from(answer))
        })
    }
}

fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    path.parse()
        .unwrap_or_else(|_cannot_be| Uri::from_static("/"))
}
