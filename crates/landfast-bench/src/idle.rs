//! Connections that were used once and then say nothing.

use std::io::{self, Read as _};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use crate::target::{self, Connected, Target};

/// Connections that are being opened at a time.
const AT_A_TIME: usize = 32;
/// A masked text frame with "hello" in it (RFC 6455, 5.7).
const HELLO: [u8; 11] = [
    0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
];
/// The same from a server.
const ECHO: [u8; 7] = [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
const UPGRADE: &str = "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[derive(Serialize)]
struct Open {
    open: usize,
}

/// Opens them all, says so, and holds them until standard input ends.
pub(crate) async fn run(target: Target, count: usize, websocket: bool) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let mut held = Vec::with_capacity(count);
    let mut left = count;
    while left > 0 || !tasks.is_empty() {
        while left > 0 && tasks.len() < AT_A_TIME {
            left -= 1;
            let target = target.clone();
            tasks.spawn_local(async move { open(&target, websocket).await });
        }
        if let Some(opened) = tasks.join_next().await {
            let number = held.len() + 1;
            held.push(opened?.with_context(|| format!("connection {number} failed"))?);
        }
    }
    crate::print(&Open { open: held.len() })?;
    // Whoever measures closes the pipe when done.
    io::stdin().read_to_end(&mut Vec::new())?;
    check(&mut held, websocket).await
}

async fn open(target: &Target, websocket: bool) -> io::Result<Connected> {
    let mut connection = target.connect().await?;
    if websocket {
        connection.write_all(UPGRADE.as_bytes()).await?;
        let (head, _) = target::head(&mut connection).await?;
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(io::Error::other(format!("answered `{head}`")));
        }
        echo(&mut connection).await?;
    } else {
        target::get(&mut connection, "").await?;
    }
    Ok(connection)
}

async fn echo(connection: &mut Connected) -> io::Result<()> {
    connection.write_all(&HELLO).await?;
    let mut answer = [0; ECHO.len()];
    connection.read_exact(&mut answer).await?;
    if answer != ECHO {
        return Err(io::Error::other("the echo is another message"));
    }
    Ok(())
}

/// Memory of connections that were dropped meanwhile would be memory of nothing.
async fn check(held: &mut [Connected], websocket: bool) -> anyhow::Result<()> {
    let mut alive = 0;
    for connection in held.iter_mut().step_by(97) {
        let answered = if websocket {
            echo(connection).await
        } else {
            target::get(connection, "").await
        };
        alive += usize::from(answered.is_ok());
    }
    let asked = held.len().div_ceil(97);
    ensure!(
        alive == asked,
        "only {alive} of {asked} connections that were asked still answer"
    );
    Ok(())
}
