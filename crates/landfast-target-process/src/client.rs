//! Talking to one shim.

use std::{fs::File, io, os::fd::AsRawFd as _};

use landfast_shim::{
    SOCKET_FILE,
    wire::{Reply, Request},
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

use crate::folder::Folder;

/// A reply longer than this is none.
const REPLY_BYTES_MAX: u64 = 1 << 20;

pub(crate) enum Answer {
    Reply(Reply),
    /// It could not be reached or left before it answered: its folder tells more.
    Gone,
}

/// Asks once, for as long as the answer takes.
pub(crate) async fn ask(folder: &Folder, request: &Request) -> Answer {
    match try_ask(folder, request).await {
        Ok(Some(reply)) => Answer::Reply(reply),
        Ok(None) => Answer::Gone,
        Err(error) => {
            tracing::debug!(folder = folder.key(), %error, "shim did not answer");
            Answer::Gone
        }
    }
}

async fn try_ask(folder: &Folder, request: &Request) -> io::Result<Option<Reply>> {
    let mut stream = connect(folder).await?;
    say(&mut stream, request).await?;
    read_reply(&mut BufReader::new(stream)).await
}

pub(crate) async fn connect(folder: &Folder) -> io::Result<UnixStream> {
    let path = folder.path().join(SOCKET_FILE);
    // sun_path takes 107 bytes (unix(7)); a longer way round is named by the folder's own descriptor.
    if path.as_os_str().len() < 108 {
        return UnixStream::connect(path).await;
    }
    let opened = File::open(folder.path())?;
    let path = format!("/proc/self/fd/{}/{SOCKET_FILE}", opened.as_raw_fd());
    UnixStream::connect(path).await
}

pub(crate) async fn say(stream: &mut UnixStream, request: &Request) -> io::Result<()> {
    let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// The next line; `None` when the shim left.
pub(crate) async fn read_reply(
    stream: &mut (impl AsyncBufRead + Unpin),
) -> io::Result<Option<Reply>> {
    let mut line = Vec::new();
    stream
        .take(REPLY_BYTES_MAX)
        .read_until(b'\n', &mut line)
        .await?;
    if line.pop() != Some(b'\n') {
        return Ok(None);
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(io::Error::other)
}
