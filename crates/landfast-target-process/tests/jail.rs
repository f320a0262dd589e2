//! What an instance is kept from, tried by one that tries. Where this machine lacks a right or a controller, a test
//! says so and what it could not show.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(clippy::print_stderr, reason = "what could not be shown is said")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use landfast_target::{
    ExecOutput, Exit, InstanceSpec, Observed, ObservedState, Resources, Sandbox, Target as _,
};
use landfast_target_process::ProcessTarget;
use landfast_types::{AppName, Bytes, Cpu, Protection, ProtectionPart, ProtectionState, Secret};

use crate::common::{World, exists, fence, kill, until};

const MIB: u64 = 1 << 20;

/// A world with a record of users and volumes of its own.
struct Jailed {
    world: World,
    target: Arc<ProcessTarget>,
}

impl Jailed {
    fn new() -> Self {
        let world = World::open_to_others();
        let mut settings = world.settings();
        settings.users = Some(world.folder.path().join("users.json"));
        settings.volumes = Some(world.folder.path().join("volumes"));
        settings.temporary = world.folder.path().join("tmp");
        let target = Arc::new(ProcessTarget::new(settings));
        Self { world, target }
    }

    /// `None`, and the reason is printed, where this process may not give instances a user of their own.
    fn with_users() -> Option<Self> {
        let jailed = Self::new();
        let forecast = jailed.target.forecast(&jailed.spec(1, &[]).confinement());
        let user = part(&forecast, ProtectionPart::User).clone();
        if user.state == ProtectionState::Enforced {
            return Some(jailed);
        }
        eprintln!("skipped: {user}");
        None
    }

    /// The same for a controller of cgroups.
    fn with_cgroup(controller: &str) -> Option<Self> {
        match landfast_shim::jail::cgroup(controller) {
            Ok(version) => {
                eprintln!("{controller} by {version}");
                Some(Self::new())
            }
            Err(reason) => {
                eprintln!("skipped: {reason}");
                None
            }
        }
    }

    fn spec(&self, number: u64, words: &[&str]) -> InstanceSpec {
        self.world.spec(number, words)
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.world.folder.path().join("volumes").join(name)
    }

    async fn start(&self, spec: &InstanceSpec) -> Observed {
        self.target.start(fence(1), spec).await.unwrap()
    }

    /// Runs to its end and gives its lines of standard output.
    async fn lines(&self, spec: &InstanceSpec) -> Vec<String> {
        self.start(spec).await;
        self.target.wait(&spec.id).await.unwrap();
        let number = number_of(spec);
        let lines = self.world.log(number).into_iter();
        lines
            .filter_map(|line| Some(line.strip_prefix("o ")?.to_owned()))
            .collect()
    }

    async fn stop(&self, number: u64) {
        let id = self.world.id(number);
        let grace = Duration::from_millis(200);
        self.target.stop(fence(2), &id, grace).await.unwrap();
    }
}

fn part(all: &[Protection], part: ProtectionPart) -> &Protection {
    all.iter().find(|one| one.part == part).unwrap()
}

/// The last part of `api.r1.17`.
fn number_of(spec: &InstanceSpec) -> u64 {
    let id = spec.id.instance.as_str();
    id.rsplit('.').next().unwrap().parse().unwrap()
}

fn limited(spec: InstanceSpec, resources: Resources) -> InstanceSpec {
    InstanceSpec { resources, ..spec }
}

#[tokio::test]
async fn keeps_no_capability_and_gains_none_by_a_setuid_program() {
    let Some(jailed) = Jailed::with_users() else {
        return;
    };
    // A copy of the app that belongs to root and makes whoever runs it root, unless new privileges are renounced.
    let trap = jailed.world.folder.path().join("trap");
    fs::create_dir(&trap).unwrap();
    let program = trap.join("setuid");
    fs::copy(common::APP, &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let run = format!("run={},status=Uid", program.display());
    let keys = [
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Uid",
        "Gid",
        "Groups",
    ];
    let mut words: Vec<_> = keys.iter().map(|key| format!("status={key}")).collect();
    words.push(run);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut spec = jailed.spec(1, &words);
    spec.sandbox.read_only = vec![trap];
    let lines = jailed.lines(&spec).await;
    let none = "0000000000000000";
    for (line, key) in lines.iter().zip(&keys[..5]) {
        assert_eq!(line, &format!("{key} {none}"));
    }
    assert_eq!(lines[5], "NoNewPrivs 1");
    let user = lines[6].split(' ').nth(1).unwrap().to_owned();
    assert!(user.parse::<u32>().unwrap() >= 1_900_000_000, "{user}");
    for (line, key) in lines[6..8].iter().zip(["Uid", "Gid"]) {
        assert_eq!(line, &format!("{key} {user} {user} {user} {user}"));
    }
    assert_eq!(lines[8], "Groups ");
    assert_eq!(lines[9], lines[6], "the setuid program made it nobody else");
}

#[tokio::test]
async fn reports_a_memory_hog_as_out_of_memory_and_ends_only_it() {
    let Some(jailed) = Jailed::with_cgroup("memory") else {
        return;
    };
    let resources = Resources {
        memory: Some(Bytes(48 * MIB)),
        ..Resources::default()
    };
    let modest = limited(jailed.spec(1, &["hog=8", "serve"]), resources);
    let pid = jailed.start(&modest).await.pid.unwrap();
    let hog = limited(jailed.spec(2, &["hog=512", "serve"]), resources);
    jailed.start(&hog).await;
    let exit = jailed.target.wait(&hog.id).await.unwrap();
    let limit = Bytes(48 * MIB);
    assert_eq!(exit, Exit::OutOfMemory { limit });
    assert_eq!(
        exit.to_string(),
        "ran out of memory: it was killed at its limit of 48MiB"
    );
    // A command beside an instance has no more, and is the one that goes.
    let command = ["./app", "hog=512"].map(str::to_owned).to_vec();
    let mut output = jailed
        .target
        .exec(&modest.id, command, Vec::new())
        .await
        .unwrap();
    let mut last = None;
    while let Some(piece) = output.recv().await {
        last = Some(piece);
    }
    assert_eq!(last, Some(ExecOutput::Exited(Exit::OutOfMemory { limit })));
    assert!(exists(pid), "the instance goes on");
    // An end that was ordered is none for want of memory.
    jailed.stop(1).await;
    let exit = jailed.target.wait(&modest.id).await.unwrap();
    assert!(matches!(exit, Exit::Signal { signal: 15, .. }), "{exit}");
}

#[tokio::test]
async fn bounds_a_fork_bomb_and_ends_all_of_it() {
    let Some(jailed) = Jailed::with_cgroup("pids") else {
        return;
    };
    let resources = Resources {
        processes: Some(24),
        ..Resources::default()
    };
    let bomb = limited(
        jailed.spec(1, &["ignore-term", "forks=300", "serve"]),
        resources,
    );
    let observed = jailed.start(&bomb).await;
    let held = part(&observed.protections, ProtectionPart::Processes);
    assert!(
        held.detail.starts_with("24 processes and threads"),
        "{held}"
    );
    until("the bomb's end", || {
        let lines = jailed.world.log(1);
        lines.iter().any(|line| line.starts_with("o started"))
    })
    .await;
    let lines = jailed.world.log(1);
    assert!(
        lines.contains(&"o stopped by WouldBlock".to_owned()),
        "{lines:?}"
    );
    assert!(lines.contains(&"o started 23".to_owned()), "{lines:?}");
    assert_eq!(jailed.world.survivors(1).len(), 24);
    jailed.stop(1).await;
    assert_eq!(jailed.world.survivors(1), Vec::<u32>::new());
}

#[tokio::test]
async fn holds_the_cpu_to_its_share() {
    let Some(jailed) = Jailed::with_cgroup("cpu") else {
        return;
    };
    let resources = Resources {
        cpu: Some(Cpu { millicores: 250 }),
        ..Resources::default()
    };
    jailed
        .start(&limited(jailed.spec(1, &["serve"]), resources))
        .await;
    let state = jailed.world.state(1);
    let mut folders = state.leftovers.cgroups.iter();
    let read = |folder: &PathBuf, file| fs::read_to_string(folder.join(file)).ok();
    let quota = folders
        .find_map(|folder| read(folder, "cpu.max").or_else(|| read(folder, "cpu.cfs_quota_us")));
    assert!(quota.unwrap().starts_with("25000"));
    jailed.stop(1).await;
}

#[tokio::test]
async fn reaches_what_is_its_own_and_no_other_file() {
    if let Err(reason) = landfast_shim::jail::landlock() {
        eprintln!("skipped: {reason}");
        return;
    }
    let jailed = Jailed::new();
    let outside = jailed.world.folder.path().join("outside");
    fs::write(&outside, "private").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o666)).unwrap();
    let (own, others) = (jailed.volume("own"), jailed.volume("others"));
    fs::create_dir_all(&others).unwrap();
    fs::write(others.join("file"), "of another app").unwrap();
    // Even one that runs as the same user, which no permission would stop.
    for (number, server_user) in [(1, false), (2, true)] {
        let words = [
            format!(
                "read={}",
                jailed.world.artifact_path().join("app").display()
            ),
            "read=/etc/passwd".to_owned(),
            "write=/dev/null".to_owned(),
            format!("write={}", own.join("mine").display()),
            format!(
                "write={}",
                jailed.world.artifact_path().join("app").display()
            ),
            format!("read={}", outside.display()),
            format!("write={}", outside.display()),
            format!("list={}", others.display()),
            format!("read={}", others.join("file").display()),
            format!("list={}", jailed.world.run().display()),
            "write=/etc/landfast-was-here".to_owned(),
        ];
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut spec = jailed.spec(number, &words);
        spec.sandbox.server_user = server_user;
        spec.volumes = BTreeMap::from([("own".to_owned(), own.clone())]);
        let lines = jailed.lines(&spec).await;
        let (allowed, refused) = lines.split_at(4);
        assert!(
            allowed.iter().all(|line| line.ends_with(" ok")),
            "{lines:?}"
        );
        assert_eq!(refused.len(), 7, "{lines:?}");
        for line in refused {
            assert!(line.ends_with(" PermissionDenied"), "{line}");
        }
    }
    // What the manifest names is open, and the whole host where it says so.
    let word = format!("read={}", outside.display());
    let sandboxes = [
        Sandbox {
            read_only: vec![outside.clone()],
            ..Sandbox::default()
        },
        Sandbox {
            host_files: true,
            ..Sandbox::default()
        },
    ];
    for (number, sandbox) in (3..).zip(sandboxes) {
        let spec = InstanceSpec {
            sandbox,
            ..jailed.spec(number, &[&word])
        };
        assert_eq!(jailed.lines(&spec).await, [format!("{word} ok")]);
    }
}

#[tokio::test]
async fn cannot_read_the_volume_of_another_app_even_without_landlock() {
    let Some(jailed) = Jailed::with_users() else {
        return;
    };
    let volume = jailed.volume("shop");
    let volumes = BTreeMap::from([("data".to_owned(), volume.clone())]);
    let file = volume.join("file").display().to_string();
    let write = format!("write={file}");
    let mut owner = jailed.spec(1, &[&write]);
    owner.volumes = volumes;
    assert_eq!(jailed.lines(&owner).await, [format!("{write} ok")]);
    let user = fs::metadata(&volume).unwrap().uid();
    assert!(user >= 1_900_000_000 && user == fs::metadata(&file).unwrap().uid());
    let read = format!("read={file}");
    let mut other = jailed.spec(2, &[&read]);
    other.id.scope.app = AppName::new("blog").unwrap();
    other.sandbox.host_files = true;
    assert_eq!(
        jailed.lines(&other).await,
        [format!("{read} PermissionDenied")]
    );
}

#[tokio::test]
async fn takes_volumes_over_from_releases_that_ran_as_root() {
    let Some(jailed) = Jailed::with_users() else {
        return;
    };
    let volume = jailed.volume("data");
    fs::create_dir_all(volume.join("deep")).unwrap();
    fs::write(volume.join("deep/file"), "of before").unwrap();
    let word = format!("write={}", volume.join("deep/file").display());
    let mut spec = jailed.spec(1, &[&word]);
    spec.volumes = BTreeMap::from([("data".to_owned(), volume)]);
    assert_eq!(jailed.lines(&spec).await, [format!("{word} ok")]);
}

#[tokio::test]
async fn leaves_a_folder_of_the_operator_alone_and_says_what_that_costs() {
    let Some(jailed) = Jailed::with_users() else {
        return;
    };
    let folder = jailed.world.folder.path().join("operators");
    fs::create_dir(&folder).unwrap();
    let volumes = BTreeMap::from([("data".to_owned(), folder.clone())]);
    let word = format!("write={}", folder.join("file").display());
    let mut spec = jailed.spec(1, &[&word]);
    spec.volumes = volumes.clone();
    assert_eq!(jailed.lines(&spec).await, [format!("{word} ok")]);
    assert_eq!(
        fs::metadata(&folder).unwrap().uid(),
        0,
        "it is not ours to give"
    );
    let user = part(&jailed.world.state(1).protections, ProtectionPart::User).clone();
    assert_eq!(user.state, ProtectionState::Missing);
    assert!(user.detail.contains("`chown -R 1"), "{user}");
    // Once it is given away, the instance has its own user.
    let wanted = user
        .detail
        .split(['-', ' ', ':'])
        .find_map(|word| word.parse().ok());
    chown(&folder, wanted, wanted).unwrap();
    let mut spec = jailed.spec(2, &["status=Uid"]);
    spec.volumes = volumes;
    let lines = jailed.lines(&spec).await;
    assert!(lines[0].contains(&wanted.unwrap().to_string()), "{lines:?}");
}

#[tokio::test]
async fn has_a_temporary_folder_of_its_own_that_goes_with_it() {
    let jailed = Jailed::new();
    let words = ["env=TMPDIR", "write=/tmp/landfast-probe", "serve"];
    let observed = jailed.start(&jailed.spec(1, &words)).await;
    let held = part(&observed.protections, ProtectionPart::Temporary).clone();
    eprintln!("{held}");
    until("its words", || jailed.world.log(1).len() == 2).await;
    let temporary = jailed.world.state(1).leftovers.temporary.unwrap();
    assert!(temporary.is_dir());
    let lines = jailed.world.log(1);
    if held.detail == "/tmp of its own" {
        assert_eq!(lines, ["o /tmp", "o write=/tmp/landfast-probe ok"]);
        assert!(temporary.join("landfast-probe").exists());
        let other = jailed.spec(2, &["read=/tmp/landfast-probe"]);
        assert_eq!(
            jailed.lines(&other).await,
            ["read=/tmp/landfast-probe NotFound"]
        );
    } else {
        assert_eq!(lines[0], format!("o {}", temporary.display()));
    }
    assert!(!Path::new("/tmp/landfast-probe").exists());
    jailed.stop(1).await;
    assert!(!temporary.exists());
    let left = fs::read_dir(jailed.world.folder.path().join("tmp")).unwrap();
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn gives_secrets_as_files_that_nobody_else_reads() {
    let jailed = Jailed::with_users().unwrap_or_else(Jailed::new);
    let mut spec = jailed.spec(1, &["file=KEY_FILE", "env=KEY", "serve"]);
    let value = Secret::new("f1le-s3cret \n\"é".to_owned());
    spec.secret_files.insert("KEY".to_owned(), value.clone());
    let observed = jailed.start(&spec).await;
    let held = part(&observed.protections, ProtectionPart::Secrets).clone();
    eprintln!("{held}");
    until("its words", || jailed.world.log(1).len() == 3).await;
    // Two lines of the value, and no variable of it.
    let lines = jailed.world.log(1);
    assert_eq!(lines, ["o f1le-s3cret ", "o \"é", "o (unset)"]);
    let state = jailed.world.state(1);
    let folder = state.leftovers.secrets.clone().unwrap();
    let file = folder.join("KEY");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&file), 0o400);
    assert_eq!(mode(&folder) & 0o077, 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), *value.reveal());
    assert!(!serde_json::to_string(&state).unwrap().contains("f1le"));
    if part(&observed.protections, ProtectionPart::User).state == ProtectionState::Enforced {
        assert!(fs::metadata(&file).unwrap().uid() >= 1_900_000_000);
        // An instance of another environment, which is another user, even if nothing else held it back.
        let mut other = jailed.spec(2, &[&format!("read={}", file.display()), "exit=0"]);
        other.id.scope.environment = "staging".parse().unwrap();
        other.sandbox.host_files = true;
        jailed.start(&other).await;
        jailed.target.wait(&other.id).await.unwrap();
        let said = format!("o read={} PermissionDenied", file.display());
        assert_eq!(jailed.world.log(2), [said]);
    }
    jailed.stop(1).await;
    assert!(!folder.exists());
    // A shim that is killed leaves them to whoever settles its instance.
    let mut spec = jailed.spec(3, &["serve"]);
    spec.secret_files.insert("KEY".to_owned(), value);
    jailed.start(&spec).await;
    let state = jailed.world.state(3);
    let folder = state.leftovers.secrets.clone().unwrap();
    assert!(folder.join("KEY").exists());
    kill(state.shim.unwrap().pid);
    jailed.target.wait(&spec.id).await.unwrap();
    assert!(!folder.exists());
    // And one that no state names, to the next look.
    let stray = jailed.world.run().join("f/0000000000000000.stray");
    fs::create_dir_all(&stray).unwrap();
    jailed.target.list().await.unwrap();
    assert!(!stray.exists());
}

#[tokio::test]
async fn nothing_of_the_jail_is_left_behind_by_a_shim_that_was_killed() {
    let jailed = Jailed::new();
    let resources = Resources {
        memory: Some(Bytes(64 * MIB)),
        cpu: Some(Cpu { millicores: 500 }),
        ..Resources::default()
    };
    let spec = limited(jailed.spec(1, &["child", "out=ready", "serve"]), resources);
    jailed.start(&spec).await;
    until("its start", || jailed.world.survivors(1).len() == 2).await;
    let state = jailed.world.state(1);
    let left = || {
        let mut all = state
            .leftovers
            .cgroups
            .iter()
            .chain(&state.leftovers.temporary);
        all.any(|path| path.exists())
    };
    assert!(left());
    kill(state.shim.unwrap().pid);
    assert_eq!(jailed.target.wait(&spec.id).await.unwrap(), Exit::Unknown);
    until("the end of its children", || {
        jailed.world.survivors(1).is_empty()
    })
    .await;
    until("the end of its jail", || {
        state.leftovers.remove();
        !left()
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_made_ready_is_a_start_that_failed() {
    if landfast_shim::jail::landlock().is_err() {
        eprintln!("skipped: without Landlock there are no rules to make");
        return;
    }
    let jailed = Jailed::new();
    let mut spec = jailed.spec(1, &["serve"]);
    spec.sandbox.read_only = vec![PathBuf::from("/nowhere/at/all")];
    let observed = jailed.start(&spec).await;
    let ObservedState::Exited { exit, .. } = observed.state else {
        panic!("it runs");
    };
    let text = exit.to_string();
    assert!(text.contains("failed to make its Landlock rules"), "{text}");
    assert!(text.contains("/nowhere/at/all"), "{text}");
}

#[tokio::test]
async fn says_beforehand_what_a_start_will_be_held_to() {
    let jailed = Jailed::new();
    let resources = Resources {
        memory: Some(Bytes(64 * MIB)),
        cpu: Some(Cpu { millicores: 500 }),
        ..Resources::default()
    };
    let spec = limited(jailed.spec(1, &["serve"]), resources);
    let forecast = jailed.target.forecast(&spec.confinement());
    assert!(
        !jailed.world.folder.path().join("users.json").exists(),
        "it changes nothing"
    );
    let observed = jailed.start(&spec).await;
    for one in &observed.protections {
        eprintln!("{one}");
    }
    assert_eq!(observed.protections, forecast);
    // A later server reads the same from disk.
    let adopted = jailed.target.list().await.unwrap();
    assert_eq!(adopted[0].protections, observed.protections);
    jailed.stop(1).await;
}

/// A state as the build before jails wrote it.
#[tokio::test]
async fn reads_the_state_of_a_shim_of_before_there_were_jails() {
    let jailed = Jailed::new();
    jailed.start(&jailed.spec(1, &["exit=3"])).await;
    jailed.target.wait(&jailed.world.id(1)).await.unwrap();
    let folder = jailed.world.folder_of(1);
    until("the shim's leaving", || {
        !landfast_shim::shim_is_alive(&folder).unwrap()
    })
    .await;
    let path = folder.join("state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let fields = state.as_object_mut().unwrap();
    assert!(fields.remove("protections").is_some() && fields.remove("leftovers").is_some());
    fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
    let all = jailed.target.list().await.unwrap();
    assert!(all[0].protections.is_empty());
    let code = ObservedState::Exited {
        exit: Exit::Code { code: 3 },
        at: match all[0].state {
            ObservedState::Exited { at, .. } => at,
            ObservedState::Running => panic!("it ended"),
        },
    };
    assert_eq!(all[0].state, code);
}
