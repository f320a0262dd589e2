//! The server process: look at the stores, listen, serve, and on SIGTERM or SIGINT finish what was begun and leave.

use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use crate::{
    cache::Cache,
    database::Database,
    documents::Documents,
    health::{self, Stores},
    http::{self, App},
    log::{self, Level},
    settings::Settings,
};

/// Serves until asked to leave.
pub(crate) fn run(settings: Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(serve(settings))?;
    log::line(Level::Info, "left", json!({}));
    Ok(())
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let connections_max = settings.database_connections_max;
    let database = Database::new(&settings.database, connections_max, &settings.version)?;
    let stores = Arc::new(Stores {
        database: Arc::new(database),
        cache: Cache::new(&settings.cache)?,
        documents: Documents::new(&settings.bucket).context("the bucket cannot be used")?,
    });
    let (health, seen) = watch::channel(health::check(&stores, false).await);
    let mut tasks = JoinSet::new();
    tasks.spawn(health::watch(Arc::clone(&stores), health));

    let address = (settings.host, settings.port);
    let listener = TcpListener::bind(address).await;
    let listener =
        listener.with_context(|| format!("failed to listen on {}:{}", address.0, address.1))?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to wait for SIGINT")?;
    let own = listener
        .local_addr()
        .context("failed to read the own address")?;
    let facts = json!({
        "address": own.to_string(), "version": settings.version, "health": seen.borrow().status(),
    });
    log::line(Level::Info, "serving", facts);
    let asked = async move {
        let which = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        log::line(Level::Info, "leaving", json!({"signal": which}));
    };
    let app = Arc::new(App {
        stores: Arc::clone(&stores),
        health: seen,
        version: settings.version,
    });
    axum::serve(listener, http::router(app))
        .with_graceful_shutdown(asked)
        .await
        .context("failed to serve")?;
    tasks.shutdown().await;
    stores.database.close().await;
    Ok(())
}
