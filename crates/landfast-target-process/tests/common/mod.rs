//! A world of its own for each test: a store with the test app, a run folder, and a broom.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use landfast_shim::{ShimState, folder_key};
use landfast_store::Store;
use landfast_target::{
    Content, InstanceRef, InstanceSpec, Observed, Resources, Target, conformance::Subject,
};
use landfast_target_process::{ProcessSettings, ProcessTarget};
use landfast_types::{
    AppName, Digest, EnvironmentName, Fence, Generation, InstanceId, ReleaseId, Scope, Secret,
};
use rustix::process::{Pid, Signal};

pub(crate) const APP: &str = env!("CARGO_BIN_EXE_landfast-target-process-app");
pub(crate) const SHIM: &str = env!("CARGO_BIN_EXE_landfast-target-process-shim");

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    store: Arc<Store>,
    artifact: Digest,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::inside(tempfile::tempdir().unwrap())
    }

    /// A world that other users may enter, and that does not lie in `/tmp`.
    pub(crate) fn open_to_others() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        Self::inside(folder)
    }

    fn inside(folder: tempfile::TempDir) -> Self {
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::copy(APP, source.join("app")).unwrap();
        let store = Arc::new(Store::open(folder.path().join("store")).unwrap());
        let artifact = store.add_local(&source).unwrap();
        Self {
            folder,
            store,
            artifact,
        }
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub(crate) fn settings(&self) -> ProcessSettings {
        ProcessSettings::new(PathBuf::from(SHIM), self.run(), self.store.clone())
    }

    pub(crate) fn target(&self) -> Arc<ProcessTarget> {
        Arc::new(ProcessTarget::new(self.settings()))
    }

    pub(crate) fn id(&self, number: u64) -> InstanceRef {
        let app = AppName::new("shop").unwrap();
        let environment = EnvironmentName::new("production").unwrap();
        let scope = Scope { app, environment };
        InstanceRef {
            scope,
            instance: InstanceId::new("api", ReleaseId(1), number),
        }
    }

    pub(crate) fn spec(&self, number: u64, words: &[&str]) -> InstanceSpec {
        let mut command = vec!["./app".to_owned()];
        command.extend(words.iter().map(|word| (*word).to_owned()));
        InstanceSpec {
            id: self.id(number),
            content: Content::Artifact(self.artifact),
            command,
            env: BTreeMap::from([("TOKEN".to_owned(), Secret::new("s3cr3t-t0ken".to_owned()))]),
            listens: false,
            resources: Resources::default(),
            volumes: BTreeMap::new(),
            log_folder: self.logs(number),
            is_job: false,
            secret_files: Default::default(),
            sandbox: landfast_target::Sandbox::default(),
            container: landfast_target::ContainerOptions::default(),
        }
    }

    pub(crate) fn logs(&self, number: u64) -> PathBuf {
        self.folder.path().join("logs").join(number.to_string())
    }

    pub(crate) fn artifact_path(&self) -> PathBuf {
        self.store.path(&self.artifact).unwrap()
    }

    pub(crate) fn folder_of(&self, number: u64) -> PathBuf {
        let id = self.id(number);
        self.run()
            .join("i")
            .join(folder_key(&id.scope, &id.instance))
    }

    pub(crate) fn state(&self, number: u64) -> ShimState {
        ShimState::read(&self.folder_of(number))
            .unwrap()
            .expect("it was started")
    }

    pub(crate) async fn start(
        &self,
        target: &ProcessTarget,
        number: u64,
        words: &[&str],
    ) -> Observed {
        target
            .start(fence(1), &self.spec(number, words))
            .await
            .unwrap()
    }

    /// All lines of an instance's log, without instants: `o text`.
    pub(crate) fn log(&self, number: u64) -> Vec<String> {
        let segments = landfast_shim::logs::segments(&self.logs(number)).unwrap();
        let text: Vec<_> = segments
            .iter()
            .map(|(_, path)| fs::read_to_string(path).unwrap())
            .collect();
        text.concat()
            .lines()
            .filter_map(|line| Some(line.split_once(' ')?.1.to_owned()))
            .collect()
    }

    /// The processes that carry this world's instances in their environment.
    pub(crate) fn survivors(&self, number: u64) -> Vec<u32> {
        let mark = folder_key(&self.id(number).scope, &self.id(number).instance);
        let run = self.run();
        let mine = |pid: &u32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let holds = |wanted: &[u8]| environ.windows(wanted.len()).any(|part| part == wanted);
            // Keys repeat between tests that run at once; their artifacts do not.
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            holds(mark.as_bytes()) && exe.starts_with(run.parent().unwrap())
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(mine)
            .collect()
    }
}

impl Drop for World {
    /// Whatever a failed test left running is ended through its shim.
    fn drop(&mut self) {
        for entry in fs::read_dir(self.run().join("i"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if landfast_shim::shim_is_alive(&entry.path()).unwrap_or(false)
                && let Ok(Some(state)) = ShimState::read(&entry.path())
                && let Some(shim) = state.shim
            {
                // It may be leaving by itself.
                let pid = Pid::from_raw(i32::try_from(shim.pid).unwrap()).unwrap();
                let _gone = rustix::process::kill_process(pid, Signal::KILL);
                for _ in 0..100 {
                    state.leftovers.remove();
                    if state
                        .leftovers
                        .cgroups
                        .iter()
                        .all(|folder| !folder.exists())
                    {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        // Read-only folders stop the temporary folder from removing itself unless we are root.
        drop(Store::open(self.folder.path().join("store")));
    }
}

impl Subject for World {
    fn open(&self) -> Arc<dyn Target> {
        self.target()
    }

    fn content(&self) -> Content {
        Content::Artifact(self.artifact)
    }

    fn program(&self) -> String {
        "./app".to_owned()
    }

    fn log_folder(&self) -> PathBuf {
        self.folder.path().join("logs")
    }
}

pub(crate) fn fence(revision: u64) -> Fence {
    Fence {
        generation: Generation(1),
        revision,
    }
}

pub(crate) fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
}

pub(crate) fn exists(pid: u32) -> bool {
    landfast_shim::process::Stat::read(pid).is_some_and(|stat| !stat.is_zombie)
}

/// Waits until something holds, for so long that only what is broken never does.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} never came true");
}

pub(crate) fn read(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(path).unwrap()
}
