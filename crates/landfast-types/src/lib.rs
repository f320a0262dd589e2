//! The words every crate shares: names, ids, instants, sizes, digests and secrets.
//!
//! This crate knows no clock, file, socket or random source. It never decides anything: it only makes
//! sure that a name is a name, a duration has a unit and a secret does not print.

mod digest;
mod generation;
mod histogram;
mod image;
mod name;
mod network;
mod protection;
mod secret;
mod time;
mod units;

pub use crate::{
    digest::{Digest, DigestError, Hasher},
    generation::{Fence, FenceGuard, Generation, StaleFence},
    histogram::Histogram,
    image::{ImageId, ImageIdError, ImageReference, ImageReferenceError},
    name::{
        AppName, EnvironmentName, InstanceId, InstanceIdError, JobName, NAME_LEN_MAX, Name,
        NameError, ReleaseId, RolloutId, RouteName, Scope, ServiceKey, ServiceKeyError,
        ServiceName, StoreName,
    },
    network::{Network, NetworkError},
    protection::{Protection, ProtectionPart, ProtectionState},
    secret::Secret,
    time::Timestamp,
    units::{
        Bytes, Cpu, Percent, UnitError, format_duration, parse_bytes, parse_cpu, parse_duration,
    },
};
