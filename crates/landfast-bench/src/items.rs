//! An app whose whole state is one table of PostgreSQL, in two releases: they differ in the name of the column they read and
//! write. It is what proofs of migrations deploy.

use std::{
    env, fs,
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{Mutex, Semaphore},
};
use tokio_postgres::{Client, NoTls, Statement};

/// Connections to the database.
const POOL: usize = 8;
/// What a request may be; the load's are some hundred bytes.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// The table's clients, as a pool: a statement that waits for a lock must not hold up the others of its connection.
struct Pool {
    url: String,
    column: String,
    free: Mutex<Vec<Session>>,
    permits: Semaphore,
}

struct Session {
    client: Client,
    select: Statement,
    update: Statement,
    upsert: Statement,
}

/// Serves on `$PORT` of loopback until it is told to end.
///
/// `GET /items/ID` answers the value, `POST` changes that of a row that exists, `PUT` makes the row or changes it;
/// the body is the value. Statements are prepared once for each connection, as most libraries do.
pub(crate) async fn serve(column: &str) -> anyhow::Result<()> {
    let port: u16 = env::var("PORT")
        .context("PORT is not set")?
        .parse()
        .context("PORT is no port")?;
    let url = match env::var("DATABASE_URL") {
        Ok(url) => url,
        Err(_) => {
            let path = env::var("DATABASE_URL_FILE").context("DATABASE_URL is not set")?;
            fs::read_to_string(path).context("DATABASE_URL_FILE cannot be read")?
        }
    };
    let pool = Arc::new(Pool {
        url: url.trim().to_owned(),
        column: column.to_owned(),
        free: Mutex::default(),
        permits: Semaphore::new(POOL),
    });
    // A release that cannot read its column does not come up.
    let first = pool.connect().await?;
    pool.free.lock().await.push(first);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let mut stop = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let pool = Arc::clone(&pool);
                tokio::task::spawn_local(async move {
                    if let Err(error) = converse(stream, &pool).await {
                        drop(writeln!(io::stderr(), "connection: {error}"));
                    }
                });
            }
            _ = stop.recv() => {
                // The proxy has taken traffic away before; what is under way may end.
                tokio::time::sleep(Duration::from_millis(300)).await;
                return Ok(());
            }
        }
    }
}

impl Pool {
    async fn connect(&self) -> anyhow::Result<Session> {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls)
            .await
            .context("failed to connect to the database")?;
        tokio::task::spawn_local(async move { drop(connection.await) });
        let column = &self.column;
        let prepare = async |text: String| client.prepare(&text).await;
        let select = prepare(format!("SELECT {column} FROM items WHERE id = $1")).await?;
        let update = prepare(format!("UPDATE items SET {column} = $2 WHERE id = $1")).await?;
        let upsert = prepare(format!(
            "INSERT INTO items (id, {column}) VALUES ($1, $2) \
             ON CONFLICT (id) DO UPDATE SET {column} = EXCLUDED.{column}"
        ));
        let upsert = upsert.await?;
        Ok(Session {
            client,
            select,
            update,
            upsert,
        })
    }

    /// The status and the body of an answer.
    async fn answer(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        if path == "/ready" || path == "/health" {
            return (200, "ok".into());
        }
        if path == "/version" {
            return (200, self.column.clone());
        }
        let id = path.strip_prefix("/items/").and_then(|id| id.parse().ok());
        let Some(id) = id else {
            return (404, "no such path".into());
        };
        match self.ask(method, id, body).await {
            Ok(Some(value)) => (200, value),
            Ok(None) => (404, "no such item".into()),
            Err(error) => {
                let text = format!("{error:#}");
                drop(writeln!(io::stderr(), "{method} {path}: {text}"));
                (500, text)
            }
        }
    }

    async fn ask(&self, method: &str, id: i64, value: &str) -> anyhow::Result<Option<String>> {
        let _permit = self.permits.acquire().await?;
        let free = self.free.lock().await.pop();
        let session = match free.filter(|session| !session.client.is_closed()) {
            Some(session) => session,
            None => self.connect().await?,
        };
        let client = &session.client;
        let answer = match method {
            "GET" => {
                let row = client.query_opt(&session.select, &[&id]).await?;
                row.and_then(|row| row.get::<_, Option<String>>(0))
            }
            "POST" => {
                let changed = client.execute(&session.update, &[&id, &value]).await?;
                (changed == 1).then(|| value.to_owned())
            }
            _ => {
                client.execute(&session.upsert, &[&id, &value]).await?;
                Some(value.to_owned())
            }
        };
        self.free.lock().await.push(session);
        Ok(answer)
    }
}

/// Answers the requests of one connection, one after the other.
async fn converse(mut stream: TcpStream, pool: &Pool) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(REQUEST_BYTES_MAX);
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if bytes.len() > REQUEST_BYTES_MAX || stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length = crate::target::field(&head, "content-length");
        let length: usize = length.and_then(|value| value.parse().ok()).unwrap_or(0);
        while bytes.len() < end + length {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        }
        let body = String::from_utf8_lossy(&bytes[end..end + length]).into_owned();
        bytes.drain(..end + length);
        let mut words = head.split_ascii_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (status, text) = pool.answer(method, path, &body).await;
        let answer = format!(
            "HTTP/1.1 {status} -\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(answer.as_bytes()).await?;
    }
}
