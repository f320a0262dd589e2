//! Choosing ports on 127.0.0.1: round the range, so that a port that was just let go is not given out again soon.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::RangeInclusive,
    path::Path,
};

use landfast_shim::ShimState;

use crate::folder::Folder;

#[derive(Debug)]
pub(crate) struct Ports {
    range: RangeInclusive<u16>,
    /// Where a server without instances begins.
    first: u16,
    /// The port given out last; before the first, it is taken from the youngest instance there is.
    last: Option<u16>,
    /// Given to instances that are just being started.
    reserved: BTreeSet<u16>,
}

/// What the instances of a run folder use.
pub(crate) struct Used {
    ports: BTreeSet<u16>,
    youngest: Option<u16>,
}

impl Used {
    /// Reads every instance folder. One that cannot be read uses a port at most, which the bind test finds.
    pub(crate) fn scan(run: &Path) -> io::Result<Self> {
        let states = Folder::all(run)?.into_iter();
        let states = states.filter_map(|folder| ShimState::read(folder.path()).ok().flatten());
        let mut known: Vec<_> = states
            .filter_map(|state| {
                Some((
                    state.started_at,
                    state.address?.port(),
                    state.ended.is_none(),
                ))
            })
            .collect();
        known.sort_unstable();
        let youngest = known.last().map(|(_, port, _)| *port);
        let running = known.into_iter().filter(|(_, _, runs)| *runs);
        Ok(Self {
            ports: running.map(|(_, port, _)| port).collect(),
            youngest,
        })
    }
}

impl Ports {
    /// `seed` says where in the range to begin: between the look whether a port is free and the instance's own bind,
    /// another server of this machine may look too, so two servers should not go through the range side by side.
    pub(crate) fn new(range: RangeInclusive<u16>, seed: u64) -> Self {
        let count = u64::from(range.end().saturating_sub(*range.start())) + 1;
        let offset = u16::try_from(seed % count).unwrap_or(0);
        Self {
            first: range.start() + offset,
            range,
            last: None,
            reserved: BTreeSet::new(),
        }
    }

    pub(crate) fn range(&self) -> (u16, u16) {
        (*self.range.start(), *self.range.end())
    }

    /// Reserves the next port that nobody uses or listens on; `None` when there is none.
    pub(crate) fn reserve(&mut self, used: &Used) -> Option<u16> {
        let last = self
            .last
            .or(used.youngest)
            .filter(|last| self.range.contains(last));
        let start = *self.range.start();
        let next = match last {
            Some(last) if last < *self.range.end() => last + 1,
            Some(_) => start,
            None => self.first,
        };
        let mut round = (next..=*self.range.end()).chain(start..next);
        let port = round.find(|port| {
            !used.ports.contains(port) && !self.reserved.contains(port) && can_bind(*port)
        })?;
        self.last = Some(port);
        self.reserved.insert(port);
        Some(port)
    }

    /// The instance runs, or does not: either way its folder tells from here on.
    pub(crate) fn release(&mut self, port: u16) {
        self.reserved.remove(&port);
    }
}

fn can_bind(port: u16) -> bool {
    TcpListener::bind(address(port)).is_ok()
}

/// Where an instance of that port listens.
pub(crate) fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(ports: &[u16]) -> Used {
        Used {
            ports: ports.iter().copied().collect(),
            youngest: None,
        }
    }

    /// Three neighbouring ports that are free now.
    fn free() -> u16 {
        let all = (28_000..29_000).step_by(3);
        let mut free = all.filter(|first| (*first..first + 3).all(can_bind));
        free.next().expect("some port is free")
    }

    #[test]
    fn goes_round_the_range_past_what_is_taken() {
        let first = free();
        let mut ports = Ports::new(first..=first + 2, 0);
        assert_eq!(ports.reserve(&used(&[])), Some(first));
        assert_eq!(ports.reserve(&used(&[first + 1])), Some(first + 2));
        assert_eq!(ports.reserve(&used(&[first + 1])), None);
        ports.release(first);
        assert_eq!(ports.reserve(&used(&[])), Some(first));
        assert_eq!(ports.reserve(&used(&[])), Some(first + 1));
    }

    #[test]
    fn goes_on_after_the_youngest_instance() {
        let first = free();
        let mut ports = Ports::new(first..=first + 2, 0);
        let used = Used {
            ports: BTreeSet::new(),
            youngest: Some(first + 1),
        };
        assert_eq!(ports.reserve(&used), Some(first + 2));
    }

    #[test]
    fn begins_where_the_seed_says_and_still_finds_every_port() {
        let first = free();
        let mut ports = Ports::new(first..=first + 2, 5);
        let given: Vec<_> = (0..3).map(|_| ports.reserve(&used(&[]))).collect();
        assert_eq!(given, [Some(first + 2), Some(first), Some(first + 1)]);
    }

    #[test]
    fn leaves_out_a_port_that_a_stranger_listens_on() {
        let first = free();
        let _stranger = TcpListener::bind(address(first)).unwrap();
        assert_eq!(
            Ports::new(first..=first + 2, 0).reserve(&used(&[])),
            Some(first + 1)
        );
    }
}
