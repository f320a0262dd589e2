//! Who reaches whom, asked from inside of containers and from the host.

mod common;

use std::{net::SocketAddr, time::Duration};

use landfast_target::{
    ContainerNetwork, ContainerOptions, ExecOutput, Exit, InstanceSpec, NetworkJoin, Target as _,
};
use landfast_target_docker::DockerTarget;
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
    // The proxy is a process of the host, and reaches each at its own address.
    for address in &addresses {
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
