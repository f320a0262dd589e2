//! Processes and containers behind one face: an order goes where what it speaks of runs.
//!
//! What is started goes by its content. Everything later goes by who knows the id: processes are asked first, for they
//! are known by folders of this host alone; containers next, which a target must be able to deny without its daemon
//! (it keeps a record of what it was ever ordered). So a daemon that is away takes nothing from processes, and a
//! container is never taken for one that is not here.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use landfast_types::{Fence, Protection};
use tokio::sync::mpsc;

use crate::{
    Confinement, Content, DaemonFacts, ExecOutput, Exit, Images, InstanceRef, InstanceSpec,
    Observed, Outage, ProgramEnd, ProgramRun, ProgramSpec, StartError, Target, TargetError,
};

/// Where the instances of one host run: as processes, and as containers where it has a daemon.
#[derive(Clone)]
pub struct Targets {
    processes: Arc<dyn Target>,
    containers: Option<Arc<dyn Target>>,
    /// Why no process is started, where none is.
    no_processes: Option<&'static str>,
}

impl std::fmt::Debug for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let has_containers = self.containers.is_some();
        f.debug_struct("Targets")
            .field("has_containers", &has_containers)
            .finish_non_exhaustive()
    }
}

/// Who knows an instance.
enum Home<'a> {
    Of(&'a Arc<dyn Target>),
    /// It is certain that nobody does.
    Nobody,
}

impl Targets {
    /// Processes run by the first, containers by the second; without it [`StartError::NoContainers`].
    pub fn new(processes: Arc<dyn Target>, containers: Option<Arc<dyn Target>>) -> Self {
        Self {
            processes,
            containers,
            no_processes: None,
        }
    }

    /// The same, but no process is started that would have to outlive the server. Programs that run to their end while
    /// it waits for them still are.
    #[must_use]
    pub fn without_processes(self, reason: &'static str) -> Self {
        let no_processes = Some(reason);
        Self {
            no_processes,
            ..self
        }
    }

    /// # Errors
    /// With the reason, where no process is started.
    fn processes_run(&self) -> Result<(), StartError> {
        let refused = |reason: &str| Err(StartError::Impossible(reason.to_owned()));
        self.no_processes.map_or(Ok(()), refused)
    }

    fn for_content(&self, content: &Content) -> Option<&Arc<dyn Target>> {
        match content {
            Content::Artifact(_) => Some(&self.processes),
            Content::Image(_) => self.containers.as_ref(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<dyn Target>> {
        std::iter::once(&self.processes).chain(&self.containers)
    }

    async fn home(&self, id: &InstanceRef) -> Result<Home<'_>, TargetError> {
        for target in self.all() {
            if target.observe(id).await?.is_some() {
                return Ok(Home::Of(target));
            }
        }
        Ok(Home::Nobody)
    }
}

#[async_trait]
impl Target for Targets {
    async fn start(&self, order: Fence, spec: &InstanceSpec) -> Result<Observed, StartError> {
        if let Content::Artifact(_) = spec.content {
            self.processes_run()?;
        }
        let target = self.for_content(&spec.content);
        let target = target.ok_or(StartError::NoContainers)?;
        target.start(order, spec).await
    }

    async fn start_read(
        &self,
        order: Fence,
        spec: &InstanceSpec,
    ) -> Result<(Observed, mpsc::Receiver<ExecOutput>), StartError> {
        let target = self.for_content(&spec.content);
        let target = target.ok_or(StartError::NoContainers)?;
        target.start_read(order, spec).await
    }

    async fn start_program(
        &self,
        order: Fence,
        spec: &ProgramSpec,
    ) -> Result<Observed, StartError> {
        self.processes_run()?;
        self.processes.start_program(order, spec).await
    }

    async fn own_folder(&self, owner: &str, folder: &Path) -> Result<(), StartError> {
        self.processes.own_folder(owner, folder).await
    }

    async fn run_program(&self, run: &ProgramRun) -> Result<ProgramEnd, StartError> {
        self.processes.run_program(run).await
    }

    async fn stop(
        &self,
        order: Fence,
        id: &InstanceRef,
        grace: Duration,
    ) -> Result<Exit, TargetError> {
        if let Home::Of(target) = self.home(id).await? {
            return target.stop(order, id, grace).await;
        }
        // Either may have been ordered to start it by a server that died: none of them will.
        let mut exit = Exit::Unknown;
        for target in self.all() {
            let told = target.stop(order, id, grace).await?;
            if told != Exit::Unknown {
                exit = told;
            }
        }
        Ok(exit)
    }

    async fn forget(&self, id: &InstanceRef) -> Result<(), TargetError> {
        for target in self.all() {
            target.forget(id).await?;
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Observed>, TargetError> {
        let mut all = self.processes.list().await?;
        if let Some(containers) = &self.containers {
            // What cannot be read must not hide the others; `observe` says of each that it cannot.
            match containers.list().await {
                Ok(listed) => all.extend(listed),
                Err(error) => tracing::warn!(%error, "containers cannot be listed"),
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    async fn open(&self) -> Result<Vec<InstanceRef>, TargetError> {
        let mut all = Vec::new();
        for target in self.all() {
            all.extend(target.open().await?);
        }
        all.sort();
        Ok(all)
    }

    async fn observe(&self, id: &InstanceRef) -> Result<Option<Observed>, TargetError> {
        for target in self.all() {
            if let Some(observed) = target.observe(id).await? {
                return Ok(Some(observed));
            }
        }
        Ok(None)
    }

    async fn wait(&self, id: &InstanceRef) -> Result<Exit, TargetError> {
        match self.containers.as_ref() {
            None => self.processes.wait(id).await,
            Some(containers) => match self.processes.observe(id).await? {
                Some(_) => self.processes.wait(id).await,
                // It denies what it does not know, and waits for its daemon otherwise.
                None => containers.wait(id).await,
            },
        }
    }

    fn forecast(&self, wanted: &Confinement<'_>) -> Vec<Protection> {
        let target = self.for_content(wanted.content);
        target.map_or_else(Vec::new, |target| target.forecast(wanted))
    }

    fn images(&self) -> Option<Arc<dyn Images>> {
        self.containers.as_ref()?.images()
    }

    fn no_processes(&self) -> Option<&'static str> {
        self.no_processes
    }

    fn outages(&self) -> Vec<Outage> {
        self.all().flat_map(|target| target.outages()).collect()
    }

    async fn daemon(&self) -> Option<Result<DaemonFacts, Outage>> {
        self.containers.as_ref()?.daemon().await
    }

    async fn exec(
        &self,
        id: &InstanceRef,
        command: Vec<String>,
        stdin: Vec<u8>,
    ) -> Result<mpsc::Receiver<ExecOutput>, TargetError> {
        match self.home(id).await? {
            Home::Of(target) => target.exec(id, command, stdin).await,
            Home::Nobody => Err(TargetError::NoSuchInstance(id.instance.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use landfast_types::{Digest, ImageId, InstanceId, ReleaseId, Scope};

    use super::*;
    use crate::{
        ContainerOptions, ObservedState, Resources, Sandbox,
        conformance::{self, Subject},
        fake::{Call, FakeTarget},
    };

    /// A host with both, which runs the suite's app as one of them.
    struct Host {
        processes: FakeTarget,
        containers: FakeTarget,
        content: Content,
    }

    impl Host {
        fn new(content: Content) -> Self {
            let [processes, containers] = [FakeTarget::new(), FakeTarget::new()];
            processes.store_only([Digest::of(b"app")]);
            let name = "app".parse().unwrap();
            let id = ImageId(Digest::of(b"app"));
            containers.shelf().build(&name, id, Default::default());
            for fake in [&processes, &containers] {
                fake.install_only(["./app".to_owned()]);
            }
            Self {
                processes,
                containers,
                content,
            }
        }

        fn targets(&self) -> Targets {
            let containers: Arc<dyn Target> = Arc::new(self.containers.clone());
            Targets::new(Arc::new(self.processes.clone()), Some(containers))
        }
    }

    impl Subject for Host {
        fn open(&self) -> Arc<dyn Target> {
            Arc::new(self.targets())
        }

        fn content(&self) -> Content {
            self.content
        }

        fn program(&self) -> String {
            "./app".to_owned()
        }

        fn log_folder(&self) -> PathBuf {
            PathBuf::from("/nowhere")
        }
    }

    fn artifact() -> Content {
        Content::Artifact(Digest::of(b"app"))
    }

    fn image() -> Content {
        Content::Image(ImageId(Digest::of(b"app")))
    }

    fn spec(number: u64, content: Content) -> InstanceSpec {
        InstanceSpec {
            id: InstanceRef {
                scope: Scope {
                    app: "shop".parse().unwrap(),
                    environment: "production".parse().unwrap(),
                },
                instance: InstanceId::new("api", ReleaseId(1), number),
            },
            content,
            command: vec!["./app".to_owned(), "serve".to_owned()],
            env: BTreeMap::new(),
            secret_files: BTreeMap::new(),
            listens: false,
            resources: Resources::default(),
            volumes: BTreeMap::new(),
            log_folder: PathBuf::new(),
            is_job: false,
            sandbox: Sandbox::default(),
            container: ContainerOptions::default(),
        }
    }

    #[tokio::test]
    async fn conforms_whatever_the_app_is() {
        conformance::suite(&Host::new(artifact())).await;
        conformance::suite(&Host::new(image())).await;
    }

    #[tokio::test]
    async fn each_runs_what_is_its_own() {
        let host = Host::new(artifact());
        let (targets, order) = (host.targets(), Fence::default());
        let [process, container] = [spec(1, artifact()), spec(2, image())];
        for spec in [&process, &container] {
            targets.start(order, spec).await.unwrap();
        }
        assert_eq!(host.processes.calls(), [Call::Start(process.id.clone())]);
        assert_eq!(host.containers.calls(), [Call::Start(container.id.clone())]);
        let listed = targets.list().await.unwrap();
        let ids: Vec<_> = listed.iter().map(|each| &each.id).collect();
        assert_eq!(ids, [&process.id, &container.id]);
        let none = Targets::new(Arc::new(host.processes.clone()), None);
        let refused = none.start(order, &spec(3, image())).await;
        assert!(matches!(refused, Err(StartError::NoContainers)));
    }

    #[tokio::test]
    async fn where_no_process_may_outlive_its_server_none_is_started() {
        let host = Host::new(artifact());
        let (targets, order) = (host.targets(), Fence::default());
        let [process, container] = [spec(1, artifact()), spec(2, image())];
        targets.start(order, &process).await.unwrap();
        let later = host.targets().without_processes("it is a container");
        assert_eq!(later.no_processes(), Some("it is a container"));
        later.start(order, &container).await.unwrap();
        let refused = later.start(order, &spec(3, artifact())).await.unwrap_err();
        assert_eq!(refused.to_string(), "it is a container");
        assert!(!refused.is_retryable());
        // One that runs from before is still its to look after.
        assert!(later.observe(&process.id).await.unwrap().is_some());
        later
            .stop(order, &process.id, Duration::ZERO)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_daemon_that_is_away_takes_nothing_from_processes() {
        let host = Host::new(artifact());
        let (targets, order) = (host.targets(), Fence::default());
        let [process, container] = [spec(1, artifact()), spec(2, image())];
        for spec in [&process, &container] {
            targets.start(order, spec).await.unwrap();
        }
        host.containers.lose_daemon(Some("it is stopped"));
        assert_eq!(targets.outages().len(), 1);
        assert_eq!(targets.list().await.unwrap().len(), 1);
        let seen = targets.observe(&process.id).await.unwrap().unwrap();
        assert_eq!(seen.state, ObservedState::Running);
        // What may well run is not denied.
        assert!(targets.observe(&container.id).await.is_err());
        let stop = targets.stop(order, &container.id, Duration::ZERO).await;
        assert!(stop.is_err());
        // What was never ordered is, and is not started by an order that comes late.
        let never = spec(3, artifact());
        assert_eq!(targets.observe(&never.id).await.unwrap(), None);
        let exit = targets.stop(order, &never.id, Duration::ZERO).await;
        assert_eq!(exit.unwrap(), Exit::Unknown);
        targets
            .stop(order, &process.id, Duration::ZERO)
            .await
            .unwrap();
        targets.forget(&process.id).await.unwrap();
        assert_eq!(targets.observe(&process.id).await.unwrap(), None);
        host.containers.lose_daemon(None);
        assert!(targets.observe(&container.id).await.unwrap().is_some());
    }
}
