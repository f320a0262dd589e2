//! How many connections one process may keep to a managed database.
//!
//! A release is given half of what the server takes: during a rollout, a restart and a way back two of them run, each with all
//! its replicas at the most. So two releases never ask for more than there is, whatever the replicas of the other one are.
//! Jobs count as one process each.

use std::{collections::BTreeMap, fmt};

use landfast_spec::AppSpec;
use landfast_types::{ServiceName, StoreName};

use crate::{change::Wanted, server::tuned};

/// What is kept back: three that PostgreSQL keeps for its superuser, and Landfast's own (measuring, a runner with its lock, a dump,
/// a change of passwords, people with `store psql`).
pub const KEPT_BACK: u32 = 10;
/// More seldom gets more done: a server works on about as many statements at once as it has cores.
pub const SHARE_MAX: u32 = 20;

/// The processes of a release that use a database, and the connections there are for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Connections the server takes (`max_connections`).
    pub connections: u32,
    /// Those of one release.
    pub per_release: u32,
    /// Replicas of all services that use it, and jobs.
    pub processes: u32,
}

/// A release could ask for more connections than its half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany {
    pub demand: Demand,
    /// Connections of one process at the most.
    pub each: u32,
}

impl std::error::Error for TooMany {}

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Demand {
            connections,
            per_release,
            processes,
        } = self.demand;
        let asked = u64::from(processes) * u64::from(self.each);
        write!(
            f,
            "its {processes} processes with {} connections each may ask for {asked}; it takes {connections}, {KEPT_BACK} of them are kept \
             back, and half of the rest, {per_release}, is for one release, since two run during a rollout",
            self.each
        )
    }
}

impl Demand {
    /// What a manifest's processes ask of a store; `None` where somebody else runs it.
    pub fn of(spec: &AppSpec, name: &StoreName) -> Option<Self> {
        Self::with(spec, name, &BTreeMap::new())
    }

    /// The same with replicas that a person has set in the place of the manifest's.
    pub fn with(
        spec: &AppSpec,
        name: &StoreName,
        scaled: &BTreeMap<ServiceName, u32>,
    ) -> Option<Self> {
        let wanted = Wanted::of(spec.stores.get(name)?)?;
        // A setting the server will not take is refused by the server; until then it gives none.
        let connections = tuned(&wanted)
            .get("max_connections")?
            .parse()
            .unwrap_or_default();
        let services = spec.services.iter();
        let replicas = services
            .filter(|(_, service)| service.uses.contains(name))
            .map(|(of, service)| scaled.get(of).copied().unwrap_or(service.replicas));
        let jobs = spec.jobs.values().filter(|job| job.uses.contains(name));
        Some(Self {
            connections,
            per_release: connections.saturating_sub(KEPT_BACK) / 2,
            processes: replicas.sum::<u32>() + jobs.count() as u32,
        })
    }

    /// The connections of one process: as many as are wished for, or an equal share.
    ///
    /// # Errors
    /// [`TooMany`]: all of them together may ask for more than there is.
    pub fn each(self, wished: Option<u32>) -> Result<u32, TooMany> {
        let share = self.per_release / self.processes.max(1);
        let each = wished.unwrap_or_else(|| share.clamp(1, SHARE_MAX));
        if each <= share {
            Ok(each)
        } else {
            Err(TooMany { demand: self, each })
        }
    }
}

/// The most connections that one process of a manifest keeps to a store that has a `pool`; `None` for one that has none.
///
/// # Errors
/// [`TooMany`].
pub fn pool_max(spec: &AppSpec, name: &StoreName) -> Result<Option<u32>, TooMany> {
    let Some(pool) = spec.stores.get(name).and_then(|store| store.pool.as_ref()) else {
        return Ok(None);
    };
    match Demand::of(spec, name) {
        Some(demand) => demand.each(pool.max).map(Some),
        // Of somebody else's server the manifest says it.
        None => Ok(pool.max),
    }
}

/// Whether the pools of a manifest's processes fit, with replicas that a person has set. Each process was told its size by the manifest's.
///
/// # Errors
/// [`TooMany`].
pub fn pools_fit(
    spec: &AppSpec,
    name: &StoreName,
    scaled: &BTreeMap<ServiceName, u32>,
) -> Result<(), TooMany> {
    let each = pool_max(spec, name)?;
    match each.zip(Demand::with(spec, name, scaled)) {
        Some((each, demand)) => demand.each(Some(each)).map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use landfast_types::EnvironmentName;

    use super::*;

    fn demand(connections: u32, processes: u32) -> Demand {
        Demand {
            connections,
            per_release: (connections - KEPT_BACK) / 2,
            processes,
        }
    }

    #[test]
    fn a_release_shares_its_half_among_its_processes() {
        // 51 connections of 256 MiB: 20 for each release.
        assert_eq!(demand(51, 3).each(None), Ok(6));
        assert_eq!(demand(51, 3).each(Some(6)), Ok(6));
        assert_eq!(demand(51, 3).each(Some(2)), Ok(2));
        assert_eq!(demand(51, 20).each(None), Ok(1));
        assert_eq!(demand(500, 1).each(None), Ok(SHARE_MAX));
        assert_eq!(demand(500, 1).each(Some(200)), Ok(200));
        assert_eq!(demand(51, 0).each(None), Ok(SHARE_MAX));
        let too_many = demand(51, 3).each(Some(7)).unwrap_err();
        assert_eq!(
            too_many.to_string(),
            "its 3 processes with 7 connections each may ask for 21; it takes 51, 10 of them are kept back, and half of the \
             rest, 20, is for one release, since two run during a rollout"
        );
        assert!(demand(51, 21).each(None).is_err(), "not one for each");
    }

    /// Whatever two releases a rollout leads from one to the other, together they fit.
    #[test]
    fn two_releases_never_ask_for_more_than_the_server_gives() {
        for connections in [40, 51, 102, 204, 500] {
            let asked = |processes| {
                let each = demand(connections, processes).each(None);
                each.map_or(0, |each| each * processes)
            };
            for old in 1..60 {
                for new in 1..60 {
                    let both = asked(old) + asked(new);
                    assert!(
                        both + KEPT_BACK <= connections,
                        "{old} and {new} of {connections}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_manifest_says_who_asks() {
        let text = "app = \"shop\"\n\
            [services.api]\nartifact = \"a\"\ncommand = [\"./a\"]\nport = 3000\nreplicas = 3\nuses = [\"main\"]\n\
            [services.web]\nartifact = \"a\"\ncommand = [\"./a\"]\nreplicas = 9\n\
            [jobs.nightly]\nartifact = \"a\"\ncommand = [\"./a\"]\nuses = [\"main\"]\n\
            [stores.main]\nengine = \"postgres\"\nmemory = \"256MiB\"\npool = {}\n\
            [stores.far]\nengine = \"postgres\"\nexternal = { url_secret = \"FAR\" }\npool = { max = 7 }\n\
            [stores.plain]\nengine = \"mariadb\"\nsettings = { max_connections = \"90\" }\n";
        let production = EnvironmentName::new("production").expect("a name");
        let parsed = landfast_spec::parse("landfast.toml", text, &production);
        let spec = parsed
            .spec
            .unwrap_or_else(|| panic!("{:?}", parsed.diagnostics));
        let name = |name: &str| StoreName::new(name).expect("a name");
        let found = Demand::of(&spec, &name("main")).expect("managed");
        assert_eq!(
            (found.connections, found.per_release, found.processes),
            (51, 20, 4)
        );
        assert_eq!(pool_max(&spec, &name("main")), Ok(Some(5)));
        // Of 20, four processes have 5 each; what is scaled up has as many.
        let scaled = |replicas| BTreeMap::from([("api".parse().unwrap(), replicas)]);
        assert_eq!(pools_fit(&spec, &name("main"), &scaled(3)), Ok(()));
        assert_eq!(pools_fit(&spec, &name("main"), &scaled(1)), Ok(()));
        let too_many = pools_fit(&spec, &name("main"), &scaled(4)).unwrap_err();
        assert_eq!((too_many.demand.processes, too_many.each), (5, 5));
        assert_eq!(pools_fit(&spec, &name("plain"), &scaled(400)), Ok(()));
        assert_eq!(pools_fit(&spec, &name("far"), &scaled(400)), Ok(()));
        assert_eq!(pool_max(&spec, &name("far")), Ok(Some(7)));
        assert_eq!(pool_max(&spec, &name("plain")), Ok(None));
        let plain = Demand::of(&spec, &name("plain")).expect("managed");
        assert_eq!((plain.connections, plain.processes), (90, 0));
    }
}
