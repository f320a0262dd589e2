//! What stands before an S3 server and fails on demand: refuses, hangs, answers 503 or 403, or is slow.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// A slow link lets through so much in each step.
const SLOW_BYTES: usize = 1_024;
const SLOW_STEP: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    Pass,
    /// Connections are closed as soon as they are made.
    Refuse,
    /// Connections are taken, and nothing more is heard of them; neither after it has passed.
    Hang,
    Unavailable,
    /// 20 KiB a second, each way of each connection.
    Slow,
    Forbidden,
}

impl Mode {
    const ALL: [Self; 6] = [
        Self::Pass,
        Self::Refuse,
        Self::Hang,
        Self::Unavailable,
        Self::Slow,
        Self::Forbidden,
    ];
}

/// A running front.
pub(crate) struct Front {
    mode: Arc<AtomicU8>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Front {
    /// Listens on loopback before a server, `127.0.0.1:5000`.
    pub(crate) async fn start(server: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mode = Arc::<AtomicU8>::default();
        let task = tokio::spawn(serve(listener, server, Arc::clone(&mode)));
        Ok(Self {
            mode,
            address,
            task,
        })
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }
}

fn now(mode: &AtomicU8) -> Mode {
    Mode::ALL[usize::from(mode.load(Ordering::SeqCst))]
}

async fn serve(listener: TcpListener, server: String, mode: Arc<AtomicU8>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (server, mode) = (server.clone(), Arc::clone(&mode));
        connections.spawn(async move {
            // A client that is gone is no concern of ours.
            drop(connection(client, &server, &mode).await);
        });
    }
}

async fn connection(mut client: TcpStream, server: &str, mode: &AtomicU8) -> std::io::Result<()> {
    loop {
        let began = now(mode);
        match began {
            Mode::Pass | Mode::Slow => {
                let upstream = TcpStream::connect(server).await?;
                return relay(client, upstream, mode, began).await;
            }
            Mode::Refuse => return Ok(()),
            Mode::Hang => std::future::pending().await,
            Mode::Unavailable => answer(&mut client, "503 Service Unavailable", "SlowDown").await?,
            Mode::Forbidden => answer(&mut client, "403 Forbidden", "AccessDenied").await?,
        }
    }
}

/// Reads one request and answers it.
async fn answer(client: &mut TcpStream, status: &str, code: &str) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    let (end, length) = loop {
        let read = client.read(&mut buffer).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&buffer[..read]);
        if let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            break (end + 4, length.unwrap_or(0_usize));
        }
    };
    let mut left = (end + length).saturating_sub(head.len());
    while left > 0 {
        let read = client.read(&mut buffer).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(read);
    }
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>a fault</Message></Error>"
    );
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.write_all(text.as_bytes()).await
}

/// Passes bytes on for as long as the mode stays what it was. Then the connection breaks, or is heard of no more.
async fn relay(
    client: TcpStream,
    server: TcpStream,
    mode: &AtomicU8,
    began: Mode,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let changed = async {
        while now(mode) == began {
            tokio::time::sleep(LOOK).await;
        }
        if now(mode) == Mode::Hang {
            std::future::pending::<()>().await;
        }
    };
    let both = async {
        tokio::select! {
            done = pass(&mut from_client, &mut to_server, mode, began) => done,
            done = pass(&mut from_server, &mut to_client, mode, began) => done,
        }
    };
    tokio::select! {
        done = both => done,
        () = changed => Ok(()),
    }
}

async fn pass(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mode: &AtomicU8,
    began: Mode,
) -> std::io::Result<()> {
    let mut buffer = vec![
        0;
        if began == Mode::Slow {
            SLOW_BYTES
        } else {
            64 << 10
        }
    ];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if now(mode) == Mode::Hang {
            std::future::pending::<()>().await;
        }
        to.write_all(&buffer[..read]).await?;
        if began == Mode::Slow {
            tokio::time::sleep(SLOW_STEP).await;
        }
    }
}
