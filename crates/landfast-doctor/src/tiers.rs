//! What a host should have for so many users: the hardware tables of the applications Landfast was made for, the
//! harder figure where two of them differ. Gigabytes are powers of ten, as hardware is sold.

/// A size of host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// Who use it at one time, at most.
    pub users: u64,
    pub cores: u64,
    pub memory_gb: u64,
    pub disk_gb: u64,
    pub network_mbps: Option<u64>,
    /// Hosts of this size that share the load.
    pub hosts: u64,
}

/// In order of size.
pub const TIERS: &[Tier] = &[
    // The least any of them asks for: development, or a handful of users.
    tier_of(10, 2, 4, 10, None, 1),
    tier_of(100, 4, 16, 500, Some(1_000), 2),
    tier_of(300, 4, 16, 500, Some(1_000), 2),
    tier_of(1_000, 8, 32, 2_000, Some(10_000), 3),
    tier_of(10_000, 16, 32, 10_000, Some(25_000), 5),
];

const fn tier_of(
    users: u64,
    cores: u64,
    memory_gb: u64,
    disk_gb: u64,
    network_mbps: Option<u64>,
    hosts: u64,
) -> Tier {
    Tier {
        users,
        cores,
        memory_gb,
        disk_gb,
        network_mbps,
        hosts,
    }
}

/// The smallest size that is enough, or the largest there is.
pub fn tier(users: u64) -> Tier {
    let enough = TIERS.iter().find(|tier| tier.users >= users);
    *enough.unwrap_or(&TIERS[TIERS.len() - 1])
}
