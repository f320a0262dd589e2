//! What instances are held to, on the wire.

use landfast_api::{Protection, ProtectionState};
use landfast_types::{ProtectionPart as Part, ProtectionState as State};

pub(crate) fn protections(all: &[landfast_types::Protection]) -> Vec<Protection> {
    let one = |one: &landfast_types::Protection| Protection {
        part: part(one.part).to_owned(),
        state: state(one.state),
        text: one.to_string(),
    };
    all.iter().map(one).collect()
}

fn part(part: Part) -> &'static str {
    match part {
        Part::User => "user",
        Part::Privileges => "privileges",
        Part::Memory => "memory",
        Part::Cpu => "cpu",
        Part::Processes => "processes",
        Part::Descriptors => "descriptors",
        Part::Files => "files",
        Part::Temporary => "temporary",
        Part::Secrets => "secrets",
        Part::Unknown => "unknown",
    }
}

fn state(state: State) -> ProtectionState {
    match state {
        State::Enforced => ProtectionState::Enforced,
        State::Weaker => ProtectionState::Weaker,
        State::Missing => ProtectionState::Missing,
        State::Off => ProtectionState::Off,
        State::Unknown => ProtectionState::Unknown,
    }
}
