//! What a daemon says of a container, in the words of a target. Pure.

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, Health, HealthStatusEnum,
    HealthcheckResult,
};
use landfast_target::{Exit, ImageHealth};
use landfast_types::{Bytes, Timestamp};

const SIGKILL: i64 = 9;
/// How daemons and shells say that a signal ended a process.
const SIGNAL_BASE: i64 = 128;
const SIGNAL_LAST: i64 = 64;
const HEALTH_OUTPUT_MAX: usize = 300;

/// Whether a container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Life {
    /// It was made, and never began.
    Made,
    Runs {
        pid: Option<u32>,
        since: Option<Timestamp>,
    },
    Ended {
        exit: Exit,
        at: Option<Timestamp>,
        since: Option<Timestamp>,
    },
}

/// Reads the state of a container whose memory limit is this.
pub(crate) fn life(state: &ContainerState, limit: Option<Bytes>) -> Life {
    let since = state.started_at.as_deref().and_then(instant);
    let pid = state.pid.and_then(|pid| u32::try_from(pid).ok());
    match state.status {
        Some(
            ContainerStateStatusEnum::RUNNING
            | ContainerStateStatusEnum::PAUSED
            | ContainerStateStatusEnum::RESTARTING
            | ContainerStateStatusEnum::STOPPING,
        ) => Life::Runs {
            pid: pid.filter(|pid| *pid != 0),
            since,
        },
        Some(
            ContainerStateStatusEnum::EXITED
            | ContainerStateStatusEnum::DEAD
            | ContainerStateStatusEnum::REMOVING,
        ) if since.is_some() => Life::Ended {
            exit: exit(state, limit),
            at: state.finished_at.as_deref().and_then(instant),
            since,
        },
        Some(
            ContainerStateStatusEnum::EMPTY
            | ContainerStateStatusEnum::CREATED
            | ContainerStateStatusEnum::EXITED
            | ContainerStateStatusEnum::DEAD
            | ContainerStateStatusEnum::REMOVING,
        )
        | None => Life::Made,
    }
}

/// How a container ended. A daemon says 128 + n of what signal n ended, and so does the init in it; a program that
/// ends itself with such a number is taken for one that was killed.
fn exit(state: &ContainerState, limit: Option<Bytes>) -> Exit {
    let Some(code) = state.exit_code else {
        return Exit::Unknown;
    };
    // The flag says that something in it was killed for its memory; the end is that one's where it was killed too.
    if state.oom_killed == Some(true) && code == SIGNAL_BASE + SIGKILL {
        return Exit::OutOfMemory {
            limit: limit.unwrap_or_default(),
        };
    }
    exit_of_code(code)
}

/// When a container was killed that has a limit of its memory and of which the daemon does not say why.
pub(crate) fn killed_under_a_limit(found: &ContainerInspectResponse) -> Option<Timestamp> {
    let state = found.state.as_ref()?;
    let limit = found.host_config.as_ref().and_then(|host| host.memory);
    let is_killed = state.exit_code == Some(SIGNAL_BASE + SIGKILL)
        && state.oom_killed != Some(true)
        && limit.is_some_and(|limit| limit > 0)
        && matches!(life(state, None), Life::Ended { .. });
    instant(state.finished_at.as_deref()?).filter(|_| is_killed)
}

/// How a process ended, by the code a daemon has of it.
pub(crate) fn exit_of_code(code: i64) -> Exit {
    let signals = SIGNAL_BASE + 1..=SIGNAL_BASE + SIGNAL_LAST;
    match i32::try_from(code - SIGNAL_BASE) {
        Ok(signal) if signals.contains(&code) => Exit::Signal {
            signal,
            core_dumped: false,
        },
        Ok(_) | Err(_) => Exit::Code {
            code: i32::try_from(code).unwrap_or(i32::MAX),
        },
    }
}

/// What the image's check says.
pub(crate) fn health(health: Option<&Health>) -> ImageHealth {
    let Some(health) = health else {
        return ImageHealth::NoCheck;
    };
    match health.status {
        Some(HealthStatusEnum::HEALTHY) => ImageHealth::Passing,
        Some(HealthStatusEnum::UNHEALTHY) => ImageHealth::Failing {
            output: last_words(health.log.as_deref().unwrap_or_default()),
        },
        Some(HealthStatusEnum::STARTING) => ImageHealth::Starting,
        Some(HealthStatusEnum::NONE | HealthStatusEnum::EMPTY) | None => ImageHealth::NoCheck,
    }
}

fn last_words(log: &[HealthcheckResult]) -> String {
    let Some(last) = log.last() else {
        return String::new();
    };
    let text = last.output.as_deref().unwrap_or_default();
    let line: Vec<_> = text.split_whitespace().collect();
    let line: String = line.join(" ").chars().take(HEALTH_OUTPUT_MAX).collect();
    match last.exit_code {
        Some(code) if line.is_empty() => format!("exit code {code}"),
        Some(_) | None => line,
    }
}

/// An instant as daemons write it (RFC 3339); `None` for the year 1, which means never.
pub(crate) fn instant(text: &str) -> Option<Timestamp> {
    let at: jiff::Timestamp = text.parse().ok()?;
    (at.as_second() > 0).then(|| Timestamp::from_micros(at.as_microsecond()))
}

#[cfg(test)]
mod tests {
    use bollard::models::HostConfig;

    use super::*;

    fn state(status: ContainerStateStatusEnum, code: i64, oom_killed: bool) -> ContainerState {
        ContainerState {
            status: Some(status),
            exit_code: Some(code),
            oom_killed: Some(oom_killed),
            started_at: Some("2026-11-22T06:24:37.503413655Z".to_owned()),
            finished_at: Some("2026-11-22T06:24:38Z".to_owned()),
            ..Default::default()
        }
    }

    #[test]
    fn reads_how_a_container_ended() {
        let signal = |signal| Exit::Signal {
            signal,
            core_dumped: false,
        };
        let limit = Bytes(64 << 20);
        for (code, oom_killed, expected) in [
            (0, false, Exit::Code { code: 0 }),
            (128, false, Exit::Code { code: 128 }),
            (137, false, signal(9)),
            (143, false, signal(15)),
            (137, true, Exit::OutOfMemory { limit }),
            // A child was killed for its memory, and the app ended by itself.
            (1, true, Exit::Code { code: 1 }),
            (255, false, Exit::Code { code: 255 }),
        ] {
            let state = state(ContainerStateStatusEnum::EXITED, code, oom_killed);
            let Life::Ended { exit, at, since } = life(&state, Some(limit)) else {
                panic!("it has ended");
            };
            assert_eq!(exit, expected, "{code}");
            assert!(at > since);
        }
    }

    #[test]
    fn only_what_was_killed_under_a_limit_may_have_run_out_of_memory() {
        let killed = |status, code, oom_killed, memory| {
            killed_under_a_limit(&ContainerInspectResponse {
                state: Some(state(status, code, oom_killed)),
                host_config: Some(HostConfig {
                    memory: Some(memory),
                    ..Default::default()
                }),
                ..Default::default()
            })
        };
        let exited = ContainerStateStatusEnum::EXITED;
        let at = instant("2026-11-22T06:24:38Z");
        assert_eq!(killed(exited, 137, false, 64 << 20), at);
        for other in [
            killed(exited, 137, true, 64 << 20),
            killed(exited, 143, false, 64 << 20),
            killed(exited, 137, false, 0),
            killed(ContainerStateStatusEnum::RUNNING, 137, false, 64 << 20),
        ] {
            assert_eq!(other, None);
        }
    }

    #[test]
    fn what_never_began_has_not_ended() {
        let never = ContainerState {
            started_at: Some("0001-01-01T00:00:00Z".to_owned()),
            ..state(ContainerStateStatusEnum::EXITED, 127, false)
        };
        assert_eq!(life(&never, None), Life::Made);
        let made = state(ContainerStateStatusEnum::CREATED, 0, false);
        assert_eq!(life(&made, None), Life::Made);
        let runs = life(&state(ContainerStateStatusEnum::RUNNING, 0, false), None);
        assert!(matches!(runs, Life::Runs { .. }));
    }

    #[test]
    fn reads_the_check_of_an_image() {
        assert_eq!(health(None), ImageHealth::NoCheck);
        let failing = Health {
            status: Some(HealthStatusEnum::UNHEALTHY),
            log: Some(vec![HealthcheckResult {
                exit_code: Some(1),
                output: Some("connection\n  refused\n".to_owned()),
                ..Default::default()
            }]),
            ..Default::default()
        };
        let output = "connection refused".to_owned();
        assert_eq!(health(Some(&failing)), ImageHealth::Failing { output });
    }
}
