//! The server process: open the store, listen, serve, and on SIGTERM or SIGINT finish what was begun and leave.

use std::{
    fs::OpenOptions,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use axum::serve::ListenerExt as _;
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cache::Cache,
    clock,
    events::Events,
    fault::{Fault, Injector},
    http::{self, App},
    log::{self, Level},
    metrics::Metrics,
    prune,
    release::Release,
    settings::Settings,
    store::{HistoryRow, Store},
    workers::Workers,
};

/// Evaluations that may wait to be recorded.
const HISTORY_QUEUE_MAX: usize = 16_384;
const HISTORY_BATCH_MAX: usize = 512;
const PRUNE_EVERY: Duration = Duration::from_secs(3_600);
/// Threads that serve connections; evaluations have their own.
const CONNECTION_THREADS: usize = 2;

/// Serves until asked to leave.
pub(crate) fn run(settings: Settings, release: Release, fault: Fault) -> anyhow::Result<()> {
    let store = Arc::new(Store::open(&settings).context("failed to open the store")?);
    let (history, rows) = sync_channel(HISTORY_QUEUE_MAX);
    let (historian, pruned) = (Arc::clone(&store), settings.clone());
    let historian = thread::Builder::new()
        .name("history".to_owned())
        .spawn(move || keep_history(&historian, &rows, &pruned))
        .context("failed to start a thread")?;
    let receipts = settings
        .data
        .join(format!("receipts-{}.log", settings.instance));
    let receipts = OpenOptions::new().create(true).append(true).open(&receipts);
    let app = Arc::new(App {
        cache: Cache::new(settings.cache_ttl, settings.cache_entries_max),
        workers: Workers::start(settings.workers_max).context("failed to start the workers")?,
        injector: Injector::new(fault),
        receipts: Mutex::new(receipts.context("failed to open the log of receipts")?),
        metrics: Metrics::default(),
        events: Events::new(),
        started: clock::instant(),
        leaving: CancellationToken::new(),
        streams: TaskTracker::new(),
        settings,
        release,
        store,
        history,
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONNECTION_THREADS)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(serve(app))?;
    // The last owner of the queue's sending end is gone, so the historian writes what is left and leaves.
    drop(runtime);
    historian
        .join()
        .map_err(|_| anyhow::anyhow!("the history thread panicked"))?;
    log::line(Level::Info, "left", json!({}));
    Ok(())
}

async fn serve(app: Arc<App>) -> anyhow::Result<()> {
    let (host, port) = (app.settings.host, app.settings.port);
    let listener = TcpListener::bind((host, port))
        .await
        .with_context(|| format!("failed to listen on {host}:{port}"))?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to wait for SIGINT")?;
    let address = listener
        .local_addr()
        .context("failed to read the own address")?;
    let facts = json!({
        "address": address.to_string(), "version": app.release.version, "digest": app.release.digest,
        "instance": app.settings.instance, "data": app.settings.data, "workers": app.workers.max(),
    });
    log::line(Level::Info, "serving", facts);
    // A stream's small frames must not wait for each other's acknowledgements.
    let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
    let leaving = app.leaving.clone();
    let asked = async move {
        let which = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        log::line(Level::Info, "leaving", json!({"signal": which}));
        leaving.cancel();
    };
    let streams = app.streams.clone();
    axum::serve(listener, http::router(app))
        .with_graceful_shutdown(asked)
        .await
        .context("failed to serve")?;
    streams.close();
    streams.wait().await;
    Ok(())
}

/// Records evaluations in batches and prunes now and then, until nobody can send any more.
fn keep_history(store: &Store, rows: &Receiver<HistoryRow>, settings: &Settings) {
    loop {
        match prune::once(store, settings) {
            Ok(removed) => log::line(Level::Debug, "history pruned", json!({"rows": removed})),
            Err(error) => log::line(
                Level::Warn,
                "pruning failed",
                json!({"error": format!("{error:#}")}),
            ),
        }
        let next_prune = clock::instant() + PRUNE_EVERY;
        loop {
            let wait = next_prune.saturating_duration_since(clock::instant());
            let first = match rows.recv_timeout(wait) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let batch: Vec<HistoryRow> = std::iter::once(first)
                .chain(rows.try_iter().take(HISTORY_BATCH_MAX - 1))
                .collect();
            if let Err(error) = store.record(&batch) {
                let facts = json!({"error": error.to_string(), "rows": batch.len()});
                log::line(Level::Error, "history was not recorded", facts);
            }
        }
    }
}
