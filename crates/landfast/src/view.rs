//! A rollout as text: the live view, the ledger, and how it ended. Pure: state in, lines out.

use landfast_api::{
    Gate, GateState, Instance, InstanceState, Ledger, Protection, ProtectionState, Release,
    Rollout, RolloutKind, RolloutState, Strategy,
};
use landfast_types::Timestamp;

use crate::{
    out::Paint,
    table::{bytes, count, duration, instant, millis, number, percent, since, table, until},
};

/// The word of a strategy.
pub(crate) fn strategy(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Rolling => "rolling",
        Strategy::BlueGreen => "blue-green",
        Strategy::Canary => "canary",
        Strategy::Recreate => "recreate",
        Strategy::Unknown => "unknown",
    }
}

/// The word of what a rollout is for.
pub(crate) fn kind(kind: RolloutKind) -> &'static str {
    match kind {
        RolloutKind::Deploy => "deploy",
        RolloutKind::Rollback => "rollback",
        RolloutKind::Restart => "restart",
        RolloutKind::Unknown => "rollout",
    }
}

/// `release 4 → 5`, or `release 1` for the first.
pub(crate) fn releases(rollout: &Rollout) -> String {
    match rollout.from {
        Some(from) if from != rollout.to => format!("release {from} → {}", rollout.to),
        Some(_) | None => format!("release {}", rollout.to),
    }
}

/// The state in a word, painted.
pub(crate) fn state(state: RolloutState, paint: Paint) -> String {
    let word = state.as_str();
    match state {
        RolloutState::Promoted | RolloutState::Sealed => paint.good(word),
        RolloutState::RolledBack | RolloutState::Refused => paint.bad(word),
        RolloutState::Parked | RolloutState::RollingBack | RolloutState::Superseded => {
            paint.warn(word)
        }
        RolloutState::Waiting | RolloutState::Moving | RolloutState::Unknown => word.to_owned(),
    }
}

/// An instance's state, painted.
pub(crate) fn instance_state(state: InstanceState, paint: Paint) -> String {
    let word = state.as_str();
    match state {
        InstanceState::Ready => paint.good(word),
        InstanceState::Unready | InstanceState::Backoff => paint.bad(word),
        InstanceState::Starting | InstanceState::Warming | InstanceState::Draining => {
            paint.warn(word)
        }
        InstanceState::Stopping | InstanceState::Ended | InstanceState::Unknown => paint.dim(word),
    }
}

/// The state of a release, for tables.
pub(crate) fn release_state(release: &Release) -> &'static str {
    release.state.as_str()
}

/// The gate that waits for a person.
const APPROVAL: &str = "approval";

fn gate(gate: &Gate, paint: Paint) -> String {
    let word = match gate.state {
        GateState::Pending => paint.dim("not yet"),
        GateState::Waiting => paint.warn("waiting"),
        GateState::Passed => paint.good("passed"),
        GateState::Failed => paint.bad("failed"),
        GateState::Inconclusive => paint.warn("inconclusive"),
        GateState::Skipped => paint.dim("skipped"),
        GateState::Unknown => "unknown".to_owned(),
    };
    let name = &gate.name;
    match &gate.reason {
        _ if gate.state == GateState::Waiting && name == APPROVAL => {
            format!(
                "{name} {word}: `landfast promote` passes it, `landfast abort` takes the rollout back"
            )
        }
        Some(reason) => format!("{name} {word}: {reason}"),
        None => format!("{name} {word}"),
    }
}

/// The instances of a table, the newest release first.
pub(crate) fn instances(instances: &[Instance], now: Timestamp, paint: Paint) -> String {
    let mut sorted = instances.iter().collect::<Vec<_>>();
    sorted.sort_by(|left, right| {
        let key = |one: &Instance| {
            (
                one.service.clone(),
                u64::MAX - one.release,
                one.id.len(),
                one.id.clone(),
            )
        };
        key(left).cmp(&key(right))
    });
    let row = |one: &Instance| {
        vec![
            one.id.clone(),
            instance_state(one.state, paint),
            since(now, one.since),
            one.requests_in_flight.to_string(),
            one.streams_open.to_string(),
            one.memory_bytes.map_or_else(|| "–".to_owned(), bytes),
            one.address.clone().unwrap_or_else(|| "–".to_owned()),
            one.health.clone().unwrap_or_default(),
        ]
    };
    let head = [
        "INSTANCE",
        "STATE",
        "FOR",
        "IN FLIGHT",
        "STREAMS",
        "MEMORY",
        "ADDRESS",
        "",
    ];
    table(&head, &[3, 4, 5], sorted.into_iter().map(row).collect())
}

/// What instances of each service were replaced because they ended by themselves, and how the last one did.
pub(crate) fn replaced(instances: &[Instance]) -> Vec<String> {
    let mut services = std::collections::BTreeMap::new();
    for one in instances.iter().filter(|one| one.restarts > 0) {
        services.insert(&one.service, (one.restarts, &one.last_exit));
    }
    let line = |(service, (many, last)): (&String, (u32, &Option<String>))| {
        let many = count(u64::from(many), "instance");
        let last = last.as_ref().map(|last| format!("; the last: {last}"));
        format!(
            "{service}: {many} ended and replaced{}",
            last.unwrap_or_default()
        )
    };
    services.into_iter().map(line).collect()
}

/// The live view: everything about a rollout that moves.
pub(crate) fn live(rollout: &Rollout, now: Timestamp, paint: Paint) -> Vec<String> {
    let mut lines = Vec::new();
    let title = format!(
        "{}/{}  {}",
        rollout.app,
        rollout.environment,
        releases(rollout)
    );
    let took = since(rollout.ended_at.map_or(now, |at| at.0), rollout.started_at);
    let words = format!(
        "{} {}, {}, {took}",
        kind(rollout.kind),
        rollout.id,
        strategy(rollout.strategy),
    );
    lines.push(format!("{}  {}", paint.bold(&title), paint.dim(&words)));
    let step = rollout
        .step
        .map(|step| format!(" (step {} of {}, {} %)", step.number, step.of, step.percent));
    lines.push(format!(
        "{}: {}{}",
        state(rollout.state, paint),
        rollout.phase,
        step.unwrap_or_default()
    ));
    if let Some(reason) = &rollout.reason {
        lines.push(format!("{} {reason}", paint.warn("because")));
    }
    lines.push(String::new());
    if !rollout.gates.is_empty() {
        // A line each: what is being waited for must not run off the screen.
        let heads = ["gates     "]
            .into_iter()
            .chain(std::iter::repeat("          "));
        let gates = rollout.gates.iter().map(|one| gate(one, paint));
        lines.extend(heads.zip(gates).map(|(head, gate)| format!("{head}{gate}")));
    }
    let row = |release: u64| {
        let weight = rollout.weights.iter().find(|one| one.release == release);
        let traffic = rollout.traffic.iter().find(|one| one.release == release);
        let of_release = rollout
            .instances
            .iter()
            .filter(|one| one.release == release);
        let ready = of_release
            .clone()
            .filter(|one| one.state == InstanceState::Ready)
            .count();
        let errors = traffic.map_or(0, |one| one.errors);
        let errors_text = number(errors);
        vec![
            release.to_string(),
            weight.map_or_else(|| "0 %".to_owned(), |one| percent(one.percent)),
            format!("{ready}/{}", of_release.count()),
            traffic.map_or_else(|| "0".to_owned(), |one| number(one.requests)),
            if errors > 0 {
                paint.bad(&errors_text)
            } else {
                errors_text
            },
            traffic
                .and_then(|one| one.requests_per_second)
                .map_or_else(|| "–".to_owned(), |rate| format!("{rate:.0}/s")),
            millis(traffic.and_then(|one| one.p99_ms)),
        ]
    };
    let mut known = rollout
        .from
        .into_iter()
        .chain([rollout.to])
        .collect::<Vec<_>>();
    known.dedup();
    let head = [
        "RELEASE", "WEIGHT", "READY", "REQUESTS", "ERRORS", "RATE", "P99",
    ];
    let text = table(
        &head,
        &[0, 1, 2, 3, 4, 5, 6],
        known.into_iter().map(row).collect(),
    );
    lines.extend(text.lines().map(str::to_owned));
    if !rollout.instances.is_empty() {
        lines.push(String::new());
        lines.extend(
            instances(&rollout.instances, now, paint)
                .lines()
                .map(str::to_owned),
        );
        lines.extend(replaced(&rollout.instances));
    }
    if !rollout.deadlines.is_empty() {
        lines.push(String::new());
    }
    for deadline in &rollout.deadlines {
        let then = if deadline.then.is_empty() { "" } else { ": " };
        let left = until(now, deadline.at);
        lines.push(format!(
            "{} in {left}{then}{}",
            deadline.name, deadline.then
        ));
    }
    lines
}

/// What instances are not held to on this host, or by less than was wanted.
pub(crate) fn unprotected(protections: &[Protection], paint: Paint) -> Vec<String> {
    let short = protections.iter().filter(|one| {
        matches!(
            one.state,
            ProtectionState::Weaker | ProtectionState::Missing
        )
    });
    short
        .map(|one| format!("  {} {}", paint.warn("jail:"), one.text))
        .collect()
}

/// What a rollout cost, in a few lines.
pub(crate) fn ledger(ledger: &Ledger, paint: Paint) -> Vec<String> {
    let lost = format!("{} lost", number(ledger.lost));
    let lost = if ledger.lost == 0 {
        paint.good(&lost)
    } else {
        paint.bad(&lost)
    };
    let limited = match ledger.rate_limited {
        0 => String::new(),
        limited => format!(", {} over their rate (429)", number(limited)),
    };
    let mut lines = vec![format!(
        "requests   {}, {lost}{limited}",
        number(ledger.requests)
    )];
    for one in &ledger.releases {
        lines.push(format!(
            "release {:<3}{}, {} of its own, {} of ours",
            one.release,
            count(one.requests, "request"),
            count(one.errors_theirs, "error"),
            number(one.errors_ours),
        ));
    }
    let streams = ledger.streams;
    lines.push(format!(
        "streams    {} opened, {} ended, {} drained, {} cut",
        number(streams.opened),
        number(streams.ended),
        number(streams.drained),
        number(streams.cut),
    ));
    let p99 = ledger.latency_p99;
    lines.push(format!(
        "p99        {} before, {} during, {} after",
        millis(p99.before_ms),
        millis(p99.during_ms),
        millis(p99.after_ms),
    ));
    lines.push(format!(
        "pauses     {}ms at most, {}",
        number(ledger.pause_longest_ms),
        if ledger.retries == 1 {
            "1 retry".to_owned()
        } else {
            format!("{} retries", number(ledger.retries))
        },
    ));
    lines
}

/// How a rollout stands now that a command leaves it: what happened, what it cost, what comes next.
pub(crate) fn outcome(rollout: &Rollout, now: Timestamp, paint: Paint) -> Vec<String> {
    let scope = format!("{}/{}", rollout.app, rollout.environment);
    let took = rollout
        .ended_at
        .or(rollout.promoted_at)
        .map_or(now, |at| at.0);
    let took = duration(took.since(rollout.started_at.0));
    let back = match rollout.from {
        Some(from) => format!("release {from} serves {scope}"),
        None => format!("nothing serves {scope}"),
    };
    let head = match rollout.state {
        RolloutState::Promoted => paint.good(&format!(
            "release {} serves all of {scope}, after {took}",
            rollout.to
        )),
        RolloutState::Sealed => paint.good(&format!(
            "release {} serves all of {scope} and is sealed",
            rollout.to
        )),
        RolloutState::RolledBack => paint.bad(&format!(
            "release {} was taken back after {took}; {back}",
            rollout.to
        )),
        RolloutState::Parked => paint.warn(&format!(
            "release {} is parked: {}",
            rollout.to, rollout.phase
        )),
        RolloutState::Superseded => paint.warn("a newer rollout took its place; nothing was moved"),
        RolloutState::Refused => paint.bad(&format!(
            "release {} was refused; nothing was moved",
            rollout.to
        )),
        RolloutState::Waiting
        | RolloutState::Moving
        | RolloutState::RollingBack
        | RolloutState::Unknown => format!("release {}: {}", rollout.to, rollout.phase),
    };
    let mut lines = vec![head];
    lines.extend(
        ledger(&rollout.ledger, paint)
            .into_iter()
            .map(|line| format!("  {line}")),
    );
    if rollout.state == RolloutState::Promoted
        && let (Some(from), Some(standby)) = (
            rollout.from,
            rollout
                .deadlines
                .iter()
                .find(|deadline| deadline.name == "standby"),
        )
    {
        lines.push(format!(
            "  release {from} can take over until {} UTC: `landfast abort` goes back, `landfast seal` lets it go",
            instant(standby.at),
        ));
    }
    lines
}

/// Why it was taken back, parked or refused, and the line that most likely says so.
pub(crate) fn cause(rollout: &Rollout) -> String {
    let mut text = match (&rollout.cause, &rollout.reason) {
        (Some(cause), _) => cause.what.clone(),
        (None, Some(reason)) => reason.clone(),
        (None, None) => rollout.phase.clone(),
    };
    if let Some(line) = rollout.cause.as_ref().and_then(|cause| cause.line.as_ref()) {
        text.push_str(&format!(": {line}"));
    }
    text
}

/// A line cut to a terminal's width. Escapes take no room and are kept.
pub(crate) fn cut(line: &str, width: usize) -> String {
    let mut text = String::with_capacity(line.len());
    let mut room = width;
    let mut escape = false;
    for character in line.chars() {
        if escape {
            escape = !character.is_ascii_alphabetic();
        } else if character == '\u{1b}' {
            escape = true;
        } else if room == 0 {
            continue;
        } else {
            room -= 1;
        }
        text.push(character);
    }
    text
}

#[cfg(test)]
mod tests {
    use landfast_api::{At, Deadline, ReleaseTraffic, Step, Weight};

    use super::*;

    fn at(seconds: i64) -> At {
        At(Timestamp::from_millis(1_795_000_000_000 + seconds * 1_000))
    }

    fn instance(id: &str, release: u64, state: InstanceState) -> Instance {
        Instance {
            id: id.to_owned(),
            service: "api".to_owned(),
            release,
            state,
            since: at(60),
            restarts: 0,
            last_exit: (state == InstanceState::Backoff).then(|| "exited with code 1".to_owned()),
            health: None,
            pid: Some(1),
            address: Some("127.0.0.1:20001".to_owned()),
            memory_bytes: Some(64 << 20),
            requests_in_flight: 3,
            streams_open: 0,
        }
    }

    fn canary() -> Rollout {
        let traffic = |release, requests, errors| ReleaseTraffic {
            release,
            requests,
            errors,
            requests_per_second: Some(75.0),
            p99_ms: Some(12.3),
        };
        Rollout {
            app: "shop".to_owned(),
            environment: "production".to_owned(),
            id: 7,
            kind: RolloutKind::Deploy,
            strategy: Strategy::Canary,
            from: Some(4),
            to: 5,
            state: RolloutState::Moving,
            phase: "comparing release 5 with release 4".to_owned(),
            reason: None,
            cause: None,
            step: Some(Step {
                number: 2,
                of: 3,
                percent: 25,
            }),
            weights: vec![
                Weight {
                    release: 4,
                    percent: 75.0,
                },
                Weight {
                    release: 5,
                    percent: 25.0,
                },
            ],
            gates: vec![
                Gate {
                    name: "preflight".into(),
                    state: GateState::Passed,
                    reason: None,
                },
                Gate {
                    name: "analysis".into(),
                    state: GateState::Waiting,
                    reason: Some("12s of 30s".into()),
                },
            ],
            deadlines: vec![Deadline {
                name: "hold".into(),
                at: at(90),
                then: "100 % to release 5".into(),
            }],
            instances: vec![
                instance("api.r4.1", 4, InstanceState::Ready),
                instance("api.r5.10", 5, InstanceState::Backoff),
                instance("api.r5.9", 5, InstanceState::Ready),
            ],
            traffic: vec![traffic(4, 12_034, 0), traffic(5, 2_200, 3)],
            ledger: Ledger::default(),
            started_at: at(0),
            promoted_at: None,
            ended_at: None,
            note: None,
            commit: None,
            by: None,
            sequence: 1,
        }
    }

    #[test]
    fn the_live_view_says_all_of_a_canary_without_colour() {
        let lines = live(&canary(), at(72).0, Paint::PLAIN).join("\n");
        insta::assert_snapshot!(lines);
    }

    #[test]
    fn a_line_is_cut_to_the_terminal_and_keeps_its_escapes() {
        assert_eq!(
            cut("\u{1b}[31mabc→def\u{1b}[0m", 4),
            "\u{1b}[31mabc→\u{1b}[0m"
        );
        assert_eq!(cut("ab", 4), "ab");
    }
}
