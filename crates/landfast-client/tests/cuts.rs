//! The client against a server that cuts, on a real Unix socket.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use landfast_api::{
    At, DeployRequest, Event, ExecFrame, ExecRequest, Level, Manifest, Problem, ProblemCode,
};
use landfast_client::{Blob, Client, Error, Followed, Place};
use landfast_types::{AppName, Digest, EnvironmentName, Scope};
use tempfile::TempDir;
use tokio::{net::UnixListener, task::JoinSet};

type Body = BoxBody<Bytes, std::io::Error>;

/// What the server knows and did.
#[derive(Default)]
struct World {
    blobs: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Requests taken, by method and path.
    taken: Mutex<Vec<String>>,
    /// The `Last-Event-ID` of each event stream.
    resumed: Mutex<Vec<Option<String>>>,
    count: AtomicU64,
}

/// A body of these pieces; the connection is cut after them where `cut` says so.
fn pieces(pieces: Vec<Bytes>, cut: bool) -> Body {
    let pieces = stream::iter(pieces.into_iter().map(|piece| Ok(Frame::data(piece))));
    // A moment later, or what came before would not have left the server's buffer.
    let end = stream::once(async move {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        Err(std::io::Error::other("cut"))
    });
    if cut {
        BodyExt::boxed(StreamBody::new(pieces.chain(end)))
    } else {
        BodyExt::boxed(StreamBody::new(pieces))
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed()
}

fn json(status: u16, value: &impl serde::Serialize) -> Option<Response<Body>> {
    let body = full(serde_json::to_vec(value).unwrap());
    Some(Response::builder().status(status).body(body).unwrap())
}

fn event(sequence: u64) -> Bytes {
    let event = Event {
        sequence,
        at: At::default(),
        app: None,
        environment: None,
        kind: "k".into(),
        level: Level::Info,
        text: format!("event {sequence}"),
        rollout: None,
        release: None,
        service: None,
        instance: None,
    };
    let data = serde_json::to_string(&event).unwrap();
    format!(": hi\n\nid: {sequence}\nevent: k\ndata: {data}\n\n").into()
}

/// `None`: the connection is cut without an answer.
async fn answer(world: &World, request: Request<Incoming>) -> Option<Response<Body>> {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let header = |name| {
        request
            .headers()
            .get(name)
            .map(|v| v.to_str().unwrap().to_owned())
    };
    let resume = header("last-event-id");
    world
        .taken
        .lock()
        .unwrap()
        .push(format!("{method} {}", uri.path()));
    let path = uri.path().to_owned();
    match path.as_str() {
        "/v1/health" => json(
            200,
            &serde_json::json!({"status":"ok","version":"1","generation":3}),
        ),
        "/v1/host" => json(
            403,
            &Problem::new(ProblemCode::Forbidden, "not you").with_hint("ask somebody"),
        ),
        "/v1/apps" => Some(
            Response::builder()
                .status(418)
                .body(full("<html>"))
                .unwrap(),
        ),
        "/v1/blobs/missing" => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body: landfast_api::MissingBlobsRequest = serde_json::from_slice(&body).unwrap();
            let blobs = world.blobs.lock().unwrap();
            let offset = |digest: &String| blobs.get(digest).map_or(0, Vec::len) as u64;
            let whole = |digest: &String| {
                blobs
                    .get(digest)
                    .is_some_and(|b| Digest::of(b).to_string() == *digest)
            };
            let missing = body.digests.into_iter().filter(|d| !whole(d));
            let missing = missing.map(|d| landfast_api::MissingBlob {
                offset: offset(&d),
                digest: d,
            });
            json(
                200,
                &landfast_api::MissingBlobs {
                    missing: missing.collect(),
                },
            )
        }
        _ if path.starts_with("/v1/blobs/") => {
            let digest = path.rsplit('/').next().unwrap().to_owned();
            let query = uri.query().unwrap().to_owned();
            let offset = query
                .strip_prefix("offset=")
                .unwrap()
                .split('&')
                .next()
                .unwrap();
            let offset = offset.parse::<usize>().unwrap();
            let number = world.count.fetch_add(1, Ordering::SeqCst);
            // Every third piece is cut before it is kept, every third after: both must end well.
            if number % 3 == 1 {
                return None;
            }
            let piece = request.into_body().collect().await.unwrap().to_bytes();
            assert!(piece.len() <= landfast_api::BLOB_PIECE_BYTES_MAX);
            let size = {
                let mut blobs = world.blobs.lock().unwrap();
                let blob = blobs.entry(digest.clone()).or_default();
                if blob.len() != offset {
                    let problem = Problem {
                        offset: Some(blob.len() as u64),
                        ..Problem::new(ProblemCode::UploadOffset, "elsewhere")
                    };
                    return json(409, &problem);
                }
                blob.extend_from_slice(&piece);
                blob.len()
            };
            if query.ends_with("last=true") {
                let blobs = world.blobs.lock().unwrap();
                assert_eq!(Digest::of(&blobs[&digest]).to_string(), digest);
            }
            if number % 3 == 2 {
                return None;
            }
            json(200, &landfast_api::BlobSize { size: size as u64 })
        }
        "/v1/events" => {
            world.resumed.lock().unwrap().push(resume.clone());
            let after = resume.map_or(0, |id| id.parse::<u64>().unwrap());
            // Two events, the first seen before, then a cut.
            let body = pieces(vec![event(after), event(after + 1), event(after + 2)], true);
            Some(Response::builder().body(body).unwrap())
        }
        _ if path.ends_with("/exec") => {
            let lines = [
                ExecFrame::Started {
                    instance: "api.r1.1".into(),
                },
                ExecFrame::Stdout {
                    bytes: vec![0, 255],
                },
                ExecFrame::Exit {
                    code: Some(3),
                    text: "exited with code 3".into(),
                },
            ];
            let text = lines
                .map(|line| serde_json::to_string(&line).unwrap() + "\n")
                .concat();
            // In pieces that know nothing of lines.
            let body = text
                .into_bytes()
                .chunks(7)
                .map(Bytes::copy_from_slice)
                .collect();
            Some(Response::builder().body(pieces(body, false)).unwrap())
        }
        _ if path.ends_with("/rollouts") => {
            assert_eq!(header("idempotency-key").as_deref(), Some("key"));
            if world.count.fetch_add(1, Ordering::SeqCst) < 2 {
                return None;
            }
            json(200, &serde_json::json!({"unchanged": true, "release": 4}))
        }
        _ if path.ends_with("/stop") => None,
        _ => Some(
            Response::builder()
                .status(StatusCode::NOT_FOUND)
                .body(full(""))
                .unwrap(),
        ),
    }
}

struct Server {
    world: Arc<World>,
    client: Client,
    _folder: TempDir,
    /// Ends with the test.
    _tasks: JoinSet<()>,
}

fn serve() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let world = Arc::new(World::default());
    let known = Arc::clone(&world);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let world = Arc::clone(&known);
            connections.spawn(async move {
                let service = service_fn(move |request| {
                    let world = Arc::clone(&world);
                    async move { answer(&world, request).await.ok_or("cut") }
                });
                // An error is the cut that was asked for.
                drop(
                    http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            });
        }
    });
    Server {
        world,
        client: Client::new(Place::Unix(path)),
        _folder: folder,
        _tasks: tasks,
    }
}

fn scope() -> Scope {
    let app = AppName::new("shop").unwrap();
    Scope {
        app,
        environment: EnvironmentName::new("production").unwrap(),
    }
}

#[tokio::test]
async fn says_how_to_start_a_server_that_is_not_there() {
    let client = Client::new(Place::Unix("/nonexistent/landfast.sock".into()));
    let error = client.health().await.unwrap_err();
    assert!(matches!(error, Error::NotRunning { .. }));
    assert!(error.hint().unwrap().contains("landfast server"));
}

#[tokio::test]
async fn problems_keep_their_code_and_hint() {
    let server = serve();
    assert_eq!(server.client.health().await.unwrap().generation, 3);
    let error = server.client.host().await.unwrap_err();
    assert_eq!(error.code(), Some(ProblemCode::Forbidden));
    assert_eq!(
        (error.to_string(), error.hint()),
        ("not you".into(), Some("ask somebody".into()))
    );
    let error = server.client.apps().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server answered 418 to the list of apps"
    );
}

#[tokio::test]
async fn an_upload_goes_on_where_it_was_cut() {
    let server = serve();
    let folder = tempfile::tempdir().unwrap();
    let large = (0..3_500_000_u32)
        .map(|i| (i * 7 % 251) as u8)
        .collect::<Vec<_>>();
    let mut blobs = BTreeMap::new();
    for (name, content) in [("large", large.as_slice()), ("small", b"x"), ("empty", b"")] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        blobs.insert(
            Digest::of(content),
            Blob {
                path,
                size: content.len() as u64,
            },
        );
    }
    let mut last = None;
    server
        .client
        .upload(&blobs, |progress| last = Some(progress))
        .await
        .unwrap();
    let last = last.unwrap();
    assert_eq!(
        (last.bytes_done, last.bytes_total, last.blobs_total),
        (3_500_001, 3_500_001, 3)
    );
    assert!(last.cuts > 0, "the server cut and nobody noticed");
    let kept = server.world.blobs.lock().unwrap().clone();
    assert_eq!(kept[&Digest::of(&large).to_string()], large);
    assert_eq!(kept.len(), 3);
}

#[tokio::test]
async fn a_file_that_shrank_is_not_uploaded() {
    let server = serve();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    std::fs::write(&path, b"ab").unwrap();
    let blobs = BTreeMap::from([(Digest::of(b"abc"), Blob { path, size: 3 })]);
    let error = server.client.upload(&blobs, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::FileChanged { .. }), "{error}");
}

#[tokio::test]
async fn events_come_once_over_many_connections() {
    let server = serve();
    let mut events = server.client.events(None, Some(10));
    let mut seen = Vec::new();
    let mut lost = 0;
    while seen.len() < 6 {
        match events.next().await.unwrap() {
            Followed::Event(event) => seen.push(event.sequence),
            Followed::Lost(_) => lost += 1,
            Followed::Connected => {}
        }
    }
    assert_eq!(seen, [11, 12, 13, 14, 15, 16]);
    assert_eq!(lost, 2);
    let resumed = server.world.resumed.lock().unwrap().clone();
    let resumed = resumed
        .iter()
        .map(|id| id.as_deref().unwrap())
        .collect::<Vec<_>>();
    assert_eq!(resumed, ["10", "12", "14"]);
}

#[tokio::test]
async fn a_deploy_is_sent_again_and_a_stop_is_not() {
    let server = serve();
    let request = DeployRequest {
        manifest: Manifest {
            file_name: "landfast.toml".into(),
            text: String::new(),
        },
        images: Default::default(),
        artifacts: BTreeMap::new(),
        strategy: None,
        note: None,
        commit: None,
        supersede: false,
    };
    let answer = server
        .client
        .deploy(&scope(), &request, "key")
        .await
        .unwrap();
    assert!(answer.unchanged);
    let error = server.client.stop(&scope(), None).await.unwrap_err();
    assert!(matches!(error, Error::Cut { .. }), "{error}");
    let taken = server.world.taken.lock().unwrap().clone();
    let count = |end: &str| taken.iter().filter(|path| path.ends_with(end)).count();
    assert_eq!((count("/rollouts"), count("/stop")), (3, 1));
}

#[tokio::test]
async fn lines_are_read_whole_however_they_come() {
    let server = serve();
    let request = ExecRequest {
        service: Some("api".into()),
        instance: None,
        command: vec!["x".into()],
        stdin: Vec::new(),
    };
    let mut frames = server.client.exec(&scope(), &request).await.unwrap();
    let mut seen = Vec::new();
    while let Some(frame) = frames.next().await.unwrap() {
        seen.push(frame);
    }
    assert_eq!(seen.len(), 3);
    assert_eq!(
        seen[1],
        ExecFrame::Stdout {
            bytes: vec![0, 255]
        }
    );
    assert!(matches!(seen[2], ExecFrame::Exit { code: Some(3), .. }));
}
