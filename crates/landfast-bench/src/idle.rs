//! Connections that were used once and then say nothing.

use std::{
    io::{self, Read as _},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use crate::target::{self, Connected, Target};

/// Connections that are being opened at a time.
const AT_A_TIME: usize = 32;
/// Of so many one is used again at the end.
const SAMPLE: usize = 97;
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A masked text frame with "hello" in it (RFC 6455, 5.7).
const HELLO: [u8; 11] = [
    0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
];
/// The same from a server.
const ECHO: [u8; 7] = [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
const UPGRADE: &str = "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// What each connection is used for before and after.
#[derive(Debug, Clone)]
pub(crate) enum Use {
    WebSocket,
    Get { host: String, path: String },
}

#[derive(Serialize)]
struct Open {
    open: usize,
}

#[derive(Serialize)]
struct Alive {
    asked: usize,
    alive: usize,
}

/// Opens them all, says so, and holds them until standard input ends. Then uses some of them again, or each.
pub(crate) async fn run(
    target: Target,
    count: usize,
    use_of: Use,
    each: bool,
) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let mut held = Vec::with_capacity(count);
    let mut left = count;
    while left > 0 || !tasks.is_empty() {
        while left > 0 && tasks.len() < AT_A_TIME {
            left -= 1;
            let (target, use_of) = (target.clone(), use_of.clone());
            tasks.spawn_local(async move { open(&target, &use_of).await });
        }
        if let Some(opened) = tasks.join_next().await {
            let number = held.len() + 1;
            held.push(opened?.with_context(|| format!("connection {number} failed"))?);
        }
    }
    crate::print(&Open { open: held.len() })?;
    // Whoever measures closes the pipe when done.
    io::stdin().read_to_end(&mut Vec::new())?;
    check(&mut held, &use_of, each).await
}

async fn open(target: &Target, use_of: &Use) -> io::Result<Connected> {
    let mut connection = target.connect().await?;
    if matches!(use_of, Use::WebSocket) {
        connection.write_all(UPGRADE.as_bytes()).await?;
        let (head, _) = target::head(&mut connection).await?;
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(io::Error::other(format!("answered `{head}`")));
        }
    }
    use_once(&mut connection, use_of).await?;
    Ok(connection)
}

async fn use_once(connection: &mut Connected, use_of: &Use) -> io::Result<()> {
    match use_of {
        Use::WebSocket => echo(connection).await,
        Use::Get { host, path } => target::ask(connection, path, host, "").await.map(drop),
    }
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
async fn check(held: &mut [Connected], use_of: &Use, each: bool) -> anyhow::Result<()> {
    let step = if each { 1 } else { SAMPLE };
    let asked = held.len().div_ceil(step);
    let mut alive = 0;
    for connection in held.iter_mut().step_by(step) {
        let answered = tokio::time::timeout(ANSWER_MAX, use_once(connection, use_of)).await;
        alive += usize::from(answered.is_ok_and(|answered| answered.is_ok()));
    }
    if each {
        crate::print(&Alive { asked, alive })?;
    }
    ensure!(
        alive == asked,
        "only {alive} of {asked} connections that were asked still answer"
    );
    Ok(())
}
