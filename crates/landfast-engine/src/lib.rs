//! Drives environments: the journal, the target, the proxy and the clock around the pure engine.
//!
//! Per environment one loop on one screen ([`Driver`]): wait, decide, record, apply, act. It records before it
//! acts, so an action may be repeated, and starting after a crash is the same path as starting.
//!
//! It never decides anything itself about rollouts (`landfast-rollout` does), never touches a process (a
//! target does) or a request (the proxy does), and never acts on what the journal has not taken.

mod actions;
mod admission;
mod answers;
pub mod backups;
pub mod by_hand;
mod client;
mod clock;
mod driver;
mod gates;
pub mod jobs;
pub mod logs;
mod measure;
mod migrations;
mod part;
mod plane;
pub mod planning;
mod platform;
mod probe;
mod release;
mod secrets;
mod shared;
mod spec;
pub mod stores;
mod strays;
mod synthetic;
mod webhook;

pub use crate::{
    clock::{Clock, SystemClock},
    driver::{
        CommandError, Driver, DriverHandle, EVENT_KIND, EVENT_VERSION, Message, ReplayError, Reply,
        View, replay, stream_of,
    },
    migrations::{Sets, sets, warnings as migration_warnings},
    part::{backend_id, claims, part},
    plane::{DataPlane, Hub, Obtained, Part, PlaneError},
    platform::{
        DeployError, DeployOrder, Deployed, ImageProgress, ImagesError, Platform, PlatformSettings,
        Renewal, Resolved, RotateError, RunError, StartError, SwitchOrder, SwitchPlan,
        check_journal, image_warnings, restart_waits_for, settled_release,
    },
    release::{ReleaseBody, fingerprint, plan, topology},
    secrets::{
        COLLECTION as SECRETS, Kept, NewValue, Pinned, Revealed, SECRET_BYTES_MAX, SECRET_KIND,
        SecretCall, SecretDeed, SecretError, SecretFacts, SecretKeeper, SecretRecord, VersionFacts,
        read_record as read_secret_record, rewrap_all, unopened,
    },
    shared::{Controls, Folders, Shared},
    spec::forecast,
};
