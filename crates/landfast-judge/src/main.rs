//! `landfast-judge`: a run from the command line. JSON on standard output, a table for people on standard error.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser;
use landfast_judge::{Judge, JudgeHandle, Settings, Tls, Verdict};

/// Puts load on a service and says whether a request was lost.
///
/// Exit codes: 0 nothing lost and no stream cut, 1 something was, 2 wrong use, 3 the judge itself fell behind.
#[derive(Debug, Parser)]
#[command(
    after_help = "Example:\n  landfast-judge --target 127.0.0.1:8080 --host api.flextime.example --receipts /var/lib/app/data --for 60s"
)]
struct Arguments {
    /// Address of the proxy.
    #[arg(long)]
    target: SocketAddr,
    /// Host to ask for.
    #[arg(long)]
    host: String,
    /// Speak TLS and trust the certificates in this PEM file.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Requests per second.
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// Percent of requests over HTTP/2 (over TLS, or with prior knowledge).
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    http2: u8,
    /// Kept connections over HTTP/2.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    http2_connections: u16,
    /// Kept connections over HTTP/1.1, each for one request at a time; as many as are needed without it.
    #[arg(long, default_value_t = 0)]
    connections: usize,
    /// Percent of requests on a connection of their own.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    new_connections: u8,
    /// Percent of requests that are posts of 64 KiB.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(0..=100))]
    posts: u8,
    /// Percent of requests that the application takes 3 s for.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=100))]
    waits: u8,
    #[arg(long, default_value_t = 1_000)]
    websockets: usize,
    /// Event streams.
    #[arg(long, default_value_t = 100)]
    events: usize,
    /// Time between two messages of a stream.
    #[arg(long, default_value = "1s", value_parser = landfast_types::parse_duration)]
    every: Duration,
    /// Stop after this time; without it on SIGINT or SIGTERM.
    #[arg(long = "for", value_parser = landfast_types::parse_duration)]
    time: Option<Duration>,
    /// Folder with the application's logs of receipts.
    #[arg(long)]
    receipts: Option<PathBuf>,
    /// The route has a rate: count 429 of the proxy in a column of its own, not as lost.
    #[arg(long)]
    expect_limits: bool,
    /// Sent with every request, `name: value`.
    #[arg(long = "header")]
    headers: Vec<String>,
    /// Paths of plain requests.
    #[arg(long = "path")]
    paths: Vec<String>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many losses to describe one by one; all are counted.
    #[arg(long, default_value_t = 200)]
    samples: usize,
    /// Unix socket that takes the lines `start`, `snapshot` and `stop`, each answered with one line of JSON.
    #[arg(long)]
    control: Option<PathBuf>,
    /// Begin only when `start` comes over the control socket.
    #[arg(long, requires = "control")]
    wait: bool,
}

/// What a person or a program asks for, and where the answer goes.
enum Order {
    Start,
    Snapshot(UnixStream),
    Stop(Option<UnixStream>),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(verdict) if !verdict.valid => ExitCode::from(3),
        Ok(verdict) if !verdict.is_clean() => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "landfast-judge: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<Verdict> {
    let (orders, ordered) = channel();
    if let Some(path) = &arguments.control {
        listen(path, orders.clone())?;
    }
    wait_for_signals(orders)?;
    let settings = settings(&arguments)?;
    if arguments.wait {
        loop {
            match ordered.recv().context("nobody is left to start the run")? {
                Order::Start => break,
                Order::Snapshot(stream) => answer(stream, &Verdict::default()),
                Order::Stop(_) => anyhow::bail!("stopped before the run began"),
            }
        }
    }
    let judge = Judge::start(settings)?;
    let asker = obey(&judge, &ordered, arguments.time);
    let verdict = judge.finish();
    if let Some(stream) = asker {
        answer(stream, &verdict);
    }
    if let Some(path) = &arguments.control {
        drop(std::fs::remove_file(path));
    }
    drop(writeln!(std::io::stderr(), "{verdict}"));
    drop(writeln!(
        std::io::stdout(),
        "{}",
        serde_json::to_string(&verdict)?
    ));
    Ok(verdict)
}

fn settings(arguments: &Arguments) -> anyhow::Result<Settings> {
    let mut settings = Settings::new(arguments.target, &arguments.host);
    settings.rate = arguments.rate;
    settings.http2_percent = arguments.http2;
    settings.http2_connections = arguments.http2_connections.into();
    settings.connections_max = arguments.connections;
    settings.new_connection_percent = arguments.new_connections;
    settings.post_percent = arguments.posts;
    settings.wait_percent = arguments.waits;
    settings.websockets = arguments.websockets;
    settings.event_streams = arguments.events;
    settings.stream_every = arguments.every;
    settings.receipts.clone_from(&arguments.receipts);
    settings.seed = arguments.seed;
    settings.expects_limits = arguments.expect_limits;
    settings.samples_max = arguments.samples;
    if !arguments.paths.is_empty() {
        settings.paths.clone_from(&arguments.paths);
    }
    for header in &arguments.headers {
        let (name, value) = header
            .split_once(':')
            .with_context(|| format!("`{header}` is no `name: value`"))?;
        settings
            .headers
            .push((name.trim().to_owned(), value.trim().to_owned()));
    }
    if let Some(path) = &arguments.ca {
        let ca_pem =
            std::fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
        settings.tls = Some(Tls { ca_pem });
    }
    Ok(settings)
}

/// Answers orders until it is time to stop; gives back who waits for the verdict.
fn obey(
    judge: &JudgeHandle,
    ordered: &Receiver<Order>,
    time: Option<Duration>,
) -> Option<UnixStream> {
    let mut left = time.unwrap_or(Duration::MAX);
    loop {
        let before = judge.snapshot().seconds;
        match ordered.recv_timeout(left) {
            Ok(Order::Start) => {}
            Ok(Order::Snapshot(stream)) => answer(stream, &judge.snapshot()),
            Ok(Order::Stop(stream)) => return stream,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        }
        if left != Duration::MAX {
            left = left.saturating_sub(Duration::from_secs_f64(judge.snapshot().seconds - before));
        }
    }
}

fn answer(mut stream: UnixStream, verdict: &Verdict) {
    if let Ok(text) = serde_json::to_string(verdict) {
        // Whoever asked may be gone; the run goes on.
        drop(writeln!(stream, "{text}"));
    }
}

fn listen(path: &Path, orders: Sender<Order>) -> anyhow::Result<()> {
    let listener = UnixListener::bind(path)
        .with_context(|| format!("failed to listen on `{}`", path.display()))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let orders = orders.clone();
            thread::spawn(move || take_orders(stream, &orders));
        }
    });
    Ok(())
}

fn take_orders(stream: UnixStream, orders: &Sender<Order>) {
    let Ok(reading) = stream.try_clone() else {
        return;
    };
    for line in BufReader::new(reading).lines() {
        let (Ok(line), Ok(stream)) = (line, stream.try_clone()) else {
            return;
        };
        let order = match line.trim() {
            "start" => Order::Start,
            "snapshot" => Order::Snapshot(stream),
            "stop" => Order::Stop(Some(stream)),
            _ => return,
        };
        if orders.send(order).is_err() {
            return;
        }
    }
}

fn wait_for_signals(orders: Sender<Order>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) = (
                signal(SignalKind::interrupt()),
                signal(SignalKind::terminate()),
            ) else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        drop(orders.send(Order::Stop(None)));
    });
    Ok(())
}
