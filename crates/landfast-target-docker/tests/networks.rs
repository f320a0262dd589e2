//! Who reaches whom, asked from inside of containers and from the host.

mod common;

use std::{net::SocketAddr, time::Duration};

use landfast_target::{
    ContainerNetwork, ContainerOptions, ExecOutput, Exit, InstanceSpec, NetworkJoin, Target as _,
};
use landfast_target_docker::DockerTarget;
use landfast_testbed::{DockerdOptions, Engine};
use landfast_types::StoreName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{PORT, World, fence, id_of, options};

/// What a container that is asked to reach an address says.
async fn reaches(target: &DockerTarget, from: (&str, u64), place: &str) -> bool {
    let command = ["/app", &format!("reach={place}")]
        .map(str::to_owned)
        .to_vec();
    let id = id_of(from.0, from.1);
    let mut output = target
        .exec(&id, command, Vec::new())
        .await
        .expect("it runs");
    let mut said = Vec::new();
    while let Some(piece) = output.recv().await {
        match piece {
            ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes) => said.extend(bytes),
            ExecOutput::Exited(exit) => assert_eq!(exit, Exit::Code { code: 0 }),
        }
    }
    let said = String::from_utf8(said).expect("text");
    assert!(said.starts_with("reach="), "{said}");
    said.trim().ends_with(" ok")
}

/// A store's container: in its own network only.
fn store(world: &World, app: &str, number: u64, name: &str) -> InstanceSpec {
    InstanceSpec {
        listens: true,
        container: ContainerOptions {
            port: Some(PORT),
            networks: vec![NetworkJoin {
                network: ContainerNetwork::Store(StoreName::new(name).expect("a name")),
                aliases: vec![name.to_owned()],
            }],
            ..Default::default()
        },
        ..world.spec_of(app, number, &["listen", "serve"])
    }
}

fn service(world: &World, app: &str, number: u64, alias: &str, stores: &[&str]) -> InstanceSpec {
    let mut container = options(stores);
    for join in &mut container.networks {
        join.aliases = vec![alias.to_owned()];
    }
    InstanceSpec {
        listens: true,
        container,
        ..world.spec_of(app, number, &["listen", "serve"])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_uses_a_store_reaches_it_and_no_app_another() {
    let Some(world) = World::new() else { return };
    let target = world.target();
    let specs = [
        store(&world, "shop", 1, "main"),
        store(&world, "shop", 2, "other"),
        service(&world, "shop", 3, "api", &["main"]),
        service(&world, "shop", 4, "web", &[]),
        store(&world, "blog", 1, "main"),
        service(&world, "blog", 2, "api", &["main"]),
    ];
    let mut addresses = Vec::new();
    for spec in &specs {
        let started = target.start(fence(1), spec).await.expect("it starts");
        addresses.push(started.address.expect("it listens"));
    }
    // Another daemon of this host takes no rule of this one away.
    let another = landfast_testbed::Dockerd::start().expect("there is room for two");
    // The proxy is a process of the host, and reaches each at its own address.
    // This host is another one than the daemon's in a test, and Podman's networks that lead nowhere let its own host in
    // alone.
    let is_let_in = |spec: &&InstanceSpec| {
        let is_environments =
            |join: &NetworkJoin| matches!(join.network, ContainerNetwork::Environment);
        !world.dockerd.is_podman() || spec.container.networks.iter().any(is_environments)
    };
    let asked = specs.iter().zip(&addresses);
    for (_, address) in asked.filter(|(spec, _)| is_let_in(spec)) {
        assert!(!answer(*address).await.is_empty(), "{address}");
    }
    let [main, other, api, web, blog_main, blog_api] =
        <[SocketAddr; 6]>::try_from(addresses).expect("six");
    let port = |name: &str| format!("{name}:{PORT}");
    // `uses` is the way in, by the store's name.
    assert!(reaches(&target, ("shop", 3), &port("main")).await);
    assert!(reaches(&target, ("blog", 2), &port("main")).await);
    // Without it there is neither a name nor a way.
    assert!(!reaches(&target, ("shop", 4), &port("main")).await);
    for place in [main, other] {
        assert!(
            !reaches(&target, ("shop", 4), &place.to_string()).await,
            "web has reached {place}"
        );
    }
    assert!(!reaches(&target, ("shop", 3), &other.to_string()).await);
    assert!(!reaches(&target, ("shop", 3), &port("other")).await);
    // Services of one app find each other.
    assert!(reaches(&target, ("shop", 3), &port("web")).await);
    assert!(reaches(&target, ("shop", 4), &api.to_string()).await);
    // Two apps do not, whatever they use; nor do stores reach out.
    for place in [blog_main, blog_api] {
        assert!(
            !reaches(&target, ("shop", 3), &place.to_string()).await,
            "shop has reached {place}"
        );
    }
    for place in [web, blog_api] {
        let reached = reaches(&target, ("blog", 1), &place.to_string()).await;
        assert!(!reached, "a store has reached {place}");
    }
    // The same name in another app is another network.
    assert_ne!(main, blog_main);
    target
        .stop(fence(2), &id_of("blog", 1), Duration::ZERO)
        .await
        .expect("it stops");
    assert!(!reaches(&target, ("blog", 2), &port("main")).await);
    assert!(reaches(&target, ("shop", 3), &port("main")).await);
    drop(another);
}

async fn answer(address: SocketAddr) -> String {
    for _ in 0..500 {
        if let Ok(mut stream) = tokio::net::TcpStream::connect(address).await {
            stream.write_all(b"x").await.expect("it listens");
            let mut answer = String::new();
            stream
                .read_to_string(&mut answer)
                .await
                .expect("it answers");
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{address} is not reached from the host");
}

/// Old daemons make a second network of a name where they are not told to look, as after an answer that came too late.
fn duplicate(world: &World, name: &str, labels: &serde_json::Value) -> String {
    let body = serde_json::json!({
        "Name": name, "Driver": "bridge", "CheckDuplicate": false, "Labels": labels,
    });
    let body = body.to_string();
    let mut stream =
        std::os::unix::net::UnixStream::connect(world.dockerd.socket()).expect("it listens");
    let request = format!(
        "POST /v1.41/networks/create HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut stream, request.as_bytes()).expect("it is asked");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let id = answer.split("\"Id\":\"").nth(1).expect("an id");
    id.split('"').next().expect("an id").to_owned()
}

fn networks(world: &World, name: &str) -> Vec<String> {
    let filter = format!("name=^{name}$");
    let listed = [
        "network",
        "ls",
        "--no-trunc",
        "--quiet",
        "--filter",
        &filter,
    ];
    let listed = world.dockerd.docker(&listed).expect("it lists");
    listed.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_network_of_a_name_goes_unless_somebody_joined_it() {
    let Some(world) = World::new() else { return };
    let version = world
        .dockerd
        .docker(&["version", "--format", "{{.Server.Version}}"]);
    let version = version.expect("it says");
    let major: u32 = version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .expect("a number");
    if major >= 25 || DockerdOptions::default().engine == Engine::Podman {
        eprintln!("skipped: this daemon ({version}) makes no second network of a name");
        return;
    }
    let target = world.target();
    let first = service(&world, "shop", 1, "api", &[]);
    target.start(fence(1), &first).await.expect("it starts");
    let told = world
        .dockerd
        .docker(&["network", "ls", "--format", "{{.Name}}"]);
    let told = told.expect("it lists");
    let name = told
        .lines()
        .find(|name| name.contains("shop"))
        .expect("its network")
        .to_owned();
    let inspect = ["network", "inspect", "--format", "{{json .Labels}}", &name];
    let labels = world.dockerd.docker(&inspect).expect("it is told");
    let labels: serde_json::Value = serde_json::from_str(&labels).expect("labels");
    let original = networks(&world, &name);

    // Nobody is in the second one: it goes, and nobody notices.
    duplicate(&world, &name, &labels);
    assert_eq!(networks(&world, &name).len(), 2);
    let second = service(&world, "shop", 2, "web", &[]);
    let started = target.start(fence(1), &second).await.expect("it starts");
    assert_eq!(networks(&world, &name), original);
    assert!(
        !answer(started.address.expect("it listens"))
            .await
            .is_empty()
    );
    let port = |name: &str| format!("{name}:{PORT}");
    assert!(reaches(&target, ("shop", 1), &port("web")).await);

    // Somebody is in it: both stay, and who comes joins where most are.
    let other = duplicate(&world, &name, &labels);
    let docker = |arguments: &[&str]| world.dockerd.docker(arguments).expect("it is done");
    docker(&["network", "create", "elsewhere"]);
    let guest = docker(&[
        "run",
        "--detach",
        "--network",
        "elsewhere",
        "app:1",
        "/app",
        "serve",
    ]);
    docker(&["network", "connect", &other, &guest]);
    let third = service(&world, "shop", 3, "third", &["main"]);
    let started = target.start(fence(1), &third).await.expect("it starts");
    assert!(
        !answer(started.address.expect("it listens"))
            .await
            .is_empty()
    );
    assert!(reaches(&target, ("shop", 1), &port("third")).await);
    assert!(reaches(&target, ("shop", 3), &port("api")).await);
    assert_eq!(networks(&world, &name).len(), 2);

    // A stranger's network of the same name is not ours to join or remove.
    let of_store = networks_of_store(&world);
    let strangers = duplicate(&world, &of_store, &serde_json::json!({}));
    let main = store(&world, "shop", 4, "main");
    target.start(fence(1), &main).await.expect("it starts");
    assert!(reaches(&target, ("shop", 3), &port("main")).await);

    // All that is ours goes with the last that was in it.
    docker(&["rm", "--force", &guest]);
    for spec in [&first, &second, &third, &main] {
        target
            .stop(fence(2), &spec.id, Duration::ZERO)
            .await
            .expect("it stops");
        target.forget(&spec.id).await.expect("it is forgotten");
    }
    assert_eq!(networks(&world, &name), Vec::<String>::new());
    assert_eq!(networks(&world, &of_store), [strangers]);
}

fn networks_of_store(world: &World) -> String {
    let told = world
        .dockerd
        .docker(&["network", "ls", "--format", "{{.Name}}"]);
    let told = told.expect("it lists");
    let name = told.lines().find(|name| name.ends_with(".store.main"));
    name.expect("the store's network").to_owned()
}
