//! The shim alone, spoken to as a server speaks to it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Stdio},
};

use landfast_shim::{
    Exit, MARK_VARIABLE, SOCKET_FILE, ShimState,
    wire::{LogSettings, Reply, Report, Request, ShimOrder},
};
use landfast_types::{
    AppName, EnvironmentName, Fence, Generation, InstanceId, ReleaseId, Scope, Secret,
};

struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("i")).unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("i")
    }

    fn order(&self, words: &[&str]) -> ShimOrder {
        let mut argv = vec!["testapp".to_owned()];
        argv.extend(words.iter().map(|word| (*word).to_owned()));
        let mark = Secret::new(format!("protocol.{}", self.folder.path().display()));
        ShimOrder {
            scope: Scope {
                app: AppName::new("shop").unwrap(),
                environment: EnvironmentName::new("production").unwrap(),
            },
            instance: InstanceId::new("api", ReleaseId(1), 1),
            fence: fence(5),
            folder: self.path(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_landfast-shim-testapp")),
            argv,
            env: BTreeMap::from([(MARK_VARIABLE.to_owned(), mark.clone())]),
            cwd: self.folder.path().to_owned(),
            address: None,
            is_job: false,
            mark: mark.reveal().clone(),
            logs: LogSettings::new(self.folder.path().join("logs")),
            grace_ms: 1_000,
            stop_signal: None,
            jail: None,
            secrets: None,
        }
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(self.path().join(SOCKET_FILE)).unwrap();
        Client {
            stream: BufReader::new(stream),
        }
    }

    fn state(&self) -> ShimState {
        ShimState::read(&self.path()).unwrap().unwrap()
    }
}

struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    fn say(&mut self, text: &str) -> Reply {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// `None` when the shim left meanwhile.
    fn try_ask(&mut self, request: &Request) -> Option<Reply> {
        let text = serde_json::to_string(request).unwrap() + "\n";
        self.stream.get_mut().write_all(text.as_bytes()).ok()?;
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).ok()?;
        (read > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    fn ask(&mut self, request: &Request) -> Reply {
        self.say(&(serde_json::to_string(request).unwrap() + "\n"))
    }
}

fn fence(revision: u64) -> Fence {
    Fence {
        generation: Generation(1),
        revision,
    }
}

#[expect(clippy::disallowed_methods, reason = "somebody has to start the shim")]
fn shim(order: &[u8]) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_landfast-shim-test"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(order).unwrap();
    let mut answer = String::new();
    // Ends when the shim has let go of its caller, not when the instance ends.
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut answer)
        .unwrap();
    child.wait().unwrap();
    answer
}

fn start(order: &ShimOrder) -> Report {
    let answer = shim(&serde_json::to_vec(order).unwrap());
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

#[test]
fn refuses_what_is_no_order() {
    let world = World::new();
    let whole = serde_json::to_vec(&world.order(&["serve"])).unwrap();
    // A server that dies while it writes leaves half an order.
    for order in [
        b"".as_slice(),
        b"{}",
        b"not json",
        &whole[..whole.len() - 1],
    ] {
        let answer = shim(order);
        let report: Report = serde_json::from_str(&answer).unwrap();
        assert!(matches!(report, Report::Failed { .. }), "{answer}");
    }
    assert_eq!(fs::read_dir(world.path()).unwrap().count(), 0);
    let nowhere = ShimOrder {
        folder: world.path().join("nowhere"),
        ..world.order(&["serve"])
    };
    assert!(matches!(start(&nowhere), Report::Failed { .. }));
}

#[test]
fn starts_one_instance_in_a_folder_ever() {
    let world = World::new();
    let order = world.order(&["serve"]);
    let Report::Started { state } = start(&order) else {
        panic!("it starts");
    };
    assert_eq!(*state, world.state());
    assert_eq!(start(&order), Report::Already);
    let stopped = world.connect().ask(&Request::Stop {
        fence: fence(6),
        grace_ms: 0,
    });
    let Reply::Ended { ended } = stopped else {
        panic!("{stopped:?}");
    };
    assert_eq!(
        ended.exit,
        Exit::Signal {
            signal: 9,
            core_dumped: false
        }
    );
    while landfast_shim::shim_is_alive(&world.path()).unwrap() {
        std::thread::yield_now();
    }
    assert_eq!(world.state().ended, Some(ended));
    assert_eq!(start(&order), Report::Already);
}

#[test]
fn answers_every_word_or_says_why_not() {
    let world = World::new();
    assert!(matches!(
        start(&world.order(&["on-term=3,0", "serve"])),
        Report::Started { .. }
    ));
    let mut client = world.connect();
    let Reply::State { state } = client.ask(&Request::Status) else {
        panic!("a state");
    };
    assert_eq!(state.fence.seen(), fence(5));
    for nonsense in ["\n", "{}\n", "{\"op\":\"dance\"}\n"] {
        assert!(
            matches!(client.say(nonsense), Reply::Refused { .. }),
            "{nonsense:?}"
        );
    }
    let stale = client.ask(&Request::Signal {
        fence: fence(4),
        signal: 9,
    });
    assert_eq!(
        stale,
        Reply::Stale {
            refused: fence(4),
            seen: fence(5)
        }
    );
    let stale = client.ask(&Request::Stop {
        fence: fence(4),
        grace_ms: 0,
    });
    assert_eq!(
        stale,
        Reply::Stale {
            refused: fence(4),
            seen: fence(5)
        }
    );
    let unknown = client.ask(&Request::Signal {
        fence: fence(7),
        signal: 4_000,
    });
    assert!(matches!(unknown, Reply::Refused { .. }));
    assert_eq!(
        world.state().fence.seen(),
        fence(7),
        "what was seen is on disk"
    );
    assert!(matches!(
        client.ask(&Request::Forget),
        Reply::Refused { .. }
    ));
    // A client that leaves in the middle of a word, and one that waits while others come and go.
    let mut rude = world.connect();
    rude.stream.get_mut().write_all(b"{\"op\":").unwrap();
    drop(rude);
    let mut waiting = world.connect();
    let line = serde_json::to_string(&Request::Wait).unwrap() + "\n";
    waiting.stream.get_mut().write_all(line.as_bytes()).unwrap();
    drop(world.connect());
    assert_eq!(
        client.ask(&Request::Signal {
            fence: fence(7),
            signal: 10
        }),
        Reply::Done
    );
    let mut line = String::new();
    waiting.stream.read_line(&mut line).unwrap();
    let Reply::Ended { ended } = serde_json::from_str(&line).unwrap() else {
        panic!("{line}");
    };
    assert_eq!(
        ended.exit,
        Exit::Signal {
            signal: 10,
            core_dumped: false
        }
    );
}

#[test]
fn removes_its_folder_when_it_is_forgotten() {
    // The shim stays only as long as something is left behind that ignores SIGTERM; on a busy machine it may be gone
    // before it is asked, and then another one is.
    let asked = (0..50).any(|_| {
        let world = World::new();
        assert!(matches!(
            start(&world.order(&["daemon", "exit=0"])),
            Report::Started { .. }
        ));
        while world.state().ended.is_none() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let Ok(stream) = UnixStream::connect(world.path().join(SOCKET_FILE)) else {
            return false;
        };
        let mut client = Client {
            stream: BufReader::new(stream),
        };
        let Some(reply) = client.try_ask(&Request::Forget) else {
            return false;
        };
        assert_eq!(reply, Reply::Done);
        assert!(!world.path().exists());
        true
    });
    assert!(asked, "every shim had left");
}
