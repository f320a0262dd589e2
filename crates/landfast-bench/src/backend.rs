//! An HTTP server that costs next to nothing: answers are made beforehand, a head is searched for its end and no
//! more. It stands in for the application behind every proxy, so that what is compared is the proxies.

use std::{io, net::SocketAddr, rc::Rc};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// RFC 6455, 1.3: the answer to the key that [`crate::idle`] sends, which is the one of the RFC.
const ACCEPT: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const BUFFER: usize = 4 << 10;

struct Answers {
    small: Vec<u8>,
    large: Vec<u8>,
    huge: Vec<u8>,
}

fn answer(bytes: usize) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {bytes}\r\n\r\n");
    let mut answer = head.into_bytes();
    answer.resize(answer.len() + bytes, b'x');
    answer
}

/// Serves for ever.
pub(crate) async fn serve(addresses: &[SocketAddr]) -> anyhow::Result<()> {
    let answers = Rc::new(Answers {
        small: answer(1 << 10),
        large: answer(100 << 10),
        huge: answer(1 << 20),
    });
    let mut listeners = JoinSet::new();
    for address in addresses {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("failed to listen on {address}"))?;
        let answers = Rc::clone(&answers);
        listeners.spawn_local(accept(listener, answers));
    }
    listeners.join_all().await;
    Ok(())
}

async fn accept(listener: TcpListener, answers: Rc<Answers>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let answers = Rc::clone(&answers);
        connections.spawn_local(async move {
            // A client that leaves is how every connection ends.
            drop(exchange(stream, &answers).await);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn exchange(mut stream: TcpStream, answers: &Answers) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut seen = Vec::with_capacity(BUFFER);
    loop {
        if stream.read_buf(&mut seen).await? == 0 {
            return Ok(());
        }
        while let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
            let wanted: &[u8] = if seen.starts_with(b"GET /100k") {
                &answers.large
            } else if seen.starts_with(b"GET /1m") {
                &answers.huge
            } else if seen.starts_with(b"POST ") {
                take_body(&mut stream, &seen[..end], seen.len() - end - 4).await?;
                seen.truncate(end + 4);
                &answers.small
            } else if seen.starts_with(b"GET /echo") {
                stream.write_all(ACCEPT).await?;
                return echo(stream).await;
            } else {
                &answers.small
            };
            stream.write_all(wanted).await?;
            seen.drain(..end + 4);
        }
    }
}

/// Reads the rest of a body of which `have` bytes came with the head.
async fn take_body(stream: &mut TcpStream, head: &[u8], have: usize) -> io::Result<()> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| {
        let value = line.strip_prefix("content-length:")?;
        value.trim().parse::<usize>().ok()
    });
    let mut left = length.unwrap_or(0).saturating_sub(have);
    let mut piece = [0; BUFFER];
    while left > 0 {
        match stream.read(&mut piece).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

/// Answers each short text frame with the same text, as [`crate::idle`] sends them: masked, in one piece.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    loop {
        let mut head = [0; 6];
        stream.read_exact(&mut head).await?;
        let mut text = vec![0; usize::from(head[1] & 0x7f)];
        stream.read_exact(&mut text).await?;
        for (index, byte) in text.iter_mut().enumerate() {
            *byte ^= head[2 + index % 4];
        }
        let length = u8::try_from(text.len()).unwrap_or(0);
        let mut frame = vec![0x81, length];
        frame.append(&mut text);
        stream.write_all(&frame).await?;
    }
}
