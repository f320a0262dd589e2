//! Containers of a real daemon: the suite of every target, what they are held to, and what they write.

mod common;

use std::{collections::BTreeMap, fs, io::Write as _, path::PathBuf, time::Duration};

use landfast_target::{
    ContainerOptions, ContainerUser, ExecOutput, Exit, HealthSource, ImageHealth, InstanceSpec,
    ObservedState, Resources, StartError, Target as _, conformance,
};
use landfast_types::{Bytes, Secret};

use crate::common::{PORT, World, fence, id, options, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let Some(world) = World::new() else { return };
    conformance::suite(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_held_to_what_it_is_told() {
    let Some(world) = World::new() else { return };
    let target = world.target();
    let words = [
        "status=Uid",
        "status=CapEff",
        "status=CapBnd",
        "status=NoNewPrivs",
        "write=/file",
        "write=/tmp/file",
        "write=/volumes/data/file",
        "env=VOLUME_DATA",
        "write=/run/secrets/x",
        "file=KEY_FILE",
        "env=KEY",
        "env=PORT",
    ];
    let volume = world.folder.path().join("state/volumes/data");
    let spec = InstanceSpec {
        secret_files: BTreeMap::from([("KEY".to_owned(), Secret::new("hidden".to_owned()))]),
        volumes: BTreeMap::from([("data".to_owned(), volume.clone())]),
        ..world.spec(1, &words)
    };
    let lines = world.lines(&target, &spec).await;
    let user = lines[0].split_whitespace().nth(1).unwrap();
    assert!(user.parse::<u32>().unwrap() >= 1_900_000_000, "{lines:?}");
    let none = "0000000000000000";
    let expected = [
        &format!("CapEff {none}"),
        &format!("CapBnd {none}"),
        "NoNewPrivs 1",
        "write=/file ReadOnlyFilesystem",
        "write=/tmp/file ok",
        "write=/volumes/data/file ok",
        "/volumes/data",
        "write=/run/secrets/x ReadOnlyFilesystem",
        "hidden",
        "(unset)",
        &PORT.to_string(),
    ];
    assert_eq!(lines[1..], expected);
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "written");
    // What is a file is nowhere in what the daemon tells of the container, and gone with it.
    let told = world.dockerd.docker(&["ps", "--all", "--quiet"]).unwrap();
    let told = world.dockerd.docker(&["inspect", &told]).unwrap();
    assert!(!told.contains("hidden"), "{told}");
    assert!(!told.contains("HostPort"), "nothing is published: {told}");
    assert_eq!(
        fs::read_dir(world.folder.path().join("state/secrets"))
            .unwrap()
            .count(),
        0
    );
    target.forget(&spec.id).await.unwrap();
    assert_eq!(
        world.dockerd.docker(&["ps", "--all", "--quiet"]).unwrap(),
        ""
    );
    assert!(volume.join("file").exists(), "volumes outlive containers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_manifest_loosens_is_loose() {
    let Some(mut world) = World::new() else {
        return;
    };
    let target = world.target();
    let loose = InstanceSpec {
        container: ContainerOptions {
            writable_root: true,
            user: ContainerUser::Image,
            capabilities: vec!["CHOWN".to_owned()],
            tmpfs: vec![PathBuf::from("/cache")],
            mounts: BTreeMap::from([("data".to_owned(), PathBuf::from("/srv/data"))]),
            ..options(&[])
        },
        volumes: BTreeMap::from([(
            "data".to_owned(),
            world.folder.path().join("state/volumes/data"),
        )]),
        ..world.spec(
            1,
            &[
                "status=Uid",
                "status=CapEff",
                "write=/etc/file",
                "write=/cache/x",
                "write=/srv/data/x",
            ],
        )
    };
    let lines = world.lines(&target, &loose).await;
    let expected = [
        "Uid 0 0 0 0",
        "CapEff 0000000000000001",
        "write=/etc/file ok",
        "write=/cache/x ok",
        "write=/srv/data/x ok",
    ];
    assert_eq!(lines, expected);
    // An image that has a user keeps it, by number or by name, and its volumes are that user's.
    for (number, user) in [(2, "4711:4711"), (3, "web")] {
        world.image = world.import(&format!("user:{number}"), &[&format!("USER {user}")]);
        let path = world.folder.path().join(format!("state/volumes/{number}"));
        let spec = InstanceSpec {
            volumes: BTreeMap::from([("data".to_owned(), path)]),
            ..world.spec(number, &["status=Uid", "write=/volumes/data/x"])
        };
        let lines = world.lines(&target, &spec).await;
        assert_eq!(
            lines,
            ["Uid 4711 4711 4711 4711", "write=/volumes/data/x ok"]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_not_taken_from_whoever_uses_it() {
    let Some(mut world) = World::new() else {
        return;
    };
    let target = world.target();
    let path = world.folder.path().join("state/volumes/data");
    let volumes = BTreeMap::from([("data".to_owned(), path.clone())]);
    let words = ["write=/volumes/data/x"];
    for (number, user, is_taken) in [(1, 4711, false), (2, 4712, true), (3, 4711, false)] {
        world.image = world.import(&format!("user:{number}"), &[&format!("USER {user}")]);
        let spec = InstanceSpec {
            volumes: volumes.clone(),
            ..world.spec(number, &words)
        };
        if is_taken {
            let refused = target.start(fence(1), &spec).await.unwrap_err();
            let told = refused.to_string();
            assert!(
                matches!(refused, StartError::Impossible(_)) && told.contains("user 4711"),
                "{told}"
            );
            continue;
        }
        let lines = world.lines(&target, &spec).await;
        assert_eq!(lines, ["write=/volumes/data/x ok"]);
    }
    // Who runs as root finds it as it is.
    world.image = world.import("user:0", &["USER 0"]);
    let spec = InstanceSpec {
        container: ContainerOptions {
            user: ContainerUser::Image,
            ..options(&[])
        },
        volumes,
        ..world.spec(4, &["status=Uid"])
    };
    world.lines(&target, &spec).await;
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&path).unwrap());
    assert_eq!(owner, 4711);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_and_running_out_of_memory_is_said() {
    let Some(world) = World::new() else { return };
    let target = world.target();
    let limit = Bytes(48 << 20);
    let hog = InstanceSpec {
        resources: Resources {
            memory: Some(limit),
            ..Default::default()
        },
        ..world.spec(1, &["hog=256", "exit=0"])
    };
    target.start(fence(1), &hog).await.unwrap();
    let exit = target.wait(&hog.id).await.unwrap();
    // Where the kernel's log is not to be read, the daemon's word is all there is, and it may lose it.
    let killed = Exit::Signal {
        signal: 9,
        core_dumped: false,
    };
    let may_be_lost = fs::File::open("/dev/kmsg").is_err();
    assert!(
        exit == Exit::OutOfMemory { limit } || may_be_lost && exit == killed,
        "{exit:?}"
    );
    let few = InstanceSpec {
        resources: Resources {
            processes: Some(8),
            ..Default::default()
        },
        ..world.spec(2, &["forks=20", "exit=0"])
    };
    let lines = world.lines(&target, &few).await;
    assert!(lines[0].starts_with("stopped by"), "{lines:?}");
}

/// A daemon loses that memory ran out when its host is busy, which cannot be had at will: here it hears of a kill alone, and
/// the kernel's log of its reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_daemon_was_not_told_the_kernel_knows() {
    let Some(world) = World::new() else { return };
    let Ok(mut log) = fs::File::options().write(true).open("/dev/kmsg") else {
        println!("skipped: the kernel's log is not to be written here");
        return;
    };
    let target = world.target();
    let limit = Bytes(48 << 20);
    let killed = Exit::Signal {
        signal: 9,
        core_dumped: false,
    };
    let ran_out = Exit::OutOfMemory { limit };
    for (number, is_logged, expected) in [(1, false, killed), (2, true, ran_out)] {
        let spec = InstanceSpec {
            resources: Resources {
                memory: Some(limit),
                ..Default::default()
            },
            ..world.spec(number, &["serve"])
        };
        target.start(fence(1), &spec).await.unwrap();
        let all = ["ps", "--quiet", "--no-trunc"];
        let container = world.dockerd.docker(&all).unwrap();
        if is_logged {
            let line = format!("landfast-test: oom_memcg=/docker/{container},task=app\n");
            log.write_all(line.as_bytes()).unwrap();
        }
        world.dockerd.docker(&["kill", &container]).unwrap();
        assert_eq!(target.wait(&spec.id).await.unwrap(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_writes_is_read_once_by_whoever_reads() {
    let Some(world) = World::new() else { return };
    let target = world.target();
    // A long line that the daemon cuts, both streams, and a last line without an end.
    world
        .start(
            &target,
            1,
            &[
                "out=one",
                "err=two",
                "sleep=400",
                "flood=100000",
                "out=last",
                "serve",
            ],
        )
        .await;
    until("the first line is read", || {
        world.log(1).contains(&"o one".to_owned())
    })
    .await;
    // Another server takes over in the middle of it.
    drop(target);
    let target = world.target();
    target.list().await.unwrap();
    until("the last line is read", || {
        world.log(1).contains(&"o last".to_owned())
    })
    .await;
    drop(target);
    let target = world.target();
    target.stop(fence(2), &id(1), Duration::ZERO).await.unwrap();
    let log = world.log(1);
    assert_eq!(log.len(), 1_003, "nothing twice, nothing missing");
    let count = |line: &str| log.iter().filter(|each| *each == line).count();
    assert_eq!((count("o one"), count("e two"), count("o last")), (1, 1, 1));
    // What a job wrote is there when its end is told.
    for number in 2..6 {
        let spec = InstanceSpec {
            is_job: true,
            ..world.spec(number, &["flood=20000", "err=end"])
        };
        let lines = world.lines(&target, &spec).await;
        assert_eq!(lines.len(), 201);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_check_of_an_image_is_asked_where_it_is_wanted() {
    let Some(mut world) = World::new() else {
        return;
    };
    if !world.dockerd.runs_checks() {
        println!("skipped: Podman runs an image's checks by timers of systemd, which is not here");
        return;
    }
    let check = "--interval=1s --retries=1 CMD [\"/app\", \"read=/tmp/well\", \"out=looked\", \"run=/app,exit=1\", \"exit=";
    world.image = world.import("checked:1", &[&format!("HEALTHCHECK {check}0\"]")]);
    let target = world.target();
    let checked = |world: &World, number| InstanceSpec {
        container: ContainerOptions {
            health: HealthSource::Image,
            ..options(&[])
        },
        ..world.spec(number, &["serve"])
    };
    let first = target.start(fence(1), &checked(&world, 1)).await.unwrap();
    assert_eq!(first.health, Some(ImageHealth::Starting));
    world.image = world.import("checked:2", &[&format!("HEALTHCHECK {check}1\"]")]);
    target.start(fence(1), &checked(&world, 2)).await.unwrap();
    let unasked = world.start(&target, 3, &["serve"]).await;
    assert_eq!(unasked.health, None);
    for _ in 0..500 {
        let health = [1, 2].map(id);
        let mut seen = Vec::new();
        for id in &health {
            seen.push(target.observe(id).await.unwrap().unwrap().health.unwrap());
        }
        if let [ImageHealth::Passing, ImageHealth::Failing { output }] = seen.as_slice() {
            assert!(output.contains("looked"), "{output}");
            let told = target.observe(&id(3)).await.unwrap().unwrap();
            assert_eq!((told.health, told.state), (None, ObservedState::Running));
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the checks were never heard of");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_what_an_image_cannot_do() {
    let Some(world) = World::new() else { return };
    let target = world.target();
    let silent = InstanceSpec {
        command: Vec::new(),
        ..world.spec(1, &[])
    };
    let refused = target.start(fence(1), &silent).await.unwrap_err();
    assert!(
        matches!(&refused, StartError::Impossible(text) if text.contains("names no command")),
        "{refused}"
    );
    let deaf = InstanceSpec {
        listens: true,
        container: ContainerOptions {
            port: None,
            ..options(&[])
        },
        ..world.spec(1, &["serve"])
    };
    let refused = target.start(fence(1), &deaf).await.unwrap_err();
    assert!(refused.to_string().contains("port = 8080"), "{refused}");
    assert_eq!(target.observe(&id(1)).await.unwrap(), None);
    world.start(&target, 1, &["serve"]).await;
    assert_eq!(
        world
            .dockerd
            .docker(&[
                "network",
                "ls",
                "--quiet",
                "--filter",
                "label=dev.landfast.network"
            ])
            .unwrap()
            .lines()
            .count(),
        1
    );
    target.stop(fence(2), &id(1), Duration::ZERO).await.unwrap();
    target.forget(&id(1)).await.unwrap();
    // The last one out takes the network along.
    assert_eq!(
        world
            .dockerd
            .docker(&[
                "network",
                "ls",
                "--quiet",
                "--filter",
                "label=dev.landfast.network"
            ])
            .unwrap(),
        ""
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_nobody_reads_is_ended() {
    let Some(world) = World::new() else { return };
    let target = world.target();
    world.start(&target, 1, &["serve"]).await;
    let word = format!("out=unread-{}", std::process::id());
    let words = vec!["/app".to_owned(), word.clone(), "serve".to_owned()];
    let mut output = target.exec(&id(1), words, Vec::new()).await.unwrap();
    let first = output.recv().await;
    let line = format!("{}\n", word.trim_start_matches("out="));
    assert_eq!(first, Some(ExecOutput::Stdout(line.into_bytes())));
    // The host sees what runs in containers.
    let is_running = || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .any(|words| words.starts_with(format!("/app\0{word}\0").as_bytes()))
    };
    assert!(is_running());
    drop(output);
    until("the command is ended", || !is_running()).await;
    let instance = target.observe(&id(1)).await.unwrap().unwrap();
    assert_eq!(instance.state, ObservedState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_is_whole_waits_for_its_reader_and_is_kept_nowhere() {
    const BYTES: usize = 40_000_000;
    let Some(world) = World::new() else { return };
    let target = world.target();
    let words = [
        "out=first",
        "err=beside",
        &format!("flood={BYTES}"),
        "exit=3",
    ];
    let spec = world.spec(1, &words);
    let (_, mut output) = target.start_read(fence(1), &spec).await.unwrap();
    // More than all pipes and the daemon hold: it waits.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let observed = target.observe(&spec.id).await.unwrap().unwrap();
    assert_eq!(observed.state, ObservedState::Running);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(piece) = output.recv().await {
        match piece {
            ExecOutput::Stdout(bytes) => stdout.extend(bytes),
            ExecOutput::Stderr(bytes) => stderr.extend(bytes),
            ExecOutput::Exited(exit) => panic!("{exit}"),
        }
    }
    assert_eq!(stdout.len(), "first\n".len() + BYTES);
    assert!(stdout.starts_with(b"first\nxxx"));
    assert_eq!(stderr, b"beside\n");
    let exit = target.wait(&spec.id).await.unwrap();
    assert_eq!(exit, Exit::Code { code: 3 });
    assert_eq!(world.log(1), Vec::<String>::new());
    // An id is started once, and its output is read once.
    let again = target.start_read(fence(1), &spec).await.unwrap_err();
    assert!(matches!(again, StartError::Impossible(_)), "{again}");
    // Whoever reads no more ends nothing.
    let left = world.spec(2, &[&format!("flood={BYTES}"), "exit=4"]);
    let (_, output) = target.start_read(fence(1), &left).await.unwrap();
    drop(output);
    let exit = target.wait(&left.id).await.unwrap();
    assert_eq!(exit, Exit::Code { code: 4 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_means_root_is_root() {
    let Some(world) = World::new() else { return };
    let target = world.target();
    let passwd = world.folder.path().join("image/etc/passwd");
    let text = "root:x:0:0::/:/\ntoor:x:0:0::/:/\nweb:x:4711:4711::/:/\n";
    fs::write(&passwd, text).unwrap();
    let mut number = 0;
    let mut user_of = async |name: &str, lines: &[&str]| {
        number += 1;
        let image = world.import(name, lines);
        let spec = InstanceSpec {
            content: landfast_target::Content::Image(image),
            ..world.spec(number, &["status=Uid"])
        };
        let lines = world.lines(&target, &spec).await;
        let user = lines[0].split_whitespace().nth(1).unwrap();
        user.parse::<u32>().unwrap()
    };
    for user in [
        "toor", "toor:web", "root", "0", "0:4711", "00", "+0", "-0", "",
    ] {
        let line = format!("USER {user}");
        let lines = [line.as_str()];
        let lines = if user.is_empty() { &[][..] } else { &lines };
        let user_number = user_of("users:1", lines).await;
        assert!(user_number >= 1_900_000_000, "{user}: {user_number}");
    }
    assert_eq!(user_of("users:1", &["USER web"]).await, 4711);
    assert_eq!(user_of("users:1", &["USER 4711:0"]).await, 4711);
    // A link could lead anywhere: nobody is taken for harmless because of it.
    fs::rename(&passwd, passwd.with_file_name("users")).unwrap();
    std::os::unix::fs::symlink("users", &passwd).unwrap();
    assert!(user_of("users:2", &["USER toor"]).await >= 1_900_000_000);
    // Nobody starts as a name that is nowhere.
    fs::remove_file(&passwd).unwrap();
    let nowhere = InstanceSpec {
        content: landfast_target::Content::Image(world.import("users:3", &["USER toor"])),
        ..world.spec(90, &["status=Uid"])
    };
    target.start(fence(1), &nowhere).await.unwrap_err();
    let looks = ["ps", "--all", "--quiet", "--filter", "name=look"];
    assert_eq!(world.dockerd.docker(&looks).unwrap(), "");
}
