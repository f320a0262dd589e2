//! Real shims, real processes, killed in every way there is.

mod common;

use std::{fs, net::TcpListener, path::Path, time::Duration};

use landfast_shim::process::Stat;
use landfast_target::{
    Elsewhere, ExecOutput, Exit, InstanceSpec, ObservedState, ProgramRun, StartError, Target as _,
    conformance,
};
use landfast_types::Secret;

use crate::common::{World, exists, fence, kill, read, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    conformance::suite(&World::new()).await;
}

#[tokio::test]
async fn takes_a_grandchild_along_that_ignores_sigterm() {
    let world = World::new();
    let target = world.target();
    world
        .start(
            &target,
            1,
            &["ignore-term", "child", "daemon", "out=ready", "serve"],
        )
        .await;
    until("its start", || world.survivors(1).len() == 3).await;
    let exit = target
        .stop(fence(2), &world.id(1), Duration::from_millis(50))
        .await
        .unwrap();
    assert_eq!(
        exit,
        Exit::Signal {
            signal: 9,
            core_dumped: false
        }
    );
    assert_eq!(
        world.survivors(1),
        Vec::<u32>::new(),
        "stop answers when nothing is left"
    );
}

#[tokio::test]
async fn ends_what_a_command_left_behind() {
    let world = World::new();
    let target = world.target();
    world
        .start(
            &target,
            1,
            &["child", "daemon", "out=ready", "sleep=300", "exit=3"],
        )
        .await;
    assert_eq!(
        target.wait(&world.id(1)).await.unwrap(),
        Exit::Code { code: 3 }
    );
    assert_eq!(
        world.survivors(1),
        Vec::<u32>::new(),
        "wait answers when nothing is left"
    );
    until("the shim's leaving", || {
        !landfast_shim::shim_is_alive(&world.folder_of(1)).unwrap()
    })
    .await;
    assert_eq!(
        target.wait(&world.id(1)).await.unwrap(),
        Exit::Code { code: 3 }
    );
}

#[tokio::test]
async fn sees_an_instance_that_is_killed() {
    let world = World::new();
    let target = world.target();
    let pid = world.start(&target, 1, &["serve"]).await.pid.unwrap();
    kill(pid);
    let exit = target.wait(&world.id(1)).await.unwrap();
    assert_eq!(
        exit,
        Exit::Signal {
            signal: 9,
            core_dumped: false
        }
    );
}

#[tokio::test]
async fn an_instance_dies_with_its_shim_and_is_settled() {
    let world = World::new();
    let target = world.target();
    let pid = world
        .start(&target, 1, &["child", "daemon", "serve"])
        .await
        .pid
        .unwrap();
    let other = world.start(&target, 2, &["serve"]).await;
    until("its start", || world.survivors(1).len() == 3).await;
    let waiting = tokio_spawn::spawn_in_test({
        let (target, id) = (target.clone(), world.id(1));
        async move { target.wait(&id).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    kill(world.state(1).shim.unwrap().pid);
    assert_eq!(waiting.await.unwrap().unwrap(), Exit::Unknown);
    until("the end of the instance", || !exists(pid)).await;
    until("the end of its children", || world.survivors(1).is_empty()).await;
    let all = target.list().await.unwrap();
    assert!(matches!(
        all[0].state,
        ObservedState::Exited {
            exit: Exit::Unknown,
            ..
        }
    ));
    assert_eq!(all[1], other, "the neighbour is not touched");
    assert_eq!(
        target
            .stop(fence(3), &world.id(1), Duration::ZERO)
            .await
            .unwrap(),
        Exit::Unknown
    );
    target
        .stop(fence(3), &world.id(2), Duration::ZERO)
        .await
        .unwrap();
}

/// `tokio::spawn` is banned where a panic could get lost; here the handle is awaited.
mod tokio_spawn {
    use std::future::Future;

    #[expect(
        clippy::disallowed_methods,
        reason = "the handle is awaited by the test"
    )]
    pub(crate) fn spawn_in_test<T: Send + 'static>(
        future: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        tokio::spawn(future)
    }
}

#[tokio::test]
async fn keeps_an_exit_that_nobody_was_there_to_see() {
    let world = World::new();
    let before = world.target();
    world.start(&before, 1, &["sleep=200", "exit=42"]).await;
    drop(before);
    until("the shim's leaving", || {
        !landfast_shim::shim_is_alive(&world.folder_of(1)).unwrap()
    })
    .await;
    let after = world.target();
    assert_eq!(
        after.wait(&world.id(1)).await.unwrap(),
        Exit::Code { code: 42 }
    );
}

#[tokio::test]
async fn reaps_adopted_orphans() {
    let world = World::new();
    let target = world.target();
    world
        .start(&target, 1, &["orphans=20", "out=forked", "serve"])
        .await;
    until("the forks", || {
        world.log(1).iter().any(|line| line == "o forked")
    })
    .await;
    let shim = world.state(1).shim.unwrap().pid;
    let children = || {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter_map(Stat::read)
            .filter(|stat| stat.parent == shim)
            .count()
    };
    until("the reaping", || children() == 1).await;
    target
        .stop(fence(2), &world.id(1), Duration::ZERO)
        .await
        .unwrap();
}

#[tokio::test]
async fn bounds_a_flood_of_output() {
    let world = World::new();
    let settings = landfast_target_process::ProcessSettings {
        log_segment_bytes_max: 1 << 20,
        ..world.settings()
    };
    let target = landfast_target_process::ProcessTarget::new(settings);
    world
        .start(
            &target,
            1,
            &["flood=20000000", "out=the last line", "exit=0"],
        )
        .await;
    assert_eq!(
        target.wait(&world.id(1)).await.unwrap(),
        Exit::Code { code: 0 }
    );
    until("the shim's leaving", || {
        !landfast_shim::shim_is_alive(&world.folder_of(1)).unwrap()
    })
    .await;
    let segments = landfast_shim::logs::segments(&world.logs(1)).unwrap();
    assert_eq!(segments.len(), 5);
    assert!(
        segments
            .iter()
            .all(|(_, path)| fs::metadata(path).unwrap().len() <= 1 << 20)
    );
    // 20 MB in lines of 100 bytes, each with a head of 30: about 26 segments were written.
    assert!(segments[0].0 > 20, "{segments:?}");
    assert_eq!(world.log(1).last().unwrap(), "o the last line");
    assert_eq!(world.state(1).log_lines_dropped, 0);
}

#[tokio::test]
async fn shows_secrets_to_the_instance_only() {
    let world = World::new();
    let target = world.target();
    world.start(&target, 1, &["env=TOKEN", "serve"]).await;
    until("the output", || world.log(1) == ["o s3cr3t-t0ken"]).await;
    let shim = world.state(1).shim.unwrap().pid;
    let secret = b"s3cr3t-t0ken".as_slice();
    let leaks = |bytes: &[u8]| bytes.windows(secret.len()).any(|part| part == secret);
    for file in ["cmdline", "environ"] {
        assert!(
            !leaks(&read(format!("/proc/{shim}/{file}"))),
            "{file} of the shim"
        );
    }
    assert_eq!(
        read(format!("/proc/{shim}/environ")),
        b"",
        "it has no environment at all"
    );
    for entry in fs::read_dir(world.folder_of(1)).unwrap().flatten() {
        if entry.file_type().unwrap().is_file() {
            assert!(!leaks(&read(entry.path())), "{}", entry.path().display());
        }
    }
    // It is closed to others, and holds nothing of its parent's open.
    let descriptors = fs::read_dir(format!("/proc/{shim}/fd")).unwrap().flatten();
    let mut opened: Vec<_> = descriptors
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .collect();
    opened.retain(|path| !path.starts_with("/dev/null"));
    // What commands beside the instance enter: its rules for files, and the doors of its cgroups.
    opened.retain(|path| {
        !path.ends_with("cgroup.procs") && path != Path::new("anon_inode:[landlock-ruleset]")
    });
    // Its last words, lock, signals, socket and segment, and two pipes.
    assert_eq!(opened.len(), 7, "{opened:?}");
    target
        .stop(fence(2), &world.id(1), Duration::ZERO)
        .await
        .unwrap();
}

#[tokio::test]
async fn gives_exactly_the_environment_it_was_given() {
    let world = World::new();
    let target = world.target();
    let volume = world.folder.path().join("volumes/uploads");
    let mut spec = InstanceSpec {
        listens: true,
        ..world.spec(1, &["cwd", "serve"])
    };
    spec.volumes
        .insert("user-uploads".to_owned(), volume.clone());
    let observed = target.start(fence(1), &spec).await.unwrap();
    let environ = read(format!("/proc/{}/environ", observed.pid.unwrap()));
    let text = String::from_utf8(environ).unwrap();
    let mut words: Vec<_> = text.split_terminator('\0').collect();
    words.retain(|word| !word.starts_with("LANDFAST_MARK="));
    let temporary = |word: &str| {
        ["TMPDIR=", "TMP=", "TEMP="]
            .iter()
            .any(|name| word.starts_with(name))
    };
    assert_eq!(words.extract_if(.., |word| temporary(word)).count(), 3);
    let port = format!("PORT={}", observed.address.unwrap().port());
    let uploads = format!("VOLUME_USER_UPLOADS={}", volume.display());
    assert_eq!(
        words,
        ["HOST=127.0.0.1", &port, "TOKEN=s3cr3t-t0ken", &uploads]
    );
    assert!(volume.is_dir());
    let cwd = format!("o {}", world.artifact_path().display());
    until("the output", || world.log(1) == [cwd.clone()]).await;
    // A session and a group of its own, and nothing on standard input.
    let stat = Stat::read(observed.pid.unwrap()).unwrap();
    assert_eq!(stat.session, stat.pid);
    let stdin = fs::read_link(format!("/proc/{}/fd/0", stat.pid)).unwrap();
    assert_eq!(stdin.to_str(), Some("/dev/null"));
    let opened = fs::read_dir(format!("/proc/{}/fd", stat.pid))
        .unwrap()
        .count();
    assert_eq!(opened, 3);
    target
        .stop(fence(2), &world.id(1), Duration::ZERO)
        .await
        .unwrap();
    assert!(volume.is_dir(), "volumes are never deleted");
}

#[tokio::test]
async fn serves_on_the_port_it_was_given() {
    let world = World::new();
    let target = world.target();
    let spec = InstanceSpec {
        listens: true,
        ..world.spec(1, &["listen", "serve"])
    };
    let observed = target.start(fence(1), &spec).await.unwrap();
    let address = observed.address.unwrap();
    until("its listening", || {
        std::net::TcpStream::connect(address).is_ok()
    })
    .await;
    // The next one gets another, even from a target that has just been opened.
    let other = InstanceSpec {
        listens: true,
        ..world.spec(2, &["serve"])
    };
    let second = world.target().start(fence(2), &other).await.unwrap();
    assert!(second.address.unwrap().port() > address.port());
    for number in [1, 2] {
        target
            .stop(fence(3), &world.id(number), Duration::ZERO)
            .await
            .unwrap();
    }
    // In a range of one, the port is used again once it is free, and not before.
    let port = address.port();
    let settings = landfast_target_process::ProcessSettings {
        ports: port..=port,
        ..world.settings()
    };
    let narrow = landfast_target_process::ProcessTarget::new(settings);
    let spec = |number| InstanceSpec {
        listens: true,
        ..world.spec(number, &["serve"])
    };
    let third = narrow.start(fence(4), &spec(3)).await.unwrap();
    assert_eq!(third.address, Some(address));
    let none = narrow.start(fence(4), &spec(4)).await;
    assert!(matches!(none, Err(StartError::NoPort { .. })), "{none:?}");
    narrow
        .stop(fence(5), &world.id(3), Duration::ZERO)
        .await
        .unwrap();
    let _stranger = TcpListener::bind(address).unwrap();
    let none = narrow.start(fence(5), &spec(4)).await;
    assert!(matches!(none, Err(StartError::NoPort { .. })), "{none:?}");
}

#[tokio::test]
async fn signals_nothing_after_the_host_was_lost() {
    let world = World::new();
    let target = world.target();
    let pid = world.start(&target, 1, &["serve"]).await.pid.unwrap();
    let state = world.state(1);
    kill(state.shim.unwrap().pid);
    until("the end", || !exists(pid)).await;
    // A run folder that was not emptied tells of another boot. The number is now somebody else's: ours.
    let mut stranger = state.clone();
    stranger.boot = "another boot".to_owned();
    stranger.main = Some(Stat::read(std::process::id()).unwrap().key());
    stranger.write(&world.folder_of(1)).unwrap();
    let all = world.target().list().await.unwrap();
    assert!(matches!(
        all[0].state,
        ObservedState::Exited {
            exit: Exit::Unknown,
            ..
        }
    ));
    // And one that was emptied tells nothing.
    fs::remove_dir_all(world.run()).unwrap();
    let target = world.target();
    assert_eq!(target.list().await.unwrap(), []);
    assert_eq!(target.wait(&world.id(1)).await.unwrap(), Exit::Unknown);
    world.start(&target, 1, &["exit=0"]).await;
    assert_eq!(
        target.wait(&world.id(1)).await.unwrap(),
        Exit::Code { code: 0 }
    );
}

#[tokio::test]
async fn never_signals_a_number_that_was_used_again() {
    let world = World::new();
    let target = world.target();
    let victim = world.start(&target, 1, &["serve"]).await;
    let other = world.start(&target, 2, &["serve"]).await;
    let mut state = world.state(2);
    kill(state.shim.unwrap().pid);
    until("the end", || !exists(other.pid.unwrap())).await;
    // As if the number of instance 2 had become that of instance 1.
    let number = victim.pid.unwrap();
    state.main = Some(landfast_shim::ProcessKey {
        pid: number,
        start_ticks: 1,
    });
    state.write(&world.folder_of(2)).unwrap();
    assert_eq!(target.wait(&world.id(2)).await.unwrap(), Exit::Unknown);
    assert!(exists(number));
    target
        .stop(fence(2), &world.id(1), Duration::ZERO)
        .await
        .unwrap();
}

#[tokio::test]
async fn is_found_again_after_the_run_folder_was_emptied_under_it() {
    let world = World::new();
    let target = world.target();
    let started = world.start(&target, 1, &["serve"]).await;
    fs::remove_dir_all(world.run()).unwrap();
    let found = || landfast_shim::shim_is_alive(&world.folder_of(1)).unwrap();
    until("its folder", || {
        found() && world.folder_of(1).join("state.json").exists()
    })
    .await;
    assert_eq!(world.target().list().await.unwrap(), [started]);
    // One file of it is enough to be lost.
    fs::remove_file(world.folder_of(1).join("s")).unwrap();
    until("its socket", || world.folder_of(1).join("s").exists()).await;
    let exit = target
        .stop(fence(2), &world.id(1), Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(
        exit,
        Exit::Signal {
            signal: 9,
            core_dumped: false
        }
    );
}

#[tokio::test]
async fn an_instance_that_nobody_could_find_again_ends() {
    let world = World::new();
    let target = world.target();
    let pid = world.start(&target, 1, &["serve"]).await.pid.unwrap();
    let shim = world.state(1).shim.unwrap().pid;
    fs::remove_dir_all(world.run()).unwrap();
    // A file in the way of the folder.
    fs::write(world.run(), "").unwrap();
    until("its end", || !exists(pid) && !exists(shim)).await;
    fs::remove_file(world.run()).unwrap();
}

#[tokio::test]
async fn talks_through_a_path_that_is_too_long_for_a_socket() {
    let world = World::new();
    let run = world.folder.path().join("r".repeat(120));
    let settings = landfast_target_process::ProcessSettings {
        run,
        ..world.settings()
    };
    let target = landfast_target_process::ProcessTarget::new(settings);
    world
        .start(&target, 1, &["on-term=6,0", "out=ready", "serve"])
        .await;
    until("its start", || world.log(1) == ["o ready"]).await;
    let exit = target
        .stop(fence(2), &world.id(1), Duration::from_secs(20))
        .await
        .unwrap();
    assert_eq!(exit, Exit::Code { code: 6 });
}

#[tokio::test]
async fn starts_in_a_folder_that_a_crash_left_empty() {
    let world = World::new();
    let target = world.target();
    fs::create_dir_all(world.folder_of(1)).unwrap();
    fs::write(world.folder_of(1).join("lock"), "").unwrap();
    assert_eq!(target.list().await.unwrap(), []);
    world.start(&target, 1, &["serve"]).await;
    target
        .stop(fence(2), &world.id(1), Duration::ZERO)
        .await
        .unwrap();
    // Stopping one that was ordered by a server that died, but never came up, keeps it from coming up later.
    fs::create_dir_all(world.folder_of(2)).unwrap();
    assert_eq!(
        target
            .stop(fence(2), &world.id(2), Duration::ZERO)
            .await
            .unwrap(),
        Exit::Unknown
    );
    let late = world.start(&target, 2, &["serve"]).await;
    assert!(matches!(
        late.state,
        ObservedState::Exited {
            exit: Exit::Unknown,
            ..
        }
    ));
}

#[tokio::test]
async fn tells_why_a_file_is_no_program() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let target = world.target();
    let garbage = world.folder.path().join("garbage");
    fs::write(&garbage, "\u{7f}ELF but not really").unwrap();
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o755)).unwrap();
    let command = vec![garbage.to_str().unwrap().to_owned()];
    let spec = InstanceSpec {
        command,
        ..world.spec(1, &[])
    };
    let observed = target.start(fence(1), &spec).await.unwrap();
    let ObservedState::Exited {
        exit: Exit::NotStarted { reason },
        ..
    } = observed.state
    else {
        panic!("{observed:?}");
    };
    assert!(reason.contains("Exec format error"), "{reason}");
    assert!(matches!(
        target.wait(&world.id(1)).await.unwrap(),
        Exit::NotStarted { .. }
    ));
}

#[tokio::test]
async fn ends_a_command_whose_reader_left() {
    let world = World::new();
    let target = world.target();
    world.start(&target, 1, &["serve"]).await;
    let words = ["./app", "out=ready", "serve"].map(str::to_owned).to_vec();
    let mut receiver = target.exec(&world.id(1), words, Vec::new()).await.unwrap();
    assert_eq!(
        receiver.recv().await,
        Some(ExecOutput::Stdout(b"ready\n".to_vec()))
    );
    assert_eq!(world.survivors(1).len(), 2);
    drop(receiver);
    until("the end of the command", || world.survivors(1).len() == 1).await;
    target
        .stop(fence(2), &world.id(1), Duration::ZERO)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_shim_told_to_end_ends_its_instance_first() {
    let world = World::new();
    let target = world.target();
    world
        .start(&target, 1, &["on-term=5,100", "out=ready", "serve"])
        .await;
    until("its start", || world.log(1) == ["o ready"]).await;
    let shim = i32::try_from(world.state(1).shim.unwrap().pid).unwrap();
    let shim = rustix::process::Pid::from_raw(shim).unwrap();
    // As the init system does at shutdown. The others are for whoever sat at the terminal.
    for signal in [rustix::process::Signal::HUP, rustix::process::Signal::INT] {
        rustix::process::kill_process(shim, signal).unwrap();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(landfast_shim::shim_is_alive(&world.folder_of(1)).unwrap());
    rustix::process::kill_process(shim, rustix::process::Signal::TERM).unwrap();
    assert_eq!(
        target.wait(&world.id(1)).await.unwrap(),
        Exit::Code { code: 5 }
    );
}

#[tokio::test]
async fn an_idle_shim_is_small() {
    let world = World::new();
    let target = world.target();
    world.start(&target, 1, &["serve"]).await;
    let shim = world.state(1).shim.unwrap().pid;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let rollup = fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
    let size = |name: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let dirty = size("Private_Dirty:");
    println!(
        "an idle shim: {} KiB PSS, {dirty} KiB private dirty",
        size("Pss:")
    );
    // Figures are the proof targets' business; this catches a runtime or a thread pool that crept in.
    assert!(dirty < 4_096, "{rollup}");
    assert_eq!(
        fs::read_dir(format!("/proc/{shim}/task")).unwrap().count(),
        1
    );
    target
        .stop(fence(2), &world.id(1), Duration::ZERO)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_nobody_waits_for_any_more_is_ended() {
    let world = World::new();
    let target = world.target();
    let folder = world.run();
    let pid_file = folder.join("pid");
    fs::create_dir_all(&folder).unwrap();
    let run = ProgramRun {
        owner: "shop/production/stores/main".to_owned(),
        program: "/bin/sh".into(),
        arguments: vec![
            "-c".to_owned(),
            // What it started goes with it.
            format!("sleep 300 & echo $! > {}; wait", pid_file.display()),
        ],
        env: [("PATH".to_owned(), Secret::new("/usr/bin:/bin".to_owned()))].into(),
        folder,
        stdin: Secret::new(Vec::new()),
        named_users: Vec::new(),
        patience: Duration::from_secs(600),
        elsewhere: Elsewhere::default(),
    };
    let pid = || {
        fs::read_to_string(&pid_file)
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    };
    tokio::select! {
        ended = target.run_program(&run) => panic!("{ended:?}"),
        () = until("it runs", || pid().is_some()) => {}
    }
    let pid = pid().unwrap();
    until("it is ended", || !exists(pid)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_makes_no_progress_is_ended_with_what_it_started_and_one_that_does_is_not() {
    let world = World::new();
    let target = world.target();
    let folder = world.run();
    fs::create_dir_all(&folder).unwrap();
    let child = folder.join("child");
    let run = |text: String, elsewhere: &Elsewhere| ProgramRun {
        owner: "shop/production/stores/main".to_owned(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), text],
        env: [("PATH".to_owned(), Secret::new("/usr/bin:/bin".to_owned()))].into(),
        folder: folder.clone(),
        stdin: Secret::new(Vec::new()),
        named_users: Vec::new(),
        patience: Duration::from_secs(3),
        elsewhere: elsewhere.clone(),
    };
    let stuck = format!("sleep 300 & echo $! > {}; wait", child.display());
    let stands = run(stuck.clone(), &Elsewhere::default());
    let error = target.run_program(&stands).await.unwrap_err();
    let said = std::error::Error::source(&error).unwrap().to_string();
    assert!(said.contains("no progress for 3s"), "{said}");
    let pid = || fs::read_to_string(&child).ok()?.trim().parse::<u32>().ok();
    let first = pid().unwrap();
    until("what it started is ended", || !exists(first)).await;

    // Longer than its patience, a little at a time.
    let steps = "for step in 1 2 3 4 5 6 7 8; do sleep 0.7; echo $step; done".to_owned();
    let goes_on = run(steps, &Elsewhere::default());
    let ended = target.run_program(&goes_on).await.unwrap();
    assert_eq!(ended.exit, Exit::Code { code: 0 });

    // What waits for a server that works is left alone, until that stands still, too.
    let elsewhere = Elsewhere::default();
    fs::remove_file(&child).unwrap();
    let waits = run(stuck, &elsewhere);
    let works = async {
        for _ in 0..14 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            elsewhere.advanced();
        }
        assert!(exists(pid().unwrap()), "its server was at work");
    };
    let (ended, ()) = tokio::join!(target.run_program(&waits), works);
    assert!(ended.is_err());
}
