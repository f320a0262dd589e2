//! Fencing: whatever can be superseded carries a generation, and the older one is refused.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A life of the server on one state folder. Each start takes the next one and records it before it acts,
/// so a server that wakes up late is told apart from the one that replaced it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The place of an order in the sequence of all orders: first the server's generation, then a number that
/// this server counts up. A later order compares greater.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Fence {
    pub generation: Generation,
    pub revision: u64,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.revision)
    }
}

/// An order from a server that has been replaced, or one that a later order overtook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("order {refused} is older than {seen}, which was already taken")]
pub struct StaleFence {
    pub refused: Fence,
    pub seen: Fence,
}

/// Remembers the newest order taken and refuses older ones. The shims and the proxy each hold one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceGuard {
    seen: Fence,
}

impl FenceGuard {
    /// A guard that has seen `seen`.
    pub fn new(seen: Fence) -> Self {
        Self { seen }
    }

    /// The newest order taken so far.
    pub fn seen(&self) -> Fence {
        self.seen
    }

    /// Takes an order, or refuses it. An order equal to the newest is taken again: orders are idempotent.
    ///
    /// # Errors
    /// [`StaleFence`] when a newer order was taken before.
    pub fn take(&mut self, order: Fence) -> Result<(), StaleFence> {
        if order < self.seen {
            return Err(StaleFence {
                refused: order,
                seen: self.seen,
            });
        }
        self.seen = order;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_an_older_server_says_late() {
        let fence = |generation, revision| Fence {
            generation: Generation(generation),
            revision,
        };
        let mut guard = FenceGuard::default();
        assert!(guard.take(fence(1, 9)).is_ok());
        assert!(guard.take(fence(2, 1)).is_ok());
        assert!(guard.take(fence(2, 1)).is_ok());
        let stale = guard
            .take(fence(1, 10))
            .expect_err("generation 1 was replaced");
        assert_eq!(stale.seen, fence(2, 1));
        assert_eq!(guard.seen(), fence(2, 1));
    }
}
