//! What the clients connect to, in the clear or over TLS.

use std::{io, net::SocketAddr, path::Path, pin::Pin, sync::Arc};

use anyhow::Context as _;
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, kx_group},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// A connection of either kind.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection for T {}

pub(crate) type Connected = Pin<Box<dyn Connection>>;

/// Whom to connect to, and how.
#[derive(Clone)]
pub(crate) struct Target {
    address: SocketAddr,
    connector: Option<TlsConnector>,
}

impl Target {
    /// With a certificate to trust, connections speak TLS, and never resume a session.
    pub(crate) fn new(address: SocketAddr, ca: Option<&Path>) -> anyhow::Result<Self> {
        let connector = ca.map(connector).transpose()?;
        Ok(Self { address, connector })
    }

    pub(crate) async fn connect(&self) -> io::Result<Connected> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let Some(connector) = &self.connector else {
            return Ok(Box::pin(stream));
        };
        let name = ServerName::try_from("localhost").expect("a host name");
        Ok(Box::pin(connector.connect(name, stream).await?))
    }
}

fn connector(ca: &Path) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(ca)
        .with_context(|| format!("failed to read `{}`", ca.display()))?;
    roots.add(certificate)?;
    // The one group that all peers know: the hybrid one would be more work for those who know it.
    let provider = CryptoProvider {
        kx_groups: vec![kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Sends a GET for 1 KB and reads the whole answer, which must be 200.
pub(crate) async fn get(connection: &mut Connected, fields: &str) -> io::Result<()> {
    ask(connection, "/1k", "localhost", fields).await.map(drop)
}

/// Sends a GET and reads the whole answer, which must be 200. Answers whether the connection may be used again.
pub(crate) async fn ask(
    connection: &mut Connected,
    path: &str,
    host: &str,
    fields: &str,
) -> io::Result<bool> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    connection.write_all(request.as_bytes()).await?;
    let (head, mut read) = head(connection).await?;
    if !head.starts_with("HTTP/1.1 200 ") {
        let line = head.lines().next().unwrap_or_default();
        return Err(io::Error::other(format!("answered `{line}`")));
    }
    let length = field(&head, "content-length").and_then(|value| value.parse::<usize>().ok());
    let length = length.ok_or_else(|| io::Error::other("the answer has no length"))?;
    let mut piece = [0; 4 << 10];
    while read < length {
        match connection.read(&mut piece).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => read += count,
        }
    }
    Ok(!field(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close")))
}

/// The value of a field of a head.
pub(crate) fn field<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted).then(|| value.trim())
    })
}

/// Reads a head; answers it with how many bytes came after it.
pub(crate) async fn head(connection: &mut Connected) -> io::Result<(String, usize)> {
    let (head, rest) = head_and_rest(connection).await?;
    Ok((head, rest.len()))
}

/// Reads a head; answers it with what came after it.
pub(crate) async fn head_and_rest(connection: &mut Connected) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(2 << 10);
    loop {
        if connection.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&bytes[..end]).into_owned(), rest));
        }
    }
}
