//! Full TLS handshakes. Each is proven by one request over the connection, which then ends.

use std::{cell::Cell, rc::Rc, time::Duration};

use serde::Serialize;
use tokio::task::JoinSet;

use crate::target::{self, Target};

/// What was done.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Done {
    completed: u64,
    failed: u64,
    /// The first failure.
    error: Option<String>,
}

/// Opens connections for a time, some at a time.
pub(crate) async fn run(target: Target, time: Duration, at_a_time: usize) -> Done {
    let completed = Rc::new(Cell::new(0_u64));
    let over = Rc::new(Cell::new(false));
    let mut tasks = JoinSet::new();
    for _ in 0..at_a_time {
        let (target, completed, over) = (target.clone(), Rc::clone(&completed), Rc::clone(&over));
        tasks.spawn_local(async move {
            let mut failed = (0_u64, None);
            while !over.get() {
                match once(&target).await {
                    Ok(()) => completed.set(completed.get() + 1),
                    Err(error) => {
                        failed.0 += 1;
                        failed.1.get_or_insert_with(|| error.to_string());
                    }
                }
            }
            failed
        });
    }
    tokio::time::sleep(time).await;
    over.set(true);
    let mut done = Done::default();
    for (count, error) in tasks.join_all().await {
        done.failed += count;
        done.error = done.error.or(error);
    }
    done.completed = completed.get();
    done
}

async fn once(target: &Target) -> std::io::Result<()> {
    let mut connection = target.connect().await?;
    target::get(&mut connection, "Connection: close\r\n").await
}
