//! gRPC through a real proxy, between a client and a server of the gRPC project (Debian's python3-grpcio), and
//! trailers of HTTP/1.1.

#![expect(
    clippy::disallowed_methods,
    reason = "tests drive real processes, clocks and tasks"
)]

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
};

use landfast_routing::snapshot::{Protocol, Service};
use support::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// Debian's packages are for its own interpreter, which need not be the first in PATH.
const DEBIANS_PYTHON: &str = "/usr/bin/python3";

/// Says its port. Bytes are sent as they are: no generated code is needed.
const SERVER: &str = r#"
import signal, sys, threading, time, grpc
from concurrent import futures
name = sys.argv[1]
def unary(request, context):
    seen = sorted(key for key, _ in context.invocation_metadata() if "_" in key)
    context.set_trailing_metadata((("x-name", name), ("x-raw-bin", b"\x00\xff"), ("x-seen", ",".join(seen))))
    return request
def fail(request, context):
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: 100%")
def down(request, context):
    number = 0
    while context.is_active():
        yield b"%d" % number
        number += 1
        time.sleep(0.02)
def up(requests, context):
    return b"%d" % sum(len(request) for request in requests)
def both(requests, context):
    for request in requests:
        yield request
class Handler(grpc.GenericRpcHandler):
    def service(self, call):
        return {
            "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
            "/test.Echo/Fail": grpc.unary_unary_rpc_method_handler(fail),
            "/test.Echo/Down": grpc.unary_stream_rpc_method_handler(down),
            "/test.Echo/Up": grpc.stream_unary_rpc_method_handler(up),
            "/test.Echo/Both": grpc.stream_stream_rpc_method_handler(both),
        }.get(call.method)
server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((Handler(),))
port = server.add_insecure_port("127.0.0.1:0")
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=lambda: server.stop(5)).start())
server.start()
print(port, flush=True)
server.wait_for_termination()
"#;

/// One line per answer, and the status at the end.
const CLIENT: &str = r#"
import queue, sys, grpc
address, kind = sys.argv[1], sys.argv[2]
say = lambda *words: print(*words, flush=True)
channel = grpc.insecure_channel(address)
def trailers(call):
    return dict((key, value) for key, value in call.trailing_metadata() if key.startswith("x-"))
try:
    if kind == "unary":
        answer, call = channel.unary_unary("/test.Echo/Unary").with_call(
            b"hello", timeout=20, metadata=(("tenant_id", "7"), ("x_forwarded_for", "6.6.6.6")))
        say(answer, sorted(trailers(call).items()))
    elif kind == "fail":
        channel.unary_unary("/test.Echo/Fail")(b"", timeout=20)
    elif kind == "many":
        call = channel.unary_unary("/test.Echo/Unary")
        for number in range(int(sys.argv[3])):
            answer, done = call.with_call(b"%d" % number, timeout=20)
            assert answer == b"%d" % number
            say(trailers(done)["x-name"])
    elif kind == "down":
        for answer in channel.unary_stream("/test.Echo/Down")(b"", timeout=60):
            say(answer)
    elif kind == "up":
        pieces = (b"x" * 20000 for _ in range(40))
        say(channel.stream_unary("/test.Echo/Up")(pieces, timeout=20))
    elif kind == "both":
        waiting = queue.Queue()
        answers = channel.stream_stream("/test.Echo/Both")(iter(waiting.get, None), timeout=20)
        for word in (b"one", b"two", b"three"):
            waiting.put(word)
            say(next(answers))
        waiting.put(None)
        say(list(answers))
    say("OK")
except grpc.RpcError as error:
    say(error.code().name, error.details())
"#;

struct Python {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Python {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(DEBIANS_PYTHON)
            .arg("-c")
            .arg(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 with python3-grpcio (`make setup`)");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("readable");
        line.trim_end().to_owned()
    }

    fn rest(&mut self) -> Vec<String> {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("readable");
        rest.lines().map(str::to_owned).collect()
    }

    fn server(name: &str) -> (Self, SocketAddr) {
        let mut server = Self::start(SERVER, &[name]);
        let port: u16 = server.line().parse().expect("a port");
        (server, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    fn client(address: SocketAddr, kind: &str) -> Self {
        Self::start(CLIENT, &[&address.to_string(), kind, "400"])
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn h2c(groups: Vec<landfast_routing::snapshot::Group>) -> Service {
    Service {
        protocol: Protocol::H2c,
        ..service(groups)
    }
}

async fn ask_all(address: SocketAddr, kind: &'static str) -> Vec<String> {
    let asked = tokio::task::spawn_blocking(move || Python::client(address, kind).rest());
    asked.await.expect("no panic")
}

#[tokio::test]
async fn every_kind_of_call_passes_with_its_trailers() {
    let proxy = Proxy::start().await;
    let (_server, address) = Python::server("one");
    let group = group(1, 100, vec![serving("one", address)]);
    proxy.put(&snapshot(1, h2c(vec![group]))).await;
    let address = proxy.http().await;
    let unary = ask_all(address, "unary").await;
    assert_eq!(
        unary,
        [
            "b'hello' [('x-name', 'one'), ('x-raw-bin', b'\\x00\\xff'), ('x-seen', 'tenant_id')]",
            "OK"
        ],
        "metadata may have `_`, but none that could be taken for ours"
    );
    let fail = ask_all(address, "fail").await;
    assert_eq!(fail, ["NOT_FOUND no such thing: 100%"]);
    assert_eq!(ask_all(address, "up").await, ["b'800000'", "OK"]);
    let both = ask_all(address, "both").await;
    assert_eq!(both, ["b'one'", "b'two'", "b'three'", "[]", "OK"]);
    // A client that speaks HTTP/1.1 reaches the same server, which answers it in its own way.
    let got = get(address, "/").await.expect("an answer");
    assert_ne!(got.status, 502, "{got:?}");
    // Nothing is left in flight, or a drain would wait for it.
    eventually("no call is in flight", || async {
        proxy.status().await.backends["one"].requests_in_flight == 0
    })
    .await;
}

#[tokio::test]
async fn our_own_errors_are_read_by_a_grpc_client() {
    let proxy = Proxy::start().await;
    proxy
        .put(&snapshot(1, h2c(vec![group(1, 100, vec![])])))
        .await;
    let address = proxy.http().await;
    let said = ask_all(address, "unary").await;
    assert_eq!(said, ["UNAVAILABLE Service Unavailable"]);
    let nobody = serving("gone", "127.0.0.1:1".parse().expect("an address"));
    proxy
        .put(&snapshot(2, h2c(vec![group(1, 100, vec![nobody])])))
        .await;
    assert_eq!(ask_all(address, "unary").await, ["UNAVAILABLE Bad Gateway"]);
    let mut nowhere = snapshot(3, h2c(vec![]));
    nowhere.routes.clear();
    proxy.put(&nowhere).await;
    assert_eq!(ask_all(address, "unary").await, ["UNIMPLEMENTED Not Found"]);
}

#[tokio::test]
async fn calls_move_to_the_other_instance_when_one_leaves_and_none_fails() {
    let proxy = Proxy::start().await;
    let (one, first) = Python::server("one");
    let (_two, second) = Python::server("two");
    let both = vec![serving("one", first), serving("two", second)];
    proxy
        .put(&snapshot(1, h2c(vec![group(1, 100, both)])))
        .await;
    let address = proxy.http().await;
    // In an orderly drain, and then when an instance goes by itself, with GOAWAY.
    for is_drained in [true, false] {
        let mut client = Python::client(address, "many");
        let (mut client, mut seen) = tokio::task::spawn_blocking(move || {
            let seen: Vec<String> = (0..100).map(|_| client.line()).collect();
            (client, seen)
        })
        .await
        .expect("no panic");
        if is_drained {
            let left = vec![draining("one", first, 5_000, 5_000), serving("two", second)];
            proxy
                .put(&snapshot(2, h2c(vec![group(1, 100, left)])))
                .await;
        } else {
            kill("-TERM", one.child.id());
        }
        let rest = tokio::task::spawn_blocking(move || client.rest());
        let mut rest = rest.await.expect("no panic");
        let last = rest.pop();
        // Python's server takes calls while it stops, and cancels them: that is its own answer, which is passed on.
        if !is_drained && last.as_deref() == Some("CANCELLED CANCELLED") {
            continue;
        }
        assert_eq!(
            last.as_deref(),
            Some("OK"),
            "drained: {is_drained}, {rest:?}"
        );
        assert_eq!(seen.len() + rest.len(), 400);
        seen.extend(rest);
        assert!(seen.iter().any(|name| name == "one"));
        assert_eq!(seen.last().map(String::as_str), Some("two"));
        let both = vec![serving("one", first), serving("two", second)];
        proxy
            .put(&snapshot(3, h2c(vec![group(1, 100, both)])))
            .await;
    }
}

#[tokio::test]
async fn a_stream_that_outlasts_the_drain_ends_with_a_status() {
    let proxy = Proxy::start().await;
    let (_server, address) = Python::server("one");
    let whole = vec![serving("one", address)];
    proxy
        .put(&snapshot(1, h2c(vec![group(1, 100, whole)])))
        .await;
    let mut client = Python::client(proxy.http().await, "down");
    assert_eq!(client.line(), "b'0'");
    let left = vec![draining("one", address, 100, 100)];
    proxy
        .put(&snapshot(2, h2c(vec![group(1, 100, left)])))
        .await;
    let rest = tokio::task::spawn_blocking(move || client.rest());
    let rest = rest.await.expect("no panic");
    assert_eq!(
        rest.last().map(String::as_str),
        Some("UNAVAILABLE the answer broke off")
    );
    eventually("drained", || async {
        proxy.status().await.backends["one"].is_drained()
    })
    .await;
}

#[tokio::test]
async fn trailers_of_http1_pass_in_both_directions() {
    let proxy = Proxy::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let backend = serving("raw", listener.local_addr().expect("an address"));
    proxy
        .put(&snapshot(1, service(vec![group(1, 100, vec![backend])])))
        .await;
    let upstream = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") || !seen.windows(5).any(|part| part == b"\r\n0\r\n") {
            assert!(stream.read_buf(&mut seen).await.expect("readable") > 0);
        }
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                      3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("written");
        String::from_utf8(seen).expect("text").to_ascii_lowercase()
    });
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    wire.send(
        "POST / HTTP/1.1\r\nhost: shop.example\r\nte: trailers\r\nconnection: te\r\ntrailer: x-check\r\n\
         transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-check: 1\r\n\r\n",
    )
    .await
    .expect("sent");
    let head = wire.head().await.to_ascii_lowercase();
    assert!(head.contains("trailer: x-sum"), "{head}");
    assert_eq!(wire.chunk().await.expect("a chunk"), b"abc");
    let end = wire
        .bytes("0\r\nx-sum: 7\r\n\r\n".len())
        .await
        .expect("the end");
    assert_eq!(String::from_utf8_lossy(&end), "0\r\nx-sum: 7\r\n\r\n");
    let seen = upstream.await.expect("no panic");
    assert!(
        seen.contains("te: trailers\r\n") && seen.contains("connection: te\r\n"),
        "{seen}"
    );
    assert!(seen.ends_with("0\r\nx-check: 1\r\n\r\n"), "{seen}");
    // What would let somebody in or change the framing has no place behind a body.
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    wire.send(
        "POST / HTTP/1.1\r\nhost: shop.example\r\ntransfer-encoding: chunked\r\n\r\n\
         2\r\nhi\r\n0\r\nauthorization: Basic eA==\r\n\r\n",
    )
    .await
    .expect("sent");
    assert!(wire.head().await.starts_with("HTTP/1.1 400"));
}
