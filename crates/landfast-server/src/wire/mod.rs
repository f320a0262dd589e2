//! From the engine's values to the API's. Each is converted explicitly: neither side changes with the other.

mod environment;
mod event;
mod rollout;
mod traffic;

pub use self::event::event_text;
pub(crate) use self::{
    environment::{app_summary, environment_status, history, routes},
    event::event,
    rollout::rollout_by_id,
    traffic::traffic,
};
