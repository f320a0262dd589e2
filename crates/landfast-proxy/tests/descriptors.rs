//! What happens when the descriptors run out: who is connected is served, who comes is refused in words, control and
//! routes go on, and all is well again when there is room.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::net::SocketAddr;

use support::*;
use tokio::task::JoinSet;

const DESCRIPTORS: u32 = 256;
/// What 256 descriptors leave room for, with two threads and three listeners.
const CLIENTS: usize = 157;
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// The processor time of a process, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("fields")
        .split_whitespace()
        .collect();
    let number = |index: usize| fields[index].parse::<u64>().expect("a number");
    number(11) + number(12)
}

fn open_files(pid: u32) -> usize {
    let listed = std::fs::read_dir(format!("/proc/{pid}/fd"));
    listed.expect("it runs").count()
}

async fn started() -> (Proxy, Upstream) {
    let proxy = Proxy::start_limited(|_| {}, Some(DESCRIPTORS)).await;
    let upstream = Upstream::start("one").await;
    proxy.put(&to(1, &upstream)).await;
    (proxy, upstream)
}

fn to(revision: u64, upstream: &Upstream) -> landfast_routing::snapshot::Snapshot {
    let groups = vec![group(revision, 1, vec![upstream.backend()])];
    snapshot(revision, service(groups))
}

async fn ask_all(open: &mut [Wire], expected: &str) {
    for wire in open {
        wire.send(GET).await.expect("still open");
        let got = wire.answer().await.expect("an answer");
        assert_eq!((got.status, got.text().as_str()), (200, expected));
    }
}

/// So many connections, each of which was served.
async fn served(address: SocketAddr, count: usize) -> Vec<Wire> {
    let mut open = Vec::new();
    for _ in 0..count {
        open.push(Wire::connect(address).await.expect("connected"));
    }
    ask_all(&mut open, "one").await;
    open
}

#[tokio::test]
async fn over_the_limit_clients_are_refused_and_all_else_goes_on() {
    let (proxy, _upstream) = started().await;
    let status = proxy.status().await;
    let address = status.http[0];
    let mut open = served(address, CLIENTS).await;
    let before = ticks(status.pid);
    let mut refused = 0;
    for number in 0..400 {
        let mut wire = Wire::connect(address).await.expect("accepted");
        // Closed, or told: both come at once, and nobody hangs.
        drop(wire.send(GET).await);
        if let Ok(got) = wire.answer().await {
            assert_eq!(got.status, 503, "connection {number}");
            assert_eq!(got.header("connection").as_deref(), Some("close"));
            refused += 1;
        }
    }
    assert!(refused > 300, "{refused} of 400 were told");
    let spent = ticks(status.pid) - before;
    assert!(spent < 100, "it spins: {spent} ticks for 400 refusals");
    // Control is not a client's affair, and neither are the routes.
    assert_eq!(proxy.status().await.boot, status.boot);
    let next = Upstream::start("two").await;
    proxy.put(&to(2, &next)).await;
    ask_all(&mut open, "two").await;
    drop(open);
    eventually("there is room again", || async {
        get(address, "/").await.is_ok_and(|got| got.status == 200)
    })
    .await;
    proxy.put(&to(3, &Upstream::start("one").await)).await;
}

#[tokio::test]
async fn whoever_never_speaks_takes_no_more_than_the_share_either() {
    let (proxy, _upstream) = started().await;
    let status = proxy.status().await;
    // A flood of connections that say nothing, to all listeners, all at once.
    let mut silent = Vec::new();
    for number in 0..600 {
        let address = [status.http[0], status.https[0]][number % 2];
        silent.push(Wire::connect(address).await.expect("connected"));
    }
    for revision in 2..20 {
        let next = Upstream::start("next").await;
        let after = proxy.put(&to(revision, &next)).await;
        assert_eq!(after.fence, fence(revision));
        let open = open_files(status.pid);
        assert!(open < DESCRIPTORS as usize - 16, "{open} are open");
    }
    let (_, after) = proxy.hand_over().await;
    assert_eq!(after.fence, fence(19), "another worker has taken over");
}

#[tokio::test]
async fn requests_that_find_no_descriptor_are_told_so_and_control_is_heard() {
    let (proxy, upstream) = started().await;
    let status = proxy.status().await;
    let address = status.http[0];
    // All are let in before the first takes a descriptor for its backend for longer.
    let open = served(address, CLIENTS).await;
    let before = upstream.count();
    let mut clients = JoinSet::new();
    for mut wire in open {
        clients.spawn(async move {
            wire.send("POST /slow/1500 HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")
                .await
                .expect("sent");
            let first = wire.answer().await.expect("each is answered");
            (first.status, wire)
        });
    }
    eventually("requests are under way", || async {
        upstream.count() >= before + 20
    })
    .await;
    // While all that clients and backends may have is taken.
    for revision in 2..10 {
        proxy.put(&to(revision, &upstream)).await;
        assert_eq!(proxy.status().await.boot, status.boot);
    }
    let open = open_files(status.pid);
    assert!(open < DESCRIPTORS as usize - 16, "{open} are open");
    let (mut served, mut told) = (0, 0);
    let mut after = Vec::new();
    while let Some(client) = clients.join_next().await {
        let (status, wire) = client.expect("no panic");
        match status {
            200 => served += 1,
            503 => told += 1,
            other => panic!("{other}"),
        }
        after.push(wire);
    }
    assert!(
        served >= 20 && told > 0 && served + told == CLIENTS,
        "{served} served, {told} told"
    );
    // All of them, and nobody was taken out for what was our own want.
    ask_all(&mut after, "one").await;
    let stats = proxy.control.stats().await.expect("the proxy answers");
    assert_eq!(stats.backends["one"].failures, 0);
}

#[tokio::test]
async fn what_idles_to_backends_makes_room_for_clients() {
    let (proxy, _upstream) = started().await;
    let address = proxy.http().await;
    // Requests side by side leave as many idle connections behind, all but a few of the descriptors together.
    let mut clients = JoinSet::new();
    for _ in 0..85 {
        clients.spawn(async move { get(address, "/slow/300").await.map(|got| got.status) });
    }
    for status in clients.join_all().await {
        assert_eq!(status.expect("an answer"), 200);
    }
    let began = std::time::Instant::now();
    let mut open = Vec::new();
    while open.len() < CLIENTS {
        let mut wire = Wire::connect(address).await.expect("accepted");
        wire.send(GET).await.expect("sent");
        // The first that find no room are refused; what idles is let go for those after them.
        if wire.answer().await.is_ok_and(|got| got.status == 200) {
            open.push(wire);
        }
        assert!(began.elapsed() < WAIT, "{} were let in", open.len());
    }
}
