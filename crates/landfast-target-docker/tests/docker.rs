//! Containers of a real daemon: the suite of every target, and what only containers do.

mod common;

use landfast_target::conformance;

use crate::common::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let Some(world) = World::new() else { return };
    conformance::suite(&world).await;
}
