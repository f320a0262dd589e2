//! A server on a real Unix socket that speaks the API's words and follows a script: the app's name says how its
//! rollout ends.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use landfast_api::*;
use landfast_store::{Entry, EntryKind, TreeListing};
use landfast_types::Timestamp;
use tempfile::TempDir;
use tokio::{net::UnixListener, runtime::Runtime, task::JoinSet};

type Body = BoxBody<Bytes, Infallible>;

#[derive(Default)]
pub struct World {
    blobs: Mutex<BTreeMap<String, Vec<u8>>>,
    artifacts: Mutex<Vec<String>>,
    pub secret: Mutex<Option<Vec<u8>>>,
    pub key: Mutex<Option<String>>,
    looks: AtomicU64,
}

pub struct Server {
    pub world: Arc<World>,
    folder: TempDir,
    _runtime: Runtime,
}

impl Server {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let world = Arc::new(World::default());
        let known = Arc::clone(&world);
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(folder.path().join("s")).expect("a socket")
        };
        // Ends with the runtime, which ends with the test.
        drop(runtime.handle().spawn(accept(listener, known)));
        Self {
            world,
            folder,
            _runtime: runtime,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

async fn accept(listener: UnixListener, world: Arc<World>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let world = Arc::clone(&world);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let world = Arc::clone(&world);
                async move { Ok::<_, Infallible>(answer(&world, request).await) }
            });
            // The client closes when it has seen enough.
            drop(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}

fn full(status: u16, bytes: impl Into<Bytes>) -> Response<Body> {
    Response::builder()
        .status(status)
        .body(BodyExt::boxed(Full::new(bytes.into())))
        .unwrap()
}

fn json(status: u16, value: &impl serde::Serialize) -> Response<Body> {
    full(status, serde_json::to_vec(value).unwrap())
}

fn problem(problem: Problem) -> Response<Body> {
    json(problem.status, &problem)
}

fn at(seconds: i64) -> At {
    At(Timestamp::from_millis(1_795_000_000_000 + seconds * 1_000))
}

fn rollout(app: &str, state: RolloutState) -> Rollout {
    let broken = matches!(state, RolloutState::RolledBack | RolloutState::Parked);
    Rollout {
        app: app.to_owned(),
        environment: "production".to_owned(),
        id: 7,
        kind: RolloutKind::Deploy,
        strategy: Strategy::Rolling,
        from: Some(4),
        to: 5,
        state,
        phase: match state {
            RolloutState::Moving => "starting 1 of 2 instances of api".to_owned(),
            RolloutState::Parked => "frozen at 25 %".to_owned(),
            _ => "over".to_owned(),
        },
        reason: broken.then(|| "an instance exited".to_owned()),
        cause: broken.then(|| Cause {
            what: "api.r5.9 exited with code 1".to_owned(),
            instance: Some("api.r5.9".to_owned()),
            line: Some("panicked: no database".to_owned()),
        }),
        step: None,
        weights: vec![Weight {
            release: 5,
            percent: 100.0,
        }],
        gates: vec![Gate {
            name: "preflight".into(),
            state: GateState::Passed,
            reason: None,
        }],
        deadlines: (state == RolloutState::Promoted)
            .then(|| Deadline {
                name: "standby".into(),
                at: at(640),
                then: "seals".into(),
            })
            .into_iter()
            .collect(),
        instances: Vec::new(),
        traffic: Vec::new(),
        ledger: Ledger {
            requests: 12_034,
            releases: vec![
                ReleaseLedger {
                    release: 4,
                    requests: 9_000,
                    ..Default::default()
                },
                ReleaseLedger {
                    release: 5,
                    requests: 3_034,
                    errors_theirs: 1,
                    ..Default::default()
                },
            ],
            streams: Streams {
                opened: 10,
                ended: 4,
                drained: 6,
                cut: 0,
            },
            latency_p99: Latency {
                before_ms: Some(12.0),
                during_ms: Some(13.4),
                after_ms: None,
            },
            retries: 1,
            ..Default::default()
        },
        started_at: at(0),
        promoted_at: (state == RolloutState::Promoted).then(|| at(42)),
        ended_at: state.is_ended().then(|| at(42)),
        note: None,
        commit: None,
        by: Some("tester".into()),
        sequence: 100,
    }
}

fn end_of(app: &str) -> RolloutState {
    match app {
        "broken" => RolloutState::RolledBack,
        "parks" => RolloutState::Parked,
        "refuses" => RolloutState::Refused,
        _ => RolloutState::Promoted,
    }
}

async fn answer(world: &World, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let method = request.method().to_string();
    let key = request
        .headers()
        .get(IDEMPOTENCY_KEY)
        .map(|key| key.to_str().unwrap().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let app = path.split('/').nth(3).unwrap_or_default().to_owned();
    if path.ends_with("/events") && !matches!(app.as_str(), "talks") {
        // Silent, so that transcripts do not depend on which comes first.
        return Response::new(BodyExt::boxed(StreamBody::new(stream::pending())));
    }
    if path.ends_with("/events") {
        let event = Event {
            sequence: 101,
            at: at(1),
            app: Some(app),
            environment: Some("production".into()),
            kind: "instance-ready".into(),
            level: Level::Info,
            text: "api.r5.9 is ready".into(),
            rollout: Some(7),
            release: Some(5),
            service: None,
            instance: None,
        };
        let text = format!(
            "id: 101\ndata: {}\n\n",
            serde_json::to_string(&event).unwrap()
        );
        let event = stream::once(async move { Ok(Frame::data(Bytes::from(text))) });
        let open = event.chain(stream::pending());
        return Response::new(BodyExt::boxed(StreamBody::new(open)));
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    match (method.as_str(), path.as_str()) {
        ("POST", "/v1/blobs/missing") => {
            let asked: MissingBlobsRequest = serde_json::from_slice(&body).unwrap();
            let blobs = world.blobs.lock().unwrap();
            let missing = asked
                .digests
                .into_iter()
                .filter(|digest| !blobs.contains_key(digest));
            let missing = missing
                .map(|digest| MissingBlob { digest, offset: 0 })
                .collect();
            json(200, &MissingBlobs { missing })
        }
        ("PATCH", _) => {
            assert!(
                query.ends_with("last=true"),
                "small files come in one piece: {query}"
            );
            let digest = path.rsplit('/').next().unwrap().to_owned();
            assert_eq!(landfast_types::Digest::of(&body).to_string(), digest);
            world.blobs.lock().unwrap().insert(digest, body.to_vec());
            json(
                200,
                &BlobSize {
                    size: body.len() as u64,
                },
            )
        }
        ("POST", "/v1/artifacts") => {
            let listing: ArtifactListing = serde_json::from_slice(&body).unwrap();
            let blobs = world.blobs.lock().unwrap();
            let entry = |entry: ArtifactEntry| {
                let digest = entry.digest.map(|digest| digest.parse().unwrap());
                let kind = match entry.kind {
                    ArtifactEntryKind::Folder => EntryKind::Folder,
                    ArtifactEntryKind::Link => EntryKind::Symlink {
                        target: entry.target.unwrap(),
                    },
                    ArtifactEntryKind::File => EntryKind::File {
                        executable: entry.executable,
                        size: entry.size,
                        digest: digest.unwrap(),
                    },
                };
                Entry {
                    path: entry.path,
                    kind,
                }
            };
            let tree = TreeListing::new(listing.files.into_iter().map(entry).collect()).unwrap();
            assert!(
                tree.files()
                    .all(|(digest, _)| blobs.contains_key(&digest.to_string()))
            );
            let digest = tree.digest().to_string();
            world.artifacts.lock().unwrap().push(digest.clone());
            json(200, &ArtifactCreated { digest })
        }
        ("POST", _) if path.ends_with("/rollouts") => {
            let deploy: DeployRequest = serde_json::from_slice(&body).unwrap();
            let known = world.artifacts.lock().unwrap();
            assert!(
                deploy
                    .artifacts
                    .values()
                    .all(|digest| known.contains(digest))
            );
            *world.key.lock().unwrap() = key;
            match app.as_str() {
                "same" => json(
                    200,
                    &DeployAnswer {
                        unchanged: true,
                        release: 4,
                        rollout: None,
                        warnings: vec![],
                    },
                ),
                "moves" => problem(Problem {
                    moving: Some(Moving {
                        rollout: 6,
                        to: 4,
                        since: at(0),
                        by: Some("somebody".into()),
                        phase: "holding at 5 %".into(),
                    }),
                    ..Problem::new(ProblemCode::RolloutMoving, "rollout 6 is moving")
                }),
                "taken" => problem(Problem::new(
                    ProblemCode::RouteTaken,
                    "`shop.example/` belongs to other/production/public",
                )),
                _ => json(
                    202,
                    &DeployAnswer {
                        unchanged: false,
                        release: 5,
                        rollout: Some(rollout(&app, RolloutState::Moving)),
                        warnings: vec![],
                    },
                ),
            }
        }
        ("GET", _) if path.ends_with("/rollouts/7") => {
            // The event of `talks` comes long before the third look, which the clock makes.
            let looks = if app == "talks" { 3 } else { 1 };
            let first = world.looks.fetch_add(1, Ordering::SeqCst) < looks;
            let state = if first {
                RolloutState::Moving
            } else {
                end_of(&app)
            };
            json(200, &rollout(&app, state))
        }
        ("PUT", _) if path.contains("/secrets/") => {
            *world.secret.lock().unwrap() = Some(body.to_vec());
            let name = path.rsplit('/').next().unwrap().to_owned();
            json(
                200,
                &Secret {
                    name,
                    version: 2,
                    set_at: at(0),
                    versions: 2,
                    pinned: Some(1),
                },
            )
        }
        ("POST", _) if path.ends_with("/exec") => {
            let asked: ExecRequest = serde_json::from_slice(&body).unwrap();
            let frames = [
                ExecFrame::Started {
                    instance: "api.r4.1".into(),
                },
                ExecFrame::Stdout {
                    bytes: asked.command.join("|").into_bytes(),
                },
                ExecFrame::Stderr { bytes: asked.stdin },
                ExecFrame::Exit {
                    code: Some(42),
                    text: "exited with code 42".into(),
                },
            ];
            full(
                200,
                frames
                    .map(|frame| serde_json::to_string(&frame).unwrap() + "\n")
                    .concat(),
            )
        }
        ("GET", _) if path.ends_with("/logs") => {
            let line = |stream, line: &str| LogLine {
                at: at(3),
                instance: "api.r4.1".into(),
                stream,
                line: line.into(),
            };
            let lines = [
                line(LogStream::Stdout, &query),
                line(LogStream::Stderr, "careful"),
            ];
            full(
                200,
                lines
                    .map(|line| serde_json::to_string(&line).unwrap() + "\n")
                    .concat(),
            )
        }
        _ => problem(Problem::new(
            ProblemCode::EnvironmentUnknown,
            format!("no environment at {path}"),
        )),
    }
}
