//! The one suite that every target passes, the fake included.
//!
//! It speaks to a target through the trait alone. What instances do is said in words that each subject's app, or
//! fake, understands: `serve`, `sleep=MS`, `exit=CODE`, `abort`, `ignore-term`, `on-term=CODE,MS`, `child` (a
//! grandchild that ignores SIGTERM), `out=TEXT`, `err=TEXT`, `env=NAME` (prints it) and `cat`.
//!
//! Waits have generous bounds, only so that a broken target fails instead of hanging.

use std::{
    collections::BTreeMap, future::Future, net::SocketAddr, path::PathBuf, sync::Arc,
    time::Duration,
};

use landfast_types::{
    AppName, Digest, EnvironmentName, Fence, Generation, ImageId, InstanceId, ReleaseId, Scope,
    Secret,
};
use tokio::time::Instant;

use crate::{
    ContainerOptions, Content, ExecOutput, Exit, InstanceRef, InstanceSpec, Observed,
    ObservedState, Resources, StartError, Target, TargetError,
};

const PATIENCE: Duration = Duration::from_secs(30);
const GENEROUS: Duration = Duration::from_secs(20);

/// A kind of target under test, with an app in its store that understands the words above.
pub trait Subject: Sync {
    /// The target as a server would open it. Each call is a new value on the same world, as after a restart.
    fn open(&self) -> Arc<dyn Target>;
    /// What holds the app.
    fn content(&self) -> Content;
    /// The first word of a command that runs the app.
    fn program(&self) -> String;
    /// Where logs may go.
    fn log_folder(&self) -> PathBuf;
    /// What its containers are told, where it has any.
    fn container(&self) -> ContainerOptions {
        ContainerOptions::default()
    }
    /// Whether what an instance started gets the grace too when the instance itself has ended in it. The kernel ends
    /// all of a container with its first process.
    fn children_get_the_grace(&self) -> bool {
        true
    }
    /// Whether an address is one that instances of this subject may be given.
    fn may_be_given(&self, address: SocketAddr) -> bool {
        address.ip().is_loopback()
    }
}

/// Runs every case, each with instances of its own.
///
/// # Panics
/// With the name of what does not hold.
pub async fn suite(subject: &impl Subject) {
    let bench = Bench { subject };
    case("starts_once", bench.starts_once()).await;
    case("tells_how_it_ended", bench.tells_how_it_ended()).await;
    case("waits_for_an_end_to_come", bench.waits_for_an_end_to_come()).await;
    case("grants_the_grace", bench.grants_the_grace()).await;
    case(
        "kills_what_ignores_sigterm",
        bench.kills_what_ignores_sigterm(),
    )
    .await;
    case(
        "ends_when_nothing_is_left",
        bench.ends_when_nothing_is_left(),
    )
    .await;
    case(
        "a_second_stop_shortens_the_grace",
        bench.a_second_stop_shortens_the_grace(),
    )
    .await;
    case("stops_more_than_once", bench.stops_more_than_once()).await;
    case("refuses_stale_orders", bench.refuses_stale_orders()).await;
    case("lists_in_order", bench.lists_in_order()).await;
    case(
        "is_adopted_after_a_restart",
        bench.is_adopted_after_a_restart(),
    )
    .await;
    case("forgets_only_what_ended", bench.forgets_only_what_ended()).await;
    case(
        "knows_nothing_of_strangers",
        bench.knows_nothing_of_strangers(),
    )
    .await;
    case("gives_ports_of_their_own", bench.gives_ports_of_their_own()).await;
    case("refuses_what_is_missing", bench.refuses_what_is_missing()).await;
    case("runs_commands_beside", bench.runs_commands_beside()).await;
    case(
        "keeps_the_answer_of_a_job",
        bench.keeps_the_answer_of_a_job(),
    )
    .await;
}

async fn case(name: &str, run: impl Future<Output = ()>) {
    assert!(
        tokio::time::timeout(PATIENCE, run).await.is_ok(),
        "`{name}` hangs"
    );
}

struct Bench<'a, S> {
    subject: &'a S,
}

fn fence(generation: u64, revision: u64) -> Fence {
    Fence {
        generation: Generation(generation),
        revision,
    }
}

/// The fence of orders that are never meant to be stale.
fn now() -> Fence {
    fence(5, 1_000)
}

impl<S: Subject> Bench<'_, S> {
    fn id(&self, case: &str, number: u64) -> InstanceRef {
        let app = AppName::new("conformance").expect("a name");
        let environment = EnvironmentName::new(case).expect("a name");
        let instance = InstanceId::new("app", ReleaseId(1), number);
        InstanceRef {
            scope: Scope { app, environment },
            instance,
        }
    }

    fn spec(&self, id: &InstanceRef, words: &[&str]) -> InstanceSpec {
        let mut command = vec![self.subject.program()];
        command.extend(words.iter().map(|word| (*word).to_owned()));
        let log_folder = self
            .subject
            .log_folder()
            .join(id.scope.to_string())
            .join(id.instance.as_str());
        InstanceSpec {
            id: id.clone(),
            content: self.subject.content(),
            command,
            env: BTreeMap::from([("GREETING".to_owned(), Secret::new("hello".to_owned()))]),
            listens: false,
            resources: Resources::default(),
            volumes: BTreeMap::new(),
            log_folder,
            is_job: false,
            secret_files: Default::default(),
            sandbox: crate::Sandbox::default(),
            container: self.subject.container(),
        }
    }

    async fn start(&self, target: &dyn Target, id: &InstanceRef, words: &[&str]) -> Observed {
        target
            .start(now(), &self.spec(id, words))
            .await
            .expect("it starts")
    }

    async fn starts_once(&self) {
        let target = self.subject.open();
        let id = self.id("once", 1);
        let first = self.start(&*target, &id, &["serve"]).await;
        assert_eq!((&first.id, &first.state), (&id, &ObservedState::Running));
        assert_eq!(first.address, None);
        let again = self.start(&*target, &id, &["serve"]).await;
        assert_eq!(again, first, "an id is started once");
        target
            .stop(now(), &id, Duration::ZERO)
            .await
            .expect("it stops");
        let ended = self.start(&*target, &id, &["serve"]).await;
        assert!(
            matches!(ended.state, ObservedState::Exited { .. }),
            "an id is started once, ever"
        );
        // Two at the same time are one as well.
        let id = self.id("once", 2);
        let spec = self.spec(&id, &["serve"]);
        let (one, two) = tokio::join!(target.start(now(), &spec), target.start(now(), &spec));
        assert_eq!(one.expect("it starts"), two.expect("it starts"));
        target
            .stop(now(), &id, Duration::ZERO)
            .await
            .expect("it stops");
    }

    async fn tells_how_it_ended(&self) {
        let target = self.subject.open();
        let abort = Exit::Signal {
            signal: 6,
            core_dumped: false,
        };
        for (number, words, expected) in [
            (1, ["exit=0"].as_slice(), Exit::Code { code: 0 }),
            (2, &["exit=37"], Exit::Code { code: 37 }),
            (3, &["sleep=50", "abort"], abort),
        ] {
            let id = self.id("ends", number);
            self.start(&*target, &id, words).await;
            let exit = target.wait(&id).await.expect("it is here");
            // Whether a core was written is the host's affair.
            let exit = match exit {
                Exit::Signal { signal, .. } => Exit::Signal {
                    signal,
                    core_dumped: false,
                },
                exit @ (Exit::Code { .. }
                | Exit::OutOfMemory { .. }
                | Exit::NotStarted { .. }
                | Exit::Unknown) => exit,
            };
            assert_eq!(exit, expected, "{words:?}");
            let listed = self.find(&*target, &id).await.expect("it is remembered");
            assert!(matches!(listed.state, ObservedState::Exited { .. }));
            assert_eq!(
                listed.pid, None,
                "no number of a process that ended is told"
            );
        }
    }

    async fn waits_for_an_end_to_come(&self) {
        let target = self.subject.open();
        let id = self.id("waits", 1);
        self.start(&*target, &id, &["sleep=300", "exit=4"]).await;
        let (one, two) = tokio::join!(target.wait(&id), target.wait(&id));
        assert_eq!(one.expect("it is here"), Exit::Code { code: 4 });
        assert_eq!(two.expect("it is here"), Exit::Code { code: 4 });
        assert_eq!(
            target.wait(&id).await.expect("it is remembered"),
            Exit::Code { code: 4 }
        );
    }

    async fn grants_the_grace(&self) {
        let target = self.subject.open();
        let id = self.id("grace", 1);
        self.start(&*target, &id, &["on-term=7,200", "out=ready", "serve"])
            .await;
        self.settle().await;
        let exit = target.stop(now(), &id, GENEROUS).await.expect("it stops");
        assert_eq!(exit, Exit::Code { code: 7 }, "its own handler ends it");
    }

    async fn kills_what_ignores_sigterm(&self) {
        let target = self.subject.open();
        let id = self.id("kills", 1);
        self.start(&*target, &id, &["ignore-term", "child", "child", "serve"])
            .await;
        self.settle().await;
        let exit = target
            .stop(now(), &id, Duration::from_millis(100))
            .await
            .expect("it stops");
        assert_eq!(
            exit,
            Exit::Signal {
                signal: 9,
                core_dumped: false
            }
        );
    }

    async fn ends_when_nothing_is_left(&self) {
        let target = self.subject.open();
        let id = self.id("left", 1);
        self.start(&*target, &id, &["child", "serve"]).await;
        self.settle().await;
        let grace = Duration::from_secs(1);
        let begun = Instant::now();
        let waiting = async { (target.wait(&id).await, begun.elapsed()) };
        let (stopped, (waited, after)) = tokio::join!(target.stop(now(), &id, grace), waiting);
        assert_eq!(stopped.expect("it stops"), waited.expect("it is here"));
        // The instance itself died of SIGTERM at once. What takes its place must not run beside its child.
        assert!(
            after >= grace || !self.subject.children_get_the_grace(),
            "an end was told while a child still ran"
        );
        let id = self.id("left", 2);
        self.start(&*target, &id, &["child", "sleep=100", "exit=6"])
            .await;
        let begun = Instant::now();
        assert_eq!(
            target.wait(&id).await.expect("it is here"),
            Exit::Code { code: 6 }
        );
        let after = begun.elapsed();
        assert!(
            after < Duration::from_secs(10),
            "a crash is told at once, not after {after:?}"
        );
    }

    async fn a_second_stop_shortens_the_grace(&self) {
        let target = self.subject.open();
        let id = self.id("shortens", 1);
        self.start(&*target, &id, &["ignore-term", "serve"]).await;
        self.settle().await;
        let patient = target.stop(now(), &id, Duration::from_secs(3_600));
        let hasty = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            target.stop(now(), &id, Duration::from_millis(1)).await
        };
        let (patient, hasty) = tokio::join!(patient, hasty);
        let killed = Exit::Signal {
            signal: 9,
            core_dumped: false,
        };
        assert_eq!(patient.expect("it stops"), killed);
        assert_eq!(hasty.expect("it stops"), killed);
    }

    async fn stops_more_than_once(&self) {
        let target = self.subject.open();
        let id = self.id("again", 1);
        self.start(&*target, &id, &["exit=3"]).await;
        assert_eq!(
            target.wait(&id).await.expect("it is here"),
            Exit::Code { code: 3 }
        );
        for _ in 0..2 {
            let exit = target
                .stop(now(), &id, GENEROUS)
                .await
                .expect("it has stopped");
            assert_eq!(
                exit,
                Exit::Code { code: 3 },
                "stopping does not change how it ended"
            );
        }
    }

    async fn refuses_stale_orders(&self) {
        let target = self.subject.open();
        let id = self.id("stale", 1);
        let newer = fence(6, 10);
        target
            .start(newer, &self.spec(&id, &["serve"]))
            .await
            .expect("it starts");
        for stale in [fence(5, 99), fence(6, 9)] {
            let stopped = target.stop(stale, &id, Duration::ZERO).await;
            assert!(matches!(stopped, Err(TargetError::Stale(_))), "{stopped:?}");
        }
        // A server that was replaced starts nothing either.
        let other = self.id("stale", 2);
        let started = target
            .start(fence(5, 99), &self.spec(&other, &["serve"]))
            .await;
        assert!(matches!(started, Err(StartError::Stale(_))), "{started:?}");
        assert_eq!(self.find(&*target, &other).await, None);
        let running = self.find(&*target, &id).await.expect("it runs");
        assert_eq!(
            running.state,
            ObservedState::Running,
            "a refused order does nothing"
        );
        target
            .stop(fence(6, 11), &id, Duration::ZERO)
            .await
            .expect("a newer order stops it");
    }

    async fn lists_in_order(&self) {
        let target = self.subject.open();
        let ids: Vec<_> = [3, 1, 2].map(|number| self.id("lists", number)).into();
        for id in &ids {
            target
                .start(newest(), &self.spec(id, &["serve"]))
                .await
                .expect("it starts");
        }
        let all = target.list().await.expect("it lists");
        let listed: Vec<_> = all.iter().map(|observed| &observed.id).collect();
        assert!(listed.is_sorted(), "{listed:?}");
        assert!(ids.iter().all(|id| listed.contains(&id)));
        for id in &ids {
            target
                .stop(newest(), id, Duration::ZERO)
                .await
                .expect("it stops");
        }
    }

    async fn is_adopted_after_a_restart(&self) {
        let before = self.subject.open();
        let (stays, leaves) = (self.id("adopted", 1), self.id("adopted", 2));
        let spec = self.spec(&stays, &["serve"]);
        let started = before.start(newest(), &spec).await.expect("it starts");
        let brief = self.spec(&leaves, &["sleep=200", "exit=5"]);
        before.start(newest(), &brief).await.expect("it starts");
        drop(before);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let after = self.subject.open();
        assert_eq!(self.find(&*after, &stays).await, Some(started));
        // Nobody was there when this one ended; its exit is not lost.
        assert_eq!(
            after.wait(&leaves).await.expect("it is remembered"),
            Exit::Code { code: 5 }
        );
        let exit = after
            .stop(newest(), &stays, Duration::ZERO)
            .await
            .expect("it stops");
        assert_eq!(
            exit,
            Exit::Signal {
                signal: 9,
                core_dumped: false
            }
        );
    }

    async fn forgets_only_what_ended(&self) {
        let target = self.subject.open();
        let id = self.id("forgets", 1);
        target
            .start(newest(), &self.spec(&id, &["serve"]))
            .await
            .expect("it starts");
        target
            .forget(&id)
            .await
            .expect("a running one is left alone");
        let running = self.find(&*target, &id).await.expect("it runs");
        assert_eq!(running.state, ObservedState::Running);
        target
            .stop(newest(), &id, Duration::ZERO)
            .await
            .expect("it stops");
        target.forget(&id).await.expect("it is forgotten");
        assert_eq!(self.find(&*target, &id).await, None);
        target.forget(&id).await.expect("a second time is no error");
    }

    async fn knows_nothing_of_strangers(&self) {
        let target = self.subject.open();
        let id = self.id("strangers", 1);
        assert_eq!(target.wait(&id).await.expect("no error"), Exit::Unknown);
        assert_eq!(
            target
                .stop(newest(), &id, GENEROUS)
                .await
                .expect("no error"),
            Exit::Unknown
        );
        target.forget(&id).await.expect("no error");
        let exec = target
            .exec(&id, vec![self.subject.program()], Vec::new())
            .await;
        assert!(matches!(exec, Err(TargetError::NoSuchInstance(_))));
    }

    async fn gives_ports_of_their_own(&self) {
        let target = self.subject.open();
        let mut addresses = std::collections::BTreeSet::new();
        for number in 1..=3 {
            let id = self.id("ports", number);
            let spec = InstanceSpec {
                listens: true,
                ..self.spec(&id, &["serve"])
            };
            let observed = target.start(newest(), &spec).await.expect("it starts");
            let address = observed.address.expect("it listens");
            assert!(self.subject.may_be_given(address), "{address}");
            assert!(addresses.insert(address), "{address} was given twice");
            let listed = self.find(&*target, &id).await.expect("it runs");
            assert_eq!(listed.address, Some(address));
        }
        for number in 1..=3 {
            let id = self.id("ports", number);
            target
                .stop(newest(), &id, Duration::ZERO)
                .await
                .expect("it stops");
        }
    }

    async fn refuses_what_is_missing(&self) {
        let target = self.subject.open();
        let id = self.id("missing", 1);
        let no_command = InstanceSpec {
            command: vec!["./is-not-there".to_owned()],
            ..self.spec(&id, &[])
        };
        let started = target.start(newest(), &no_command).await;
        assert!(
            matches!(started, Err(StartError::CommandMissing { .. })),
            "{started:?}"
        );
        let unknown = Digest::of(b"never stored");
        let content = match self.subject.content() {
            Content::Artifact(_) => Content::Artifact(unknown),
            Content::Image(_) => Content::Image(ImageId(unknown)),
        };
        let no_content = InstanceSpec {
            content,
            ..self.spec(&id, &["serve"])
        };
        let started = target.start(newest(), &no_content).await;
        let missing = match content {
            Content::Artifact(_) => matches!(started, Err(StartError::ArtifactMissing(_))),
            Content::Image(_) => matches!(started, Err(StartError::ImageMissing(_))),
        };
        assert!(missing, "{started:?}");
        assert_eq!(
            self.find(&*target, &id).await,
            None,
            "what was refused is not remembered"
        );
        let spec = self.spec(&id, &["exit=0"]);
        target
            .start(newest(), &spec)
            .await
            .expect("a refused start does not use up the id");
    }

    async fn runs_commands_beside(&self) {
        let target = self.subject.open();
        let id = self.id("beside", 1);
        target
            .start(newest(), &self.spec(&id, &["serve"]))
            .await
            .expect("it starts");
        let run = |words: &[&str], stdin: &[u8]| {
            let mut command = vec![self.subject.program()];
            command.extend(words.iter().map(|word| (*word).to_owned()));
            let (target, id, stdin) = (target.clone(), id.clone(), stdin.to_vec());
            async move { gather(target.exec(&id, command, stdin).await.expect("it runs")).await }
        };
        let ran = run(&["env=GREETING", "err=oh", "exit=9"], b"").await;
        assert_eq!(
            ran,
            (
                b"hello\n".to_vec(),
                b"oh\n".to_vec(),
                Some(Exit::Code { code: 9 })
            )
        );
        // More than any pipe holds, in both directions at once.
        let input: Vec<u8> = (0..1_000_000_u32)
            .map(|number| (number % 251) as u8)
            .collect();
        let (output, _, exit) = run(&["cat"], &input).await;
        assert_eq!(
            (output.len(), exit),
            (input.len(), Some(Exit::Code { code: 0 }))
        );
        assert!(output == input, "what is copied arrives as it was sent");
        let missing = target
            .exec(&id, vec!["./is-not-there".to_owned()], Vec::new())
            .await;
        assert!(matches!(missing, Err(TargetError::CommandMissing { .. })));
        let running = self.find(&*target, &id).await.expect("it runs");
        assert_eq!(
            running.state,
            ObservedState::Running,
            "the instance is not touched"
        );
        target
            .stop(newest(), &id, Duration::ZERO)
            .await
            .expect("it stops");
        let late = target
            .exec(&id, vec![self.subject.program()], Vec::new())
            .await;
        assert!(matches!(late, Err(TargetError::NoSuchInstance(_))));
    }

    async fn keeps_the_answer_of_a_job(&self) {
        let target = self.subject.open();
        let id = self.id("job", 1);
        let spec = InstanceSpec {
            is_job: true,
            ..self.spec(&id, &["out=done", "exit=2"])
        };
        let started = target.start(newest(), &spec).await.expect("it starts");
        assert!(started.is_job);
        assert_eq!(
            target.wait(&id).await.expect("it is here"),
            Exit::Code { code: 2 }
        );
        let later = self
            .find(&*self.subject.open(), &id)
            .await
            .expect("it is remembered");
        assert!(later.is_job);
        let ObservedState::Exited { exit, at } = later.state else {
            panic!("a job that ended is listed as ended");
        };
        assert_eq!(exit, Exit::Code { code: 2 });
        assert!(at >= later.started_at);
    }

    async fn find(&self, target: &dyn Target, id: &InstanceRef) -> Option<Observed> {
        let all = target.list().await.expect("it lists");
        let listed = all.into_iter().find(|observed| observed.id == *id);
        let observed = target.observe(id).await.expect("it is observed");
        assert_eq!(observed, listed, "one view of one instance");
        listed
    }

    /// Lets an app set up its signal handlers, which no target can see.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// After `refuses_stale_orders`, older generations are refused.
fn newest() -> Fence {
    fence(6, 2_000)
}

async fn gather(
    mut receiver: tokio::sync::mpsc::Receiver<ExecOutput>,
) -> (Vec<u8>, Vec<u8>, Option<Exit>) {
    let (mut stdout, mut stderr, mut ended) = (Vec::new(), Vec::new(), None);
    while let Some(piece) = receiver.recv().await {
        assert_eq!(ended, None, "nothing comes after the exit");
        match piece {
            ExecOutput::Stdout(bytes) => stdout.extend(bytes),
            ExecOutput::Stderr(bytes) => stderr.extend(bytes),
            ExecOutput::Exited(exit) => ended = Some(exit),
        }
    }
    (stdout, stderr, ended)
}
