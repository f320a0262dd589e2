//! A copy that was checked and is up, for whatever else is done with it.
//!
//! It has a network of its own that holds nothing, so what leads from the database to other servers leads nowhere: foreign servers, dblink,
//! code that opens connections. Where such a network cannot be had, or a way out is a socket in the file system, [`ScratchCopy::refusal`]
//! says so.

use std::{path::Path, pin::Pin, time::Duration};

use rustix::process::Signal;
use tokio::time::timeout;

use crate::{BackupError, Server, child::Running, restore::unused};

/// How long the server of a copy may take to end before it is killed.
const END_MAX: Duration = Duration::from_secs(30);

/// The server of a copy.
#[derive(Debug, Clone)]
pub struct ScratchCopy {
    pub server: Server,
    /// Why it has the network of this host; `None` where it has none.
    pub(crate) reachable: Option<String>,
}

/// What else is done with a copy once it was judged, or why it is not up again. Whatever becomes of it, the copy is removed, and
/// the verdict stays.
pub type OnCopy<'a> = Box<
    dyn FnOnce(Result<ScratchCopy, String>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>
        + Send
        + 'a,
>;

/// Ways out that are sockets in the file system. The client library of MySQL takes `localhost` for one. A PostgreSQL server that is
/// not named is the copy itself: its environment says so.
const BY_PATH: &str = "SELECT format('the foreign server `%s` is reached through a socket of this host', s.srvname) \
    FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw \
    WHERE EXISTS (SELECT FROM unnest(s.srvoptions) o WHERE o ~ '^host=(.*[/@]|$)' OR o ~ '^(service|socket|unix_socket)=' \
        OR o = 'host=localhost' AND w.fdwname NOT IN ('postgres_fdw', 'dblink_fdw')) \
    ORDER BY 1 LIMIT 1";

/// Ways out that need a network. `file_fdw` reads files.
const BY_NETWORK: &str = "SELECT format('the foreign server `%s` leads to another server', s.srvname) \
    FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE w.fdwname <> 'file_fdw' \
    UNION ALL SELECT format('the extension `%s` reaches other servers', extname) FROM pg_extension \
    WHERE extname IN ('dblink', 'http', 'pg_net', 'aws_s3', 'aws_lambda', 'plperlu', 'plpython3u', 'pltclu', 'plsh') \
    ORDER BY 1 LIMIT 1";

impl ScratchCopy {
    /// Why statements of an app must not run in a database of it: they could reach and change another server.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn refusal(&self, database: &str) -> Result<Option<String>, BackupError> {
        let session = self.server.connect_to(database).await?;
        let asked = match self.reachable {
            None => vec![BY_PATH],
            Some(_) => vec![BY_PATH, BY_NETWORK],
        };
        for ask in asked {
            let row = session.client.query_opt(ask, &[]).await;
            let row = row.map_err(BackupError::server("look for ways to other servers"))?;
            let Some(row) = row else { continue };
            let what: String = row.get(0);
            let why = self.reachable.as_ref();
            let why = why.map_or(String::new(), |why| {
                format!(" and the copy has this host's network: {why}")
            });
            return Ok(Some(format!("{what}{why}")));
        }
        Ok(None)
    }

    /// What all its databases take.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn bytes(&self) -> Result<u64, BackupError> {
        let ask = "SELECT sum(pg_database_size(oid))::int8 FROM pg_database";
        let session = self.server.connect().await?;
        let row = session.client.query_one(ask, &[]).await;
        let row = row.map_err(BackupError::server("ask for its size"))?;
        Ok(row.get::<_, i64>(0).cast_unsigned())
    }
}

/// Ends a server whose data are removed next: at once, and without writing anything more.
pub(crate) async fn discard(mut running: Running, data: &Path) {
    // PostgreSQL's immediate shutdown.
    running.signal(Signal::QUIT);
    if timeout(END_MAX, running.wait()).await.is_err() {
        running.signal(Signal::KILL);
    }
    drop(running);
    if let Err(error) = unused(data).await {
        tracing::warn!(%error, "the server of a copy has not ended");
    }
}
