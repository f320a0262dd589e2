//! From the engine's values to the API's. Each is converted explicitly: neither side changes with the other.

mod backup;
mod doctor;
mod environment;
mod event;
mod migration;
mod protection;
mod rollout;
mod secret;
mod store;
mod traffic;

pub(crate) use self::{
    backup::{backup_end, backup_metrics, backup_troubles, store_backups},
    environment::{app_summary, environment_status, history, routes},
    event::event,
    migration::{migrate_plan, migration_status, planned, rehearsal},
    protection::protections,
    rollout::rollout_by_id,
    secret::{deed_word, secret_event},
    store::{rotation_event, store_metrics, store_troubles, stores},
    traffic::traffic,
};
pub use self::{doctor::diagnosis, event::event_text};
