//! Work that goes on for as long as the server does.

use tokio::{task::JoinSet, time::sleep};

use super::{RESTART_FIRST, RESTART_MAX};
use crate::client::now;

/// Runs something until it ends by itself; where it panics, again.
pub(super) async fn keep_running<F>(what: &'static str, begin: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut wait = RESTART_FIRST;
    loop {
        let begun = now();
        let mut task = JoinSet::new();
        task.spawn(begin());
        match task.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(what, %error, "it panicked; it is begun again");
            }
            Some(_) | None => return,
        }
        if now().saturating_duration_since(begun) > RESTART_MAX {
            wait = RESTART_FIRST;
        }
        sleep(wait).await;
        wait = (wait * 2).min(RESTART_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn what_panics_is_begun_again_until_it_ends_by_itself() {
        let begun = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&begun);
        keep_running("a test", move || {
            let counted = Arc::clone(&counted);
            async move {
                assert!(counted.fetch_add(1, Ordering::Relaxed) > 0, "the first one");
            }
        })
        .await;
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }
}
