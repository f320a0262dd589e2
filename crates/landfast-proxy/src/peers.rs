//! How many connections each client holds. One client alone must not take the room of all others, slow or not.
//!
//! Connections from trusted proxies are not held to it, since behind them stand many, nor are those from this host
//! unless they are to be counted too.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use landfast_routing::admission::{Trust, client_bits};

use crate::counters::Counter;

/// Clients that connect at the same time seldom meet at the same lock.
const SHARDS: usize = 16;

type Shard = Mutex<HashMap<u64, u32>>;

/// The connections of all clients. It holds an entry only for who is connected.
pub(crate) struct Peers {
    connections_max: u32,
    trust: Trust,
    counts_loopback: bool,
    hasher: RandomState,
    shards: [Shard; SHARDS],
    pub(crate) refused: Counter,
}

/// One connection of a client. Dropping it gives its place up.
pub(crate) struct Seat {
    peers: Arc<Peers>,
    client: Option<u64>,
}

impl Peers {
    pub(crate) fn new(connections_max: u32, trust: Trust, counts_loopback: bool) -> Arc<Self> {
        Arc::new(Self {
            connections_max,
            trust,
            counts_loopback,
            hasher: RandomState::new(),
            shards: Default::default(),
            refused: Counter::default(),
        })
    }

    /// A place for a connection, or nothing where its client has as many as it may.
    pub(crate) fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Seat> {
        let peer = peer.to_canonical();
        let seat = |client| Seat {
            peers: Arc::clone(self),
            client,
        };
        let is_own = peer.is_loopback() && !self.counts_loopback;
        if is_own || self.trust.covers(peer) {
            return Some(seat(None));
        }
        let client = client_bits(peer);
        let mut shard = self.shard(client);
        let held = shard.entry(client).or_insert(0);
        if *held >= self.connections_max {
            self.refused.add(1);
            return None;
        }
        *held += 1;
        Some(seat(Some(client)))
    }

    fn shard(&self, client: u64) -> MutexGuard<'_, HashMap<u64, u32>> {
        let index = self.hasher.hash_one(client) as usize % SHARDS;
        self.shards[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(client) = self.client else { return };
        let mut shard = self.peers.shard(client);
        let left = shard.get_mut(&client).map(|held| {
            *held = held.saturating_sub(1);
            *held
        });
        if left == Some(0) {
            shard.remove(&client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_so_many_places_and_those_that_many_share_have_no_bound() {
        let trust = Trust {
            proxies: vec!["10.0.0.0/8".parse().expect("a network")],
            ..Trust::default()
        };
        let peers = Peers::new(2, trust, false);
        let enter = |address: &str| peers.enter(address.parse().expect("an address"));
        let first = enter("192.0.2.1");
        let second = enter("::ffff:192.0.2.1");
        assert!(first.is_some() && second.is_some());
        assert!(enter("192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some());
        drop(first);
        assert!(enter("192.0.2.1").is_some(), "the place was given up");
        let one = (enter("2001:db8::1"), enter("2001:db8::2"));
        assert!(one.1.is_some() && enter("2001:db8::3").is_none());
        let many: Vec<_> = (0..10)
            .map(|_| (enter("127.0.0.1"), enter("10.0.0.1")))
            .collect();
        assert!(
            many.iter()
                .all(|(own, proxy)| own.is_some() && proxy.is_some())
        );
        assert_eq!(peers.refused.get(), 2);
        drop((second, one, many));
        assert!(
            peers
                .shards
                .iter()
                .all(|shard| shard.lock().expect("no panic").is_empty())
        );
    }
}
