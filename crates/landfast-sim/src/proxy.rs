//! The proxy of a simulated host: the table in force, and what is in flight by it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use landfast_rollout::{MemberState, Traffic, TrafficMode};
use landfast_types::{Fence, FenceGuard, InstanceId, StaleFence};

use crate::{Millis, dice::Dice};

/// A request or a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight {
    pub ends_at: Millis,
    pub is_stream: bool,
}

/// Drain times of a service, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainTimes {
    pub requests: Millis,
    pub streams: Millis,
}

impl DrainTimes {
    pub fn new(requests: Duration, streams: Duration) -> Self {
        Self {
            requests: requests.as_millis() as Millis,
            streams: streams.as_millis() as Millis,
        }
    }

    pub fn longest(self) -> Millis {
        self.requests.max(self.streams)
    }
}

/// The proxy. Its table and its guard survive a restart, what is in flight does not.
#[derive(Debug, Clone, Default)]
pub struct Proxy {
    pub table: Traffic,
    pub guard: FenceGuard,
    /// As [`crate::target::Body::heard`].
    pub heard: u64,
    pub down_until: Millis,
    pub flights: BTreeMap<InstanceId, Vec<Flight>>,
    pub draining_since: BTreeMap<InstanceId, Millis>,
    /// Those that were told to leave at once: nobody waits for what is in flight to them.
    pub leaving: BTreeSet<InstanceId>,
    pub obeys_stale: bool,
}

impl Proxy {
    /// Takes a table, or refuses it; true: it came from a replaced server all the same.
    pub fn take(
        &mut self,
        now: Millis,
        order: Fence,
        table: &Traffic,
        drain: impl Fn(&InstanceId) -> DrainTimes,
        dice: &mut Dice,
    ) -> Result<bool, StaleFence> {
        let stale = order.generation.0 < self.heard;
        self.heard = self.heard.max(order.generation.0);
        match self.guard.take(order) {
            Err(error) if !self.obeys_stale => return Err(error),
            Err(_) | Ok(()) => {}
        }
        self.table = table.clone();
        let members: BTreeMap<&InstanceId, MemberState> = members(table).collect();
        self.draining_since
            .retain(|id, _| members.get(id).is_none_or(|m| *m != MemberState::Serving));
        for (id, state) in members {
            if state == MemberState::Leaving {
                self.leaving.insert(id.clone());
            }
            if state == MemberState::Serving || self.draining_since.contains_key(id) {
                continue;
            }
            self.draining_since.insert(id.clone(), now);
            let times = drain(id);
            for flight in self.flights.entry(id.clone()).or_default() {
                let latest = if flight.is_stream {
                    now + dice.between(0, times.streams)
                } else {
                    now + times.requests
                };
                flight.ends_at = flight.ends_at.min(latest);
            }
        }
        Ok(stale)
    }

    /// A few requests, by the table in force.
    pub fn serve(&mut self, now: Millis, dice: &mut Dice) {
        for flights in self.flights.values_mut() {
            flights.retain(|flight| flight.ends_at > now);
        }
        self.flights.retain(|_, flights| !flights.is_empty());
        if now < self.down_until {
            return;
        }
        for service in self.table.services.values() {
            if service.mode != TrafficMode::Serve {
                continue;
            }
            let sum: u64 = service.groups.values().map(|g| u64::from(g.weight)).sum();
            if sum == 0 {
                continue;
            }
            for _ in 0..2 {
                let mut left = dice.between(0, sum - 1);
                let group = service.groups.values().find(|group| {
                    let here = left < u64::from(group.weight);
                    left = left.saturating_sub(u64::from(group.weight));
                    here
                });
                let members = group.into_iter().flat_map(|group| &group.members);
                let serving: Vec<_> = members
                    .filter(|(_, state)| **state == MemberState::Serving)
                    .map(|(id, _)| id)
                    .collect();
                if serving.is_empty() {
                    continue;
                }
                let id = (*dice.pick(&serving)).clone();
                let kind = dice.between(0, 19);
                let (lasts, is_stream) = match kind {
                    0 => (dice.between(5_000, 120_000), true),
                    1..3 => (3_000, false),
                    _ => (dice.between(5, 400), false),
                };
                let ends_at = now + lasts;
                let flight = Flight { ends_at, is_stream };
                self.flights.entry(id).or_default().push(flight);
            }
        }
    }

    /// How much is in flight to an instance.
    pub fn in_flight(&self, now: Millis, id: &InstanceId) -> usize {
        let flights = self.flights.get(id).map_or(&[][..], Vec::as_slice);
        flights.iter().filter(|flight| flight.ends_at > now).count()
    }

    /// Whether the table in force offers an instance to new requests.
    pub fn offers(&self, id: &InstanceId) -> bool {
        in_rotation(&self.table).any(|(_, member)| member == id)
    }

    /// The worker is replaced: what was in flight is gone.
    pub fn restart(&mut self, now: Millis, down: Millis) {
        self.flights.clear();
        self.down_until = now + down;
        for since in self.draining_since.values_mut() {
            *since = now;
        }
    }
}

/// Every member of a table.
pub fn members(table: &Traffic) -> impl Iterator<Item = (&InstanceId, MemberState)> {
    let groups = table.services.values().flat_map(|s| s.groups.values());
    groups.flat_map(|group| group.members.iter().map(|(id, state)| (id, *state)))
}

/// The members that new requests go to, by service.
pub fn in_rotation(
    table: &Traffic,
) -> impl Iterator<Item = (&landfast_types::ServiceName, &InstanceId)> {
    let served = table
        .services
        .iter()
        .filter(|(_, s)| s.mode == TrafficMode::Serve);
    served.flat_map(|(name, service)| {
        let weighty = service.groups.values().filter(|group| group.weight > 0);
        let members = weighty.flat_map(|group| &group.members);
        members
            .filter(|(_, state)| **state == MemberState::Serving)
            .map(move |(id, _)| (name, id))
    })
}
