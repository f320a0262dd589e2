//! Data stores on the wire, and as metrics.

use std::fmt::Write as _;

use landfast_api::{
    At, Event as WireEvent, Level, Store, StoreCost, StoreDisk, StoreImage, StoreMeasures,
    StoreReplica, StoreRotation, StoreState, StoreStatement, Trouble,
};
use landfast_datastore::{Measures, Phase};
use landfast_engine::{
    Shared, View, restart_waits_for,
    stores::{Measured, RotationView, StoreView, operator_login, room},
};
use landfast_journal::Record;
use landfast_secrets::rotation::{Phase as RotationPhase, RotationEvent};
use landfast_spec::{AppSpec, StoreSpec};
use landfast_types::{Bytes, Scope, StoreName, Timestamp};

/// The stores of an environment: those Landfast keeps, and those the newest manifest only connects to.
pub(crate) fn stores(shared: &Shared, view: &View) -> Vec<Store> {
    let spec = view.bodies.last_key_value().map(|(_, body)| &body.spec);
    let kept = shared.stores.of(&view.state.scope);
    let managed = kept.iter().map(|kept| {
        let rotation = shared.stores.rotation(&kept.store.scope, &kept.store.name);
        let disk = disk(shared, kept);
        let (scope, name) = (&kept.store.scope, &kept.store.name);
        let serves = view.state.serves(name).filter(|serves| *serves != name);
        let served_by = view.state.served_by(None, name);
        let login = rotation
            .as_ref()
            .map(|known| operator_login(known.rotation.given()));
        let work = shared.stores.rotation_waits_for(scope, name);
        Store {
            disk,
            login: login.map(|login| login.to_string()),
            serves: serves.map(ToString::to_string),
            served_by: (served_by != name).then(|| served_by.to_string()),
            used_by: view
                .state
                .serves(name)
                .map_or_else(Vec::new, |name| used_by(name, spec)),
            ..managed(
                kept,
                rotation.map(|known| self::rotation(&known, view, work)),
            )
        }
    });
    let mut stores: Vec<Store> = managed.collect();
    let connected = spec.into_iter().flat_map(|spec| &spec.stores);
    for (name, store) in connected.filter(|(_, store)| !store.is_managed()) {
        if stores.iter().all(|known| known.name != name.as_str()) {
            stores.push(external(name, store, spec));
        }
    }
    stores.sort_by(|a, b| a.name.cmp(&b.name));
    stores
}

fn disk(shared: &Shared, view: &StoreView) -> Option<StoreDisk> {
    let room = room(shared, &view.store.scope, &view.store.name)?;
    Some(StoreDisk {
        is_short: room.is_short(),
        folder: room.folder.display().to_string(),
        free_bytes: room.free.0,
        total_bytes: room.total.0,
    })
}

fn managed(view: &StoreView, rotation: Option<StoreRotation>) -> Store {
    let store = &view.store;
    let (state, since) = match &store.phase {
        Phase::Making { .. } => (StoreState::Making, None),
        Phase::Down { since, .. } => (StoreState::Down, Some(*since)),
        Phase::Starting { since, .. } => (StoreState::Starting, Some(*since)),
        Phase::Ready { since, .. } => (StoreState::Ready, Some(*since)),
        Phase::Stopping { .. } => (StoreState::Stopping, None),
        Phase::Deleted { at, .. } => (StoreState::Deleted, Some(*at)),
        Phase::Removing => (StoreState::Removing, None),
    };
    let deleted_until = match &store.phase {
        Phase::Deleted { until, .. } => Some(At(*until)),
        Phase::Making { .. }
        | Phase::Down { .. }
        | Phase::Starting { .. }
        | Phase::Ready { .. }
        | Phase::Stopping { .. }
        | Phase::Removing => None,
    };
    let measured = view.measured.as_deref();
    let unmeasured = measured.and_then(|measured| measured.result.as_ref().err());
    let trouble = store.trouble().map(str::to_owned);
    let wanted = store.wanted.image.as_ref().map(image);
    let applied = store.applied.as_ref();
    let runs = applied.and_then(|applied| applied.image.as_ref().map(image));
    let waits_for_restart = store.waits_for_restart();
    let is_next = waits_for_restart.iter().any(|setting| setting == "image");
    Store {
        name: store.name.to_string(),
        engine: store.wanted.engine.to_string(),
        managed: true,
        version: Some(store.wanted.version.clone()),
        next_image: wanted.clone().filter(|_| is_next),
        image: runs.or(wanted),
        state,
        named: store.named,
        serves: None,
        served_by: None,
        memory_bytes: Some(store.wanted.memory.0),
        address: Some(match store.wanted.image {
            // The name it has in its network.
            Some(_) => format!("{}:{}", store.name, store.port),
            None => format!("127.0.0.1:{}", store.port),
        }),
        instance: store.instance().map(ToString::to_string),
        since: since.map(At),
        trouble: trouble.or_else(|| unmeasured.map(|reason| format!("not measured: {reason}"))),
        waits_for_restart,
        deleted_until,
        rotation,
        used_by: Vec::new(),
        measures: measured.and_then(|measured| measures(measured, view)),
        disk: None,
        login: None,
    }
}

fn image(image: &landfast_datastore::StoreImage) -> StoreImage {
    StoreImage {
        reference: image.reference.to_string(),
        id: image.id.map(|id| id.to_string()),
        pinned: image.pinned.as_ref().map(ToString::to_string),
    }
}

fn rotation(view: &RotationView, environment: &View, work: Option<&str>) -> StoreRotation {
    let rotation = &view.rotation;
    let (rollout, holders) = match rotation.phase() {
        RotationPhase::Replacing { holders, restart } => (*restart, Some(holders)),
        RotationPhase::Settled
        | RotationPhase::Preparing
        | RotationPhase::Verifying
        | RotationPhase::Counting
        | RotationPhase::Closing { .. }
        | RotationPhase::Renewing => (None, None),
    };
    let instances = holders.into_iter().flat_map(|holders| &holders.instances);
    let runs = holders.into_iter().flat_map(|holders| &holders.runs);
    let holders = instances.map(ToString::to_string);
    StoreRotation {
        phase: rotation.phase().word().to_owned(),
        begun_at: view.begun.as_ref().map(|(at, _)| At(*at)),
        by: view.begun.as_ref().map(|(_, by)| by.clone()),
        rollout: rollout.map(|rollout| rollout.0),
        holders: holders
            .chain(runs.map(|run| format!("job run {run}")))
            .collect(),
        waits_for: restart_waits_for(environment)
            .filter(|_| rotation.wants_restart())
            .or_else(|| work.map(str::to_owned)),
        failure: rotation.failure().map(str::to_owned),
        is_taken_back: rotation.is_taken_back(),
        rotated_at: view.settled_at.map(At),
    }
}

/// A step of a rotation as an event on the wire. What only says how far it is, is not told.
pub(crate) fn rotation_event(
    record: &Record,
    (scope, name, event): &(Scope, StoreName, RotationEvent),
) -> Option<WireEvent> {
    let (word, level, text) = match event {
        RotationEvent::Begun { by } => (
            "begun",
            Level::Info,
            format!("changes its password, for {by}"),
        ),
        RotationEvent::Retried { by } => (
            "retried",
            Level::Info,
            format!("tries again to bring its new password to the instances, for {by}"),
        ),
        RotationEvent::Switched => (
            "switched",
            Level::Info,
            "has a new password; instances that start are given it".to_owned(),
        ),
        RotationEvent::Abandoned => ("abandoned", Level::Warning, "keeps its password".to_owned()),
        RotationEvent::Settled => ("settled", Level::Info, "has one password again".to_owned()),
        RotationEvent::Failed { reason, .. } => (
            "failed",
            Level::Warning,
            format!("does not get rid of its old password: {reason}"),
        ),
        RotationEvent::Opened
        | RotationEvent::Closed
        | RotationEvent::Counted { .. }
        | RotationEvent::Ordered { .. }
        | RotationEvent::Released => return None,
    };
    Some(WireEvent {
        sequence: record.position,
        at: At(record.at),
        app: Some(scope.app.to_string()),
        environment: Some(scope.environment.to_string()),
        kind: format!("rotation-{word}"),
        level,
        text: format!("store {name} {text}"),
        rollout: None,
        release: None,
        service: None,
        instance: None,
    })
}

fn external(name: &StoreName, store: &StoreSpec, spec: Option<&AppSpec>) -> Store {
    Store {
        name: name.to_string(),
        engine: store.engine.to_string(),
        managed: false,
        version: None,
        image: None,
        next_image: None,
        state: StoreState::External,
        named: true,
        serves: None,
        served_by: None,
        memory_bytes: None,
        address: None,
        instance: None,
        since: None,
        trouble: None,
        waits_for_restart: Vec::new(),
        deleted_until: None,
        rotation: None,
        used_by: used_by(name, spec),
        measures: None,
        disk: None,
        login: None,
    }
}

fn used_by(name: &StoreName, spec: Option<&AppSpec>) -> Vec<String> {
    let Some(spec) = spec else {
        return Vec::new();
    };
    let services = spec
        .services
        .iter()
        .map(|(of, service)| (of.to_string(), &service.uses));
    let jobs = spec
        .jobs
        .iter()
        .map(|(of, job)| (of.to_string(), &job.uses));
    let using = services.chain(jobs).filter(|(_, uses)| uses.contains(name));
    using.map(|(of, _)| of).collect()
}

fn measures(measured: &Measured, view: &StoreView) -> Option<StoreMeasures> {
    let found = measured.result.as_ref().ok()?;
    let slow = found.slow.iter().map(|statement| StoreStatement {
        login: statement.login.clone(),
        millis: statement.millis,
        text: statement.text.clone(),
        behind: Vec::new(),
    });
    let waiting = found.waiting.iter().map(|waiting| StoreStatement {
        login: waiting.login.clone(),
        millis: waiting.millis,
        text: waiting.text.clone(),
        behind: waiting.behind.clone(),
    });
    let costly = found.costly.iter().map(|costly| StoreCost {
        text: costly.text.clone(),
        calls: costly.calls,
        mean_micros: costly.mean_micros,
    });
    let replicas = found.replicas.iter().map(|replica| StoreReplica {
        name: replica.name.clone(),
        state: replica.state.clone(),
        lag_bytes: replica.lag_bytes,
    });
    Some(StoreMeasures {
        at: At(measured.at),
        connections: found.connections,
        connections_max: found.connections_max,
        active: found.active,
        idle_in_transaction: found.idle_in_transaction,
        size_bytes: found.size_bytes,
        size_bytes_max: found.size_bytes_max,
        growth_bytes_per_day: growth(measured.at, found, view.first_size),
        hit_percent: hit_percent(found),
        slow: slow.collect(),
        waiting: waiting.collect(),
        costly: costly.collect(),
        replicas: replicas.collect(),
        deadlocks: found.deadlocks,
        evicted: found.evicted,
    })
}

/// What is seen in less than an hour says nothing about a day.
const GROWTH_SECONDS_MIN: i128 = 3_600;

fn growth(at: Timestamp, found: &Measures, first: Option<(Timestamp, u64)>) -> Option<i64> {
    let (since, size) = first?;
    let seconds = i128::from(at.since(since).as_secs());
    if seconds < GROWTH_SECONDS_MIN {
        return None;
    }
    let grown = i128::from(found.size_bytes) - i128::from(size);
    i64::try_from(grown * 86_400 / seconds).ok()
}

fn hit_percent(found: &Measures) -> Option<u8> {
    let all = found
        .hits
        .checked_add(found.misses)
        .filter(|all| *all > 0)?;
    u8::try_from(u128::from(found.hits) * 100 / u128::from(all)).ok()
}

/// What of the stores somebody should look at.
pub(crate) fn store_troubles(stores: &[Store]) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    for store in stores {
        let name = &store.name;
        let mut say = |text: String, hint: String| {
            let hint = Some(hint);
            troubles.push(Trouble { text, hint });
        };
        if let Some(reason) = &store.trouble {
            say(
                format!("store `{name}` is {}: {reason}", store.state.as_str()),
                format!("`landfast store logs {name}` shows what its server wrote"),
            );
        }
        if let Some(disk) = store.disk.as_ref().filter(|disk| disk.is_short) {
            let (free, total) = (Bytes(disk.free_bytes), Bytes(disk.total_bytes));
            say(
                format!(
                    "store `{name}` has {free} of {total} left on its disk; a full one refuses every change"
                ),
                format!(
                    "make room where `{}` lies, or give it a larger disk",
                    disk.folder
                ),
            );
        }
        if !store.waits_for_restart.is_empty() {
            let settings = store.waits_for_restart.join(", ");
            say(
                format!("store `{name}` waits for a restart to change {settings}"),
                format!(
                    "`landfast store restart {name}` in a quiet moment: it is away for some seconds"
                ),
            );
        }
        if store.managed && !store.named && store.deleted_until.is_none() {
            say(
                format!("store `{name}` is in no manifest any more; it is kept and runs on"),
                format!("name it again, or `landfast store delete {name}`"),
            );
        }
        let rotation = store.rotation.as_ref();
        if let Some(reason) = rotation.and_then(|rotation| rotation.failure.as_ref()) {
            let hint = if rotation.is_some_and(|rotation| rotation.is_taken_back) {
                format!(
                    "it goes on when nobody has the old one any more: mend the reason, then `landfast store rotate {name}` again, or deploy"
                )
            } else {
                "it is tried again; mend the reason".to_owned()
            };
            say(
                format!(
                    "the password of store `{name}` is not changed to the end, and the old one is valid still: {reason}"
                ),
                hint,
            );
        }
        let Some(measures) = &store.measures else {
            continue;
        };
        if measures.connections * 10 >= measures.connections_max * 9 && measures.connections_max > 0
        {
            say(
                format!(
                    "store `{name}` has {} of {} connections in use",
                    measures.connections, measures.connections_max
                ),
                "give the app a smaller pool, or the store more `memory`".to_owned(),
            );
        }
    }
    troubles
}

/// The figures of all stores for Prometheus.
pub(crate) fn store_metrics(views: &[std::sync::Arc<StoreView>]) -> String {
    type Figure = fn(&Measures) -> u64;
    let figures: [(&str, &str, &str, Figure); 12] = [
        ("connections", "gauge", "Open connections.", |m| {
            m.connections
        }),
        (
            "connections_max",
            "gauge",
            "Connections there may be.",
            |m| m.connections_max,
        ),
        (
            "connections_active",
            "gauge",
            "Connections that do something.",
            |m| m.active,
        ),
        (
            "transactions_idle",
            "gauge",
            "Connections that hold a transaction open and do nothing.",
            |m| m.idle_in_transaction,
        ),
        ("size_bytes", "gauge", "What its data takes.", |m| {
            m.size_bytes
        }),
        (
            "statements_slow",
            "gauge",
            "Statements that run for longer than 200 ms.",
            |m| m.slow.len() as u64,
        ),
        (
            "statements_waiting",
            "gauge",
            "Statements that wait for a lock.",
            |m| m.waiting.len() as u64,
        ),
        (
            "hits_total",
            "counter",
            "Reads that memory answered.",
            |m| m.hits,
        ),
        (
            "misses_total",
            "counter",
            "Reads that memory did not answer.",
            |m| m.misses,
        ),
        ("deadlocks_total", "counter", "Deadlocks.", |m| m.deadlocks),
        (
            "evicted_total",
            "counter",
            "Keys thrown away because memory was used up.",
            |m| m.evicted,
        ),
        (
            "replica_lag_bytes",
            "gauge",
            "How far the last replica is behind.",
            |m| {
                m.replicas
                    .iter()
                    .map(|replica| replica.lag_bytes)
                    .max()
                    .unwrap_or_default()
            },
        ),
    ];
    let mut text = String::new();
    let mut line =
        |line: String| writeln!(text, "{line}").expect("writing to a string cannot fail");
    let labels = |view: &StoreView| {
        let store = &view.store;
        let (app, environment) = (&store.scope.app, &store.scope.environment);
        let (name, engine) = (&store.name, store.wanted.engine);
        format!(
            "{{app=\"{app}\",environment=\"{environment}\",store=\"{name}\",engine=\"{engine}\"}}"
        )
    };
    line("# HELP landfast_store_ready Whether it answers.".to_owned());
    line("# TYPE landfast_store_ready gauge".to_owned());
    for view in views {
        let ready = u8::from(view.store.word() == "ready");
        line(format!("landfast_store_ready{} {ready}", labels(view)));
    }
    for (name, kind, help, figure) in figures {
        line(format!("# HELP landfast_store_{name} {help}"));
        line(format!("# TYPE landfast_store_{name} {kind}"));
        for view in views {
            let measured = view
                .measured
                .as_ref()
                .and_then(|measured| measured.result.as_ref().ok());
            if let Some(measures) = measured {
                line(format!(
                    "landfast_store_{name}{} {}",
                    labels(view),
                    figure(measures)
                ));
            }
        }
    }
    text
}
