//! A target whose processes are simulated tasks, for tests of whatever drives a target.
//!
//! What an instance does is written in its command, in the words of [`crate::conformance`] (`serve`, `sleep=MS`,
//! `exit=CODE`, `abort`, `ignore-term`, `on-term=CODE,MS`, `child`, `out=TEXT`, `err=TEXT`, `env=NAME`, `cat`), or in a
//! script that [`FakeTarget::script`] keeps for a word of the command. Unknown words do nothing. When the words run out, a job
//! ends with 0 and a service goes on. Time is tokio's, so a paused clock works.
//!
//! It passes the conformance suite that real targets pass; it starts no process and opens no socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use landfast_types::{Digest, Fence, FenceGuard, StaleFence, Timestamp};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

pub use crate::fake_images::FakeImages;
use crate::{
    Content, ExecOutput, Exit, HealthSource, ImageHealth, Images, InstanceRef, InstanceSpec,
    Observed, ObservedState, Outage, StartError, Target, TargetError,
};

const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// The fake's world began in the middle of 2026.
const EPOCH: Timestamp = Timestamp::from_millis(1_782_000_000_000);
const FIRST_PORT: u16 = 20_000;
/// What a process that ended by itself left behind is killed after this.
const LEFTOVER_GRACE: Duration = Duration::from_millis(250);
const PIECE_BYTES_MAX: usize = 64 << 10;

/// An order that was given and taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Start(InstanceRef),
    Stop(InstanceRef, Duration),
    Forget(InstanceRef),
}

/// A simulated host. Clones share it, as servers that follow each other share a host.
#[derive(Clone)]
pub struct FakeTarget {
    world: Arc<Mutex<World>>,
}

type AddressOf = Box<dyn Fn(&InstanceSpec) -> SocketAddr + Send>;

struct World {
    began: Instant,
    instances: BTreeMap<InstanceRef, Simulated>,
    newest: FenceGuard,
    artifacts: Option<BTreeSet<Digest>>,
    images: FakeImages,
    programs: Option<BTreeSet<String>>,
    scripts: BTreeMap<String, Vec<String>>,
    address_of: Option<AddressOf>,
    calls: Vec<Call>,
    failing_starts: u32,
    late_starts: Option<Duration>,
    buried: BTreeSet<InstanceRef>,
    unreadable: BTreeSet<InstanceRef>,
    outage: Option<Outage>,
    health: BTreeMap<InstanceRef, ImageHealth>,
    started: u16,
    tasks: JoinSet<()>,
}

struct Simulated {
    spec: InstanceSpec,
    address: Option<SocketAddr>,
    pid: u32,
    started_at: Timestamp,
    guard: FenceGuard,
    orders: watch::Sender<Orders>,
    ended: watch::Receiver<Option<(Exit, Timestamp)>>,
}

/// What was asked of a simulated process.
#[derive(Debug, Clone, Default)]
struct Orders {
    terminate: bool,
    kill_at: Option<Instant>,
    /// Ends it like this, now.
    crash: Option<Exit>,
}

/// What SIGTERM does.
#[derive(Debug, Clone, Copy)]
enum OnTerm {
    Dies,
    Ignores,
    Exits { code: i32, after: Duration },
}

impl FakeTarget {
    /// A host on which nothing runs, every artifact is stored and every program is there.
    pub fn new() -> Self {
        let world = World {
            began: Instant::now(),
            instances: BTreeMap::new(),
            newest: FenceGuard::default(),
            artifacts: None,
            images: FakeImages::default(),
            programs: None,
            scripts: BTreeMap::new(),
            address_of: None,
            calls: Vec::new(),
            failing_starts: 0,
            late_starts: None,
            buried: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            outage: None,
            health: BTreeMap::new(),
            started: 0,
            tasks: JoinSet::new(),
        };
        Self {
            world: Arc::new(Mutex::new(world)),
        }
    }

    /// From here on only these artifacts are stored.
    pub fn store_only(&self, artifacts: impl IntoIterator<Item = Digest>) {
        self.world().artifacts = Some(artifacts.into_iter().collect());
    }

    /// The images this host's daemon has: none, until a test brings some.
    pub fn shelf(&self) -> FakeImages {
        self.world().images.clone()
    }

    /// From here on only these first words of commands name programs.
    pub fn install_only(&self, programs: impl IntoIterator<Item = String>) {
        self.world().programs = Some(programs.into_iter().collect());
    }

    /// From here on, a command that holds `word` does `steps` instead of what it says.
    pub fn script(&self, word: &str, steps: &[&str]) {
        let steps = steps.iter().map(|step| (*step).to_owned()).collect();
        self.world().scripts.insert(word.to_owned(), steps);
    }

    /// From here on, instances that listen get their addresses from this: those of real test servers, say.
    pub fn addresses(&self, address_of: impl Fn(&InstanceSpec) -> SocketAddr + Send + 'static) {
        self.world().address_of = Some(Box::new(address_of));
    }

    /// Makes the next starts fail in a way that may pass.
    pub fn fail_starts(&self, count: u32) {
        self.world().failing_starts = count;
    }

    /// Makes the next start fail although its order arrived: unless it is buried, the process begins this much later.
    pub fn start_late(&self, after: Duration) {
        self.world().late_starts = Some(after);
    }

    /// From here on nothing can be said of this instance, or again.
    pub fn make_unreadable(&self, id: &InstanceRef, unreadable: bool) {
        let mut world = self.world();
        if unreadable {
            world.unreadable.insert(id.clone());
        } else {
            world.unreadable.remove(id);
        }
    }

    /// From here on the daemon behind this host does not answer, for this reason, or does again. What it runs goes on.
    pub fn lose_daemon(&self, reason: Option<&str>) {
        let mut world = self.world();
        let since = EPOCH + world.began.elapsed();
        world.outage = reason.map(|reason| Outage {
            what: "the daemon of the fake".to_owned(),
            since,
            reason: reason.to_owned(),
        });
    }

    /// What the image's check says of an instance that asks it, from here on. Until then it passes.
    pub fn set_health(&self, id: &InstanceRef, health: ImageHealth) {
        self.world().health.insert(id.clone(), health);
    }

    /// Ends a running instance as if by itself.
    pub fn crash(&self, id: &InstanceRef, exit: Exit) {
        if let Some(instance) = self.world().instances.get(id) {
            instance
                .orders
                .send_modify(|orders| orders.crash = Some(exit));
        }
    }

    /// Loses the host: every process is gone, and all that was known of them.
    pub fn lose_host(&self) {
        let mut world = self.world();
        world.tasks.abort_all();
        world.instances.clear();
        world.buried.clear();
    }

    /// The orders taken so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.world().calls.clone()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("nobody panics while holding it")
    }

    /// Waits for the end of an instance; `None` when it is not known.
    async fn end_of(&self, id: &InstanceRef) -> Option<Exit> {
        let mut ended = self.world().instances.get(id)?.ended.clone();
        // The sender is dropped without an end only when the host is lost.
        let end = ended.wait_for(Option::is_some).await.ok()?.clone();
        end.map(|(exit, _)| exit)
    }
}

impl Default for FakeTarget {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FakeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeTarget").finish_non_exhaustive()
    }
}

impl World {
    fn take_generation(&mut self, order: Fence) -> Result<(), StaleFence> {
        // Orders of one server may overtake each other; each instance orders those that concern it.
        self.newest.take(Fence {
            revision: 0,
            ..order
        })
    }

    fn check_readable(&self, id: &InstanceRef) -> Result<(), TargetError> {
        let is_lost = self.outage.is_some() && self.instances.contains_key(id);
        if !is_lost && !self.unreadable.contains(id) {
            return Ok(());
        }
        Err(TargetError::Io {
            doing: format!("observe instance `{}`", id.instance),
            source: io::Error::other("the test wants it to fail"),
        })
    }

    fn check_content(&self, content: &Content) -> Result<(), StartError> {
        match content {
            Content::Artifact(digest) => match &self.artifacts {
                Some(stored) if !stored.contains(digest) => {
                    Err(StartError::ArtifactMissing(*digest))
                }
                Some(_) | None => Ok(()),
            },
            Content::Image(id) if !self.images.has(id) => Err(StartError::ImageMissing(*id)),
            Content::Image(_) => Ok(()),
        }
    }

    fn has_program(&self, command: &[String]) -> bool {
        let Some(first) = command.first() else {
            return false;
        };
        self.programs
            .as_ref()
            .is_none_or(|programs| programs.contains(first))
    }

    /// The words that a command acts out.
    fn steps(&self, command: &[String]) -> Vec<String> {
        let scripted = command.iter().find_map(|word| self.scripts.get(word));
        scripted
            .cloned()
            .unwrap_or_else(|| command.iter().skip(1).cloned().collect())
    }

    fn observe(&self, instance: &Simulated) -> Observed {
        let asks = instance.spec.container.health == HealthSource::Image;
        let passing = || Some(ImageHealth::Passing);
        let health = self.health.get(&instance.spec.id).cloned();
        let ended = instance.ended.borrow().clone();
        let is_checked = asks && ended.is_none();
        let (state, pid) = match ended {
            None => (ObservedState::Running, Some(instance.pid)),
            Some((exit, at)) => (ObservedState::Exited { exit, at }, None),
        };
        Observed {
            id: instance.spec.id.clone(),
            state,
            address: instance.address,
            pid,
            started_at: instance.started_at,
            is_job: instance.spec.is_job,
            protections: Vec::new(),
            health: health.or_else(passing).filter(|_| is_checked),
        }
    }

    fn spawn(&mut self, order: Fence, spec: &InstanceSpec) -> Observed {
        self.started += 1;
        let address = spec.listens.then(|| match &self.address_of {
            Some(address_of) => address_of(spec),
            None => SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_PORT + self.started)),
        });
        let (orders, ordered) = watch::channel(Orders::default());
        let (end, ended) = watch::channel(None);
        let (began, started_at) = (self.began, EPOCH + self.began.elapsed());
        let mut process = Process {
            steps: self.steps(&spec.command),
            goes_on: !spec.is_job,
            on_term: OnTerm::Dies,
            has_child: false,
            ordered,
        };
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(async move {
            let exit = process.run().await;
            process.sweep().await;
            end.send_replace(Some((exit, EPOCH + began.elapsed())));
        });
        let guard = FenceGuard::new(order);
        let pid = 1_000 + u32::from(self.started);
        let instance = Simulated {
            spec: spec.clone(),
            address,
            pid,
            started_at,
            guard,
            orders,
            ended,
        };
        let observed = self.observe(&instance);
        self.instances.insert(spec.id.clone(), instance);
        observed
    }
}

/// A simulated process.
struct Process {
    steps: Vec<String>,
    /// What follows the last step: it serves, or it ends.
    goes_on: bool,
    on_term: OnTerm,
    /// It started something that ignores SIGTERM.
    has_child: bool,
    ordered: watch::Receiver<Orders>,
}

impl Process {
    async fn run(&mut self) -> Exit {
        for step in std::mem::take(&mut self.steps) {
            let (name, value) = step.split_once('=').unwrap_or((&step, ""));
            match name {
                "serve" => return self.until_ordered().await,
                "exit" => {
                    return Exit::Code {
                        code: number(value),
                    };
                }
                "abort" => {
                    return Exit::Signal {
                        signal: SIGABRT,
                        core_dumped: false,
                    };
                }
                "child" => self.has_child = true,
                "ignore-term" => self.on_term = OnTerm::Ignores,
                "on-term" => {
                    let (code, millis) = value.split_once(',').unwrap_or((value, "0"));
                    self.on_term = OnTerm::Exits {
                        code: number(code),
                        after: millis_of(millis),
                    };
                }
                "sleep" => {
                    let slept = tokio::time::sleep(millis_of(value));
                    tokio::select! {
                        biased;
                        exit = self.until_ordered() => return exit,
                        () = slept => {}
                    }
                }
                _ => {}
            }
        }
        if self.goes_on {
            return self.until_ordered().await;
        }
        Exit::Code { code: 0 }
    }

    /// Ends what it left behind: at the end of the grace it was given, or soon after it ended by itself.
    async fn sweep(&mut self) {
        let given = self.ordered.borrow_and_update().kill_at;
        let mut kill_at = given.unwrap_or_else(|| Instant::now() + LEFTOVER_GRACE);
        while self.has_child {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(kill_at) => return,
                changed = self.ordered.changed() => if changed.is_err() { return },
            }
            let given = self.ordered.borrow_and_update().kill_at;
            kill_at = given.map_or(kill_at, |given| given.min(kill_at));
        }
    }

    /// Runs until it is ordered to end, in the way it is ordered.
    async fn until_ordered(&mut self) -> Exit {
        let mut leaves_at = None;
        loop {
            let orders = self.ordered.borrow_and_update().clone();
            if let Some(exit) = orders.crash {
                return exit;
            }
            if orders.terminate && leaves_at.is_none() {
                match self.on_term {
                    OnTerm::Dies => {
                        return Exit::Signal {
                            signal: SIGTERM,
                            core_dumped: false,
                        };
                    }
                    OnTerm::Ignores => {}
                    OnTerm::Exits { code, after } => {
                        leaves_at = Some((code, Instant::now() + after))
                    }
                }
            }
            tokio::select! {
                biased;
                () = at(leaves_at.map(|(_, instant)| instant)) => {
                    return Exit::Code { code: leaves_at.map_or(0, |(code, _)| code) };
                }
                () = at(orders.kill_at) => {
                    return Exit::Signal { signal: SIGKILL, core_dumped: false };
                }
                changed = self.ordered.changed() => {
                    if changed.is_err() {
                        // The host was lost; nobody will know.
                        return Exit::Unknown;
                    }
                }
            }
        }
    }
}

/// Waits for an instant, or for ever.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn failed(doing: &str) -> StartError {
    StartError::Io {
        doing: doing.to_owned(),
        source: io::Error::other("the test wants it to fail"),
    }
}

fn number(text: &str) -> i32 {
    text.parse().expect("a step of a test names a number")
}

fn millis_of(text: &str) -> Duration {
    Duration::from_millis(text.parse().expect("a step of a test names milliseconds"))
}

#[async_trait]
impl Target for FakeTarget {
    async fn start(&self, order: Fence, spec: &InstanceSpec) -> Result<Observed, StartError> {
        let mut world = self.world();
        world.take_generation(order)?;
        if world.outage.is_some() {
            return Err(failed("ask the daemon"));
        }
        if let Some(instance) = world.instances.get(&spec.id) {
            return Ok(world.observe(instance));
        }
        if let Some(after) = world.late_starts.take() {
            let (fake, spec) = (self.clone(), spec.clone());
            world.tasks.spawn(async move {
                tokio::time::sleep(after).await;
                let mut world = fake.world();
                if !world.buried.contains(&spec.id) && !world.instances.contains_key(&spec.id) {
                    world.spawn(order, &spec);
                }
            });
            return Err(failed("start a simulated process"));
        }
        if world.failing_starts > 0 {
            world.failing_starts -= 1;
            return Err(failed("start a simulated process"));
        }
        world.check_content(&spec.content)?;
        let is_images_own = spec.content.is_image() && spec.command.is_empty();
        if !is_images_own && !world.has_program(&spec.command) {
            let command = spec.command.first().cloned().unwrap_or_default();
            return Err(StartError::CommandMissing { command });
        }
        world.calls.push(Call::Start(spec.id.clone()));
        Ok(world.spawn(order, spec))
    }

    async fn stop(
        &self,
        order: Fence,
        id: &InstanceRef,
        grace: Duration,
    ) -> Result<Exit, TargetError> {
        {
            let mut world = self.world();
            world.take_generation(order)?;
            if world.outage.is_some() {
                world.check_readable(id)?;
            }
            if let Some(instance) = world.instances.get_mut(id)
                && instance.ended.borrow().is_none()
            {
                instance.guard.take(order)?;
                let kill_at = Instant::now() + grace;
                instance.orders.send_modify(|orders| {
                    orders.terminate |= !grace.is_zero();
                    orders.kill_at = Some(orders.kill_at.map_or(kill_at, |at| at.min(kill_at)));
                });
            }
            if !world.instances.contains_key(id) {
                world.buried.insert(id.clone());
            }
            world.calls.push(Call::Stop(id.clone(), grace));
        }
        Ok(self.end_of(id).await.unwrap_or(Exit::Unknown))
    }

    async fn forget(&self, id: &InstanceRef) -> Result<(), TargetError> {
        let mut world = self.world();
        let has_ended = |instance: &Simulated| instance.ended.borrow().is_some();
        if world.instances.get(id).is_some_and(has_ended) {
            world.instances.remove(id);
            world.calls.push(Call::Forget(id.clone()));
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Observed>, TargetError> {
        let world = self.world();
        let readable = world
            .instances
            .iter()
            .filter(|(id, _)| world.check_readable(id).is_ok());
        Ok(readable
            .map(|(_, instance)| world.observe(instance))
            .collect())
    }

    async fn observe(&self, id: &InstanceRef) -> Result<Option<Observed>, TargetError> {
        let world = self.world();
        world.check_readable(id)?;
        Ok(world
            .instances
            .get(id)
            .map(|instance| world.observe(instance)))
    }

    fn images(&self) -> Option<Arc<dyn Images>> {
        Some(Arc::new(self.shelf()))
    }

    fn outages(&self) -> Vec<Outage> {
        self.world().outage.iter().cloned().collect()
    }

    async fn wait(&self, id: &InstanceRef) -> Result<Exit, TargetError> {
        {
            // An end that cannot be told while a daemon is away is told when it is back.
            let world = self.world();
            if world.outage.is_none() {
                world.check_readable(id)?;
            }
        }
        Ok(self.end_of(id).await.unwrap_or(Exit::Unknown))
    }

    async fn exec(
        &self,
        id: &InstanceRef,
        command: Vec<String>,
        stdin: Vec<u8>,
    ) -> Result<mpsc::Receiver<ExecOutput>, TargetError> {
        let mut world = self.world();
        let instance = world
            .instances
            .get(id)
            .filter(|all| all.ended.borrow().is_none());
        let instance = instance.ok_or_else(|| TargetError::NoSuchInstance(id.instance.clone()))?;
        if !world.has_program(&command) {
            let command = command.first().cloned().unwrap_or_default();
            return Err(TargetError::CommandMissing { command });
        }
        let env = instance.spec.env.clone();
        let mut output = Vec::new();
        let mut rest = Vec::new();
        for step in world.steps(&command) {
            match step.split_once('=').unwrap_or((&step, "")) {
                ("out", text) => output.push(ExecOutput::Stdout(line(text))),
                ("err", text) => output.push(ExecOutput::Stderr(line(text))),
                ("env", name) => {
                    let value = env.get(name).map_or("(unset)", |value| value.reveal());
                    output.push(ExecOutput::Stdout(line(value)));
                }
                ("cat", _) => {
                    let pieces = stdin.chunks(PIECE_BYTES_MAX).map(<[u8]>::to_vec);
                    output.extend(pieces.map(ExecOutput::Stdout));
                }
                _ => rest.push(step),
            }
        }
        let ordered = instance.orders.subscribe();
        let mut process = Process {
            steps: rest,
            goes_on: false,
            on_term: OnTerm::Dies,
            has_child: false,
            ordered,
        };
        let (sender, receiver) = mpsc::channel(16);
        world.tasks.spawn(async move {
            for piece in output {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
            let exit = tokio::select! {
                exit = process.run() => exit,
                () = sender.closed() => return,
            };
            // A reader that left wants no exit either.
            sender
                .send(ExecOutput::Exited(exit))
                .await
                .unwrap_or_default();
        });
        Ok(receiver)
    }
}

fn line(text: &str) -> Vec<u8> {
    format!("{text}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::conformance::{self, Subject};

    struct Conforming(FakeTarget);

    impl Subject for Conforming {
        fn open(&self) -> Arc<dyn Target> {
            Arc::new(self.0.clone())
        }

        fn content(&self) -> Content {
            Content::Artifact(Digest::of(b"app"))
        }

        fn program(&self) -> String {
            "./app".to_owned()
        }

        fn log_folder(&self) -> PathBuf {
            PathBuf::from("/nowhere")
        }
    }

    #[tokio::test]
    async fn loses_its_daemon_and_says_nothing_that_is_not_so() {
        let (fake, id) = (FakeTarget::new(), reference(1));
        let image = landfast_types::ImageId(Digest::of(b"image"));
        let spec = InstanceSpec {
            content: Content::Image(image),
            command: Vec::new(),
            container: crate::ContainerOptions {
                health: HealthSource::Image,
                ..Default::default()
            },
            ..spec(&id)
        };
        let order = Fence::default();
        let refused = fake.start(order, &spec).await;
        assert!(matches!(refused, Err(StartError::ImageMissing(_))));
        let name = "shop:1".parse().unwrap();
        fake.shelf().build(&name, image, Default::default());
        let started = fake.start(order, &spec).await.unwrap();
        assert_eq!(started.health, Some(ImageHealth::Passing));
        fake.lose_daemon(Some("it hangs"));
        assert!(fake.observe(&id).await.is_err());
        assert!(fake.stop(order, &id, Duration::ZERO).await.is_err());
        assert_eq!(fake.observe(&reference(2)).await.unwrap(), None);
        assert_eq!(fake.outages()[0].reason, "it hangs");
        fake.lose_daemon(None);
        assert_eq!(fake.observe(&id).await.unwrap(), Some(started));
    }

    #[tokio::test]
    async fn conforms() {
        let fake = FakeTarget::new();
        fake.store_only([Digest::of(b"app")]);
        fake.install_only(["./app".to_owned()]);
        conformance::suite(&Conforming(fake)).await;
    }

    fn reference(number: u64) -> InstanceRef {
        InstanceRef {
            scope: landfast_types::Scope {
                app: landfast_types::AppName::new("shop").unwrap(),
                environment: landfast_types::EnvironmentName::new("production").unwrap(),
            },
            instance: landfast_types::InstanceId::new("api", landfast_types::ReleaseId(1), number),
        }
    }

    fn spec(id: &InstanceRef) -> InstanceSpec {
        InstanceSpec {
            id: id.clone(),
            content: Content::Artifact(Digest::of(b"any")),
            command: vec!["./shop".to_owned(), "web".to_owned()],
            env: BTreeMap::new(),
            listens: true,
            resources: crate::Resources::default(),
            volumes: BTreeMap::new(),
            log_folder: PathBuf::new(),
            is_job: false,
            secret_files: Default::default(),
            sandbox: crate::Sandbox::default(),
            container: crate::ContainerOptions::default(),
        }
    }

    #[tokio::test]
    async fn does_what_the_test_wants() {
        let fake = FakeTarget::new();
        let id = reference(1);
        let spec = spec(&id);
        let order = Fence::default();
        fake.fail_starts(1);
        assert!(fake.start(order, &spec).await.unwrap_err().is_retryable());
        fake.start(order, &spec).await.unwrap();
        fake.crash(&id, Exit::Code { code: 101 });
        assert_eq!(fake.wait(&id).await.unwrap(), Exit::Code { code: 101 });
        fake.forget(&id).await.unwrap();
        fake.script("web", &["sleep=10", "exit=7"]);
        fake.start(order, &spec).await.unwrap();
        assert_eq!(fake.wait(&id).await.unwrap(), Exit::Code { code: 7 });
        let calls = fake.calls();
        assert_eq!(
            calls,
            [
                Call::Start(id.clone()),
                Call::Forget(id.clone()),
                Call::Start(id.clone())
            ]
        );
        fake.lose_host();
        assert_eq!(fake.list().await.unwrap(), []);
        assert_eq!(fake.wait(&id).await.unwrap(), Exit::Unknown);
    }
}
