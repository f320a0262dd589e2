//! What dies, and what goes on: worker, holder, both in turn, and an end in order.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use landfast_routing::snapshot::Mode;
use support::*;
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_refuses_no_connection_and_the_next_serves_the_same_routes() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            3,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let address = proxy.http().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (refused, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut load = JoinSet::new();
    for _ in 0..8 {
        let (stop, refused, answered) = (
            Arc::clone(&stop),
            Arc::clone(&refused),
            Arc::clone(&answered),
        );
        load.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match Wire::connect(address).await {
                    Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                    Ok(mut wire) => {
                        // In flight while the worker is killed: the only ones that may fail.
                        let sent = wire.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                        if sent.is_ok() && wire.answer().await.is_ok_and(|got| got.status == 200) {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        });
    }
    let mut boot = proxy.status().await.boot;
    for _ in 0..5 {
        kill("-KILL", proxy.status().await.pid);
        eventually("another worker answers", || async {
            proxy
                .control
                .status()
                .await
                .is_ok_and(|status| status.boot != boot)
        })
        .await;
        let status = proxy.status().await;
        assert_eq!(status.fence, fence(3));
        boot = status.boot;
        let before = answered.load(Ordering::Relaxed);
        eventually("requests are answered again", || async {
            answered.load(Ordering::Relaxed) > before + 20
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = load.join_next().await {
        client.expect("no panic");
    }
    assert_eq!(refused.load(Ordering::Relaxed), 0);
}

/// A worker has a session of its own, and goes before other processes where it may.
#[track_caller]
fn assert_priority(worker: u32) {
    let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).expect("it runs");
    // `proc(5)`: the fields after the name begin with the third; the sixth is the session, the nineteenth the niceness.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("a line")
        .split_whitespace()
        .collect();
    let is_root = rustix::process::geteuid().is_root();
    let niceness = if is_root { "-5" } else { "0" };
    assert_eq!((fields[3], fields[16]), (&*worker.to_string(), niceness));
}

#[tokio::test]
async fn a_killed_holder_is_replaced_by_the_worker_and_the_new_one_does_its_work() {
    let mut proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let first = proxy.status().await;
    assert_eq!(first.holder_pid, Some(proxy.holder_pid()));
    assert_priority(first.pid);
    let mut open = Wire::connect(first.http[0]).await.expect("connected");
    proxy.kill_holder();
    eventually("another holder is there", || async {
        proxy.status().await.holder_pid != first.holder_pid
    })
    .await;
    let second = proxy.status().await;
    assert_eq!(
        (second.pid, &second.boot),
        (first.pid, &first.boot),
        "the worker went on"
    );
    open.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("still open");
    assert_eq!(open.answer().await.expect("an answer").status, 200);

    kill("-KILL", second.pid);
    eventually("the new holder started another worker", || async {
        proxy
            .control
            .status()
            .await
            .is_ok_and(|status| status.boot != first.boot)
    })
    .await;
    let third = proxy.status().await;
    assert_eq!(third.holder_pid, second.holder_pid);
    // Of a holder that a worker started, whose niceness it took.
    assert_priority(third.pid);
    assert_eq!(
        get(first.http[0], "/").await.expect("an answer").status,
        200
    );

    kill("-TERM", third.holder_pid.expect("it said so"));
    eventually("both are gone", || async {
        proxy.control.status().await.is_err()
    })
    .await;
    eventually("the port is free", || async {
        tokio::net::TcpListener::bind(first.http[0]).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_replaces_the_worker_and_loses_no_request() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let address = proxy.http().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for client in 0..8 {
        let stop = Arc::clone(&stop);
        load.spawn(async move {
            let mut answered = 0_u64;
            let mut wire: Option<Wire> = None;
            while !stop.load(Ordering::Relaxed) {
                let mut open = match wire.take() {
                    Some(open) => open,
                    None => Wire::connect(address)
                        .await
                        .expect("no connection is refused"),
                };
                open.send("GET /slow/5 HTTP/1.1\r\nhost: a\r\n\r\n")
                    .await
                    .expect("sent");
                let got = open.answer().await.expect("every request is answered");
                assert_eq!(got.status, 200);
                answered += 1;
                // Half keep their connection until they are told that it was the last answer.
                if client % 2 == 0 && got.header("connection").as_deref() != Some("close") {
                    wire = Some(open);
                }
            }
            answered
        });
    }
    for _ in 0..3 {
        let before = proxy.status().await;
        kill("-HUP", before.holder_pid.expect("it said so"));
        eventually("another worker serves and the old one is gone", || async {
            let gone = !std::path::Path::new(&format!("/proc/{}/status", before.pid)).exists();
            gone && proxy
                .control
                .status()
                .await
                .is_ok_and(|status| status.boot != before.boot)
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut answered = 0;
    while let Some(client) = load.join_next().await {
        answered += client.expect("no client lost a request");
    }
    assert!(answered > 200, "{answered}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_worker_has_every_table_that_was_confirmed() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let table = |revision| {
        snapshot(
            revision,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        )
    };
    let mut revision = 1;
    proxy.put(&table(revision)).await;
    for _ in 0..5 {
        let before = proxy.status().await;
        kill("-HUP", before.holder_pid.expect("it said so"));
        let (mut boots, mut confirmed) = (0, fence(revision));
        let began = std::time::Instant::now();
        while boots < 20 && began.elapsed() < WAIT {
            revision += 1;
            if let Ok(status) = proxy.control.put_snapshot(&table(revision)).await {
                confirmed = status.fence;
            }
            let Ok(status) = proxy.control.status().await else {
                continue;
            };
            assert!(
                status.fence >= confirmed,
                "{} after {confirmed}",
                status.fence
            );
            boots += u32::from(status.boot != before.boot);
        }
        assert_eq!(boots, 20, "another worker came up");
    }
}

#[tokio::test]
async fn nothing_counts_as_drained_while_an_older_worker_has_it_in_flight() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let table = |revision| {
        snapshot(
            revision,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        )
    };
    proxy.put(&table(1)).await;
    let before = proxy.status().await;
    assert!(!before.finishing);
    let address = before.http[0];
    let slow = tokio::spawn(async move { get(address, "/slow/1500").await });
    eventually("it arrived", || async { upstream.count() == 1 }).await;
    kill("-HUP", before.holder_pid.expect("it said so"));
    eventually("another worker answers", || async {
        proxy.status().await.boot != before.boot
    })
    .await;
    let during = proxy.status().await;
    assert!(!slow.is_finished());
    assert_eq!(during.backends["one"].requests_in_flight, 1);
    let elders: Vec<_> = during.elders.iter().map(|elder| elder.pid).collect();
    assert_eq!(elders, [before.pid]);
    assert_eq!(
        slow.await.expect("no panic").expect("an answer").status,
        200
    );
    eventually("the old one has ended", || async {
        proxy.status().await.elders.is_empty()
    })
    .await;
    assert_eq!(proxy.status().await.backends["one"].requests_in_flight, 0);
}

#[tokio::test]
async fn a_request_held_by_the_old_worker_learns_that_the_pause_is_over() {
    let proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    let table = |revision, mode| {
        let mut entry = service(vec![group(1, 1, vec![upstream.backend()])]);
        entry.mode = mode;
        snapshot(revision, entry)
    };
    let pause = Mode::Pause {
        requests_max: 10,
        bytes_max: 1 << 20,
        wait_max_ms: 15_000,
    };
    proxy.put(&table(1, pause)).await;
    let before = proxy.status().await;
    let address = before.http[0];
    let held = tokio::spawn(async move { get(address, "/").await });
    eventually("it is held", || async {
        let stats = proxy.control.stats().await.expect("the proxy answers");
        stats.services.values().any(|service| service.paused == 1)
    })
    .await;
    kill("-HUP", before.holder_pid.expect("it said so"));
    eventually("another worker answers", || async {
        proxy.status().await.boot != before.boot
    })
    .await;
    let began = std::time::Instant::now();
    proxy.put(&table(2, Mode::Serve)).await;
    let got = held.await.expect("no panic").expect("an answer");
    assert_eq!(got.status, 200);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn an_end_in_order_finishes_what_is_in_progress() {
    let mut proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let address = proxy.http().await;
    let mut kept = Wire::connect(address).await.expect("connected");
    kept.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    assert_eq!(kept.answer().await.expect("an answer").status, 200);
    let slow = tokio::spawn(async move { get(address, "/drip/10/100").await });
    let stream = tokio::spawn(async move { get(address, "/sse/10").await });
    eventually("both arrived", || async { upstream.count() == 3 }).await;
    let began = std::time::Instant::now();
    let stopping = tokio::task::spawn_blocking(move || proxy.stop());
    tokio::time::sleep(Duration::from_millis(200)).await;
    // A request on an open connection is answered once more, and told that it was the last.
    kept.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("still open");
    let got = kept.answer().await.expect("an answer");
    assert_eq!(
        (got.status, got.header("connection").as_deref()),
        (200, Some("close"))
    );
    let got = slow.await.expect("no panic").expect("an answer");
    assert!(got.is_whole && got.text().ends_with("piece 9\n"));
    let got = stream.await.expect("no panic").expect("an answer");
    assert!(got.is_whole && got.text().ends_with("\n\n"));
    assert!(stopping.await.expect("no panic"), "the holder ends well");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "nothing idle holds the end up"
    );
}

#[tokio::test]
async fn a_taken_port_names_the_process_that_has_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let folder = tempfile::tempdir().expect("a folder");
    let routes = folder.path().join("routes.json");
    let settings = landfast_proxy::HolderSettings {
        http: vec![address],
        https: vec![],
        preview: None,
        control: folder.path().join("proxy.sock"),
        worker: landfast_proxy::WorkerSettings::new(routes),
    };
    let file = folder.path().join("settings.json");
    std::fs::write(&file, serde_json::to_vec(&settings).expect("json")).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_landfast-proxy-test"))
        .arg("holder")
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        message.contains(&format!("port {}", address.port())),
        "{message}"
    );
    assert!(
        message.contains(&format!("(process {})", std::process::id())),
        "{message}"
    );
    assert!(!settings.control.exists(), "no dead socket is left behind");
}

#[tokio::test]
async fn a_slow_reader_gets_its_answer_at_the_end_of_the_worker() {
    let mut proxy = Proxy::start().await;
    let upstream = Upstream::start("one").await;
    proxy
        .put(&snapshot(
            1,
            service(vec![group(1, 1, vec![upstream.backend()])]),
        ))
        .await;
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    // More than the buffers of both sockets take.
    wire.send("GET /big/20000000 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    eventually("it is under way", || async { upstream.count() == 1 }).await;
    let stopping = tokio::task::spawn_blocking(move || proxy.stop());
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let got = wire.answer().await.expect("an answer");
    assert!(got.is_whole, "cut after {} bytes", got.body.len());
    assert!(stopping.await.expect("no panic"), "the holder ends well");
}

#[tokio::test]
async fn a_worker_that_lacks_a_thread_does_not_say_that_it_serves() {
    let folder = tempfile::tempdir().expect("a folder");
    let any = "127.0.0.1:0".parse().expect("an address");
    let mut worker = landfast_proxy::WorkerSettings::new(folder.path().join("routes.json"));
    worker.threads = 8;
    let settings = landfast_proxy::HolderSettings {
        http: vec![any; 20],
        https: vec![],
        preview: None,
        control: folder.path().join("proxy.sock"),
        worker,
    };
    let file = folder.path().join("settings.json");
    std::fs::write(&file, serde_json::to_vec(&settings).expect("json")).expect("written");
    // Enough descriptors for the listeners of one thread and for control, not for a second thread.
    let mut holder = Command::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$0\" holder \"$1\""])
        .arg(env!("CARGO_BIN_EXE_landfast-proxy-test"))
        .arg(&file)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    eventually("the socket is there", || async {
        settings.control.exists()
    })
    .await;
    let control = landfast_proxy::control::ControlClient::new(&settings.control);
    let answered = tokio::time::timeout(Duration::from_secs(2), async {
        while control.status().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let answered = answered.await.is_ok();
    kill("-TERM", holder.id());
    assert!(holder.wait().is_ok());
    assert!(!answered, "it answers as if it served");
}
