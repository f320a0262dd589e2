//! From the engine's values to the API's. Each is converted explicitly: neither side changes with the other.

mod doctor;
mod environment;
mod event;
mod protection;
mod rollout;
mod traffic;

pub use self::{doctor::diagnosis, event::event_text};
pub(crate) use self::{
    environment::{app_summary, environment_status, history, routes},
    event::event,
    protection::protections,
    rollout::rollout_by_id,
    traffic::traffic,
};
