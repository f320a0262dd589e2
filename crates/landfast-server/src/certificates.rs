//! The server's side of ACME: the wishes of the host's routes, the proxy and the journal around `landfast-acme`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use landfast_acme::{
    Alert, ChallengeKind, Listed, Manager, ManagerSettings, Notice, Severity, Source, Store,
    Surroundings,
};
use landfast_api::{
    At, Certificate as WireCertificate, CertificateAlert, CertificateList, CertificateSource,
    CertificateState, Event as WireEvent, Level, Trouble,
};
use landfast_engine::{Obtained, Shared};
use landfast_journal::{AppendError, NewRecord, Record};
use landfast_routing::snapshot::{Certificate, Challenge};
use landfast_types::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{answer::chain, run::ServerError};

/// The stream of the journal, and the kind of its records.
const STREAM: &str = "certificates";
pub(crate) const RECORD_KIND: &str = "certificate";
const RECORD_VERSION: u16 = 1;

/// How certificates are obtained.
#[derive(Debug, Clone)]
pub struct AcmeSettings {
    /// The authority's directory; `None`: nothing is ordered.
    pub directory: Option<String>,
    /// Mail addresses the authority may write to.
    pub contacts: Vec<String>,
    /// PEM certificates trusted for the directory beside the system's.
    pub ca: Option<PathBuf>,
    /// How hosts are proven, the first choice first.
    pub challenges: Vec<ChallengeKind>,
}

/// The manager as this server runs it.
pub(crate) type Certificates = Manager<Host>;

/// What the manager works between.
pub(crate) struct Host {
    shared: Arc<Shared>,
    parts: tokio::sync::Mutex<watch::Receiver<u64>>,
}

/// An event as it is recorded.
#[derive(Serialize, Deserialize)]
struct Recorded {
    host: String,
    kind: String,
    level: Level,
    text: String,
}

/// What an earlier life obtained, for the first table.
pub(crate) fn obtained(store: &Store) -> Obtained {
    let certificates = store.certificates().into_iter();
    let by_host = certificates.filter_map(|certificate| {
        let host = certificate.hosts.first()?.clone();
        Some((host, certificate))
    });
    Obtained {
        certificates: by_host.collect(),
        challenges: store.challenges(),
    }
}

/// The manager, ready to run.
pub(crate) fn manager(
    settings: &AcmeSettings,
    store: Store,
    shared: &Arc<Shared>,
) -> Result<Arc<Certificates>, ServerError> {
    let settings = ManagerSettings {
        directory: settings.directory.clone(),
        contacts: settings.contacts.clone(),
        ca: settings.ca.clone(),
        challenges: settings.challenges.clone(),
    };
    let host = Host {
        shared: Arc::clone(shared),
        parts: tokio::sync::Mutex::new(shared.hub.changes()),
    };
    Manager::new(settings, store, host).map_err(ServerError::Acme)
}

impl Surroundings for Host {
    fn now(&self) -> Timestamp {
        self.shared.clock.wall()
    }

    fn wanted(&self) -> (BTreeSet<String>, Vec<Certificate>) {
        self.shared.hub.wanted_certificates()
    }

    async fn changed(&self) {
        let mut parts = self.parts.lock().await;
        if parts.changed().await.is_err() {
            // The hub is gone, and the server with it.
            std::future::pending::<()>().await;
        }
    }

    async fn put(
        &self,
        certificates: BTreeMap<String, Certificate>,
        challenges: Vec<Challenge>,
    ) -> Result<(), String> {
        let obtained = Obtained {
            certificates,
            challenges,
        };
        let put = self.shared.hub.obtain(obtained).await;
        put.map_err(|error| error.to_string())
    }

    async fn tell(&self, notice: Notice) {
        let shared = Arc::clone(&self.shared);
        let recorded = tokio::task::spawn_blocking(move || record(&shared, &notice)).await;
        match recorded {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error, "an event of a certificate is not recorded"),
            Err(error) => tracing::warn!(%error, "recording an event of a certificate stopped"),
        }
    }
}

fn record(shared: &Shared, notice: &Notice) -> Result<(), String> {
    let body = Recorded {
        host: notice.host.clone(),
        kind: notice.kind.to_owned(),
        level: notice.severity.map_or(Level::Info, level),
        text: notice.text.clone(),
    };
    let record = NewRecord::json(RECORD_KIND, RECORD_VERSION, shared.clock.now(), &body);
    let record = record.map_err(|error| error.to_string())?;
    loop {
        let last = shared.journal.last(STREAM);
        let last = last.map_err(|error| chain(&error))?;
        match shared
            .journal
            .append(STREAM, last, std::slice::from_ref(&record))
        {
            Ok(_) => break,
            // Another order ended at the same moment.
            Err(AppendError::Conflict { .. }) => {}
            Err(error) => return Err(chain(&error)),
        }
    }
    shared.position.send_modify(|_| {});
    Ok(())
}

/// A recorded event on the wire; `None` where a newer server wrote it.
pub(crate) fn event(record: &Record) -> Option<WireEvent> {
    let recorded: Recorded = record.json().ok()?;
    Some(WireEvent {
        sequence: record.position,
        at: At(record.at),
        app: None,
        environment: None,
        kind: recorded.kind,
        level: recorded.level,
        text: recorded.text,
        rollout: None,
        release: None,
        service: None,
        instance: None,
    })
}

/// Every certificate on the wire.
pub(crate) fn list(
    manager: &Certificates,
    settings: &AcmeSettings,
    now: Timestamp,
) -> CertificateList {
    let listed = manager.list().into_iter();
    CertificateList {
        certificates: listed.map(|listed| wire(listed, now)).collect(),
        directory: settings.directory.clone(),
    }
}

fn wire(listed: Listed, now: Timestamp) -> WireCertificate {
    let state = match listed.not_after {
        Some(end) if end <= now => CertificateState::Expired,
        Some(_) if listed.is_under_way => CertificateState::Renewing,
        Some(_) => CertificateState::Valid,
        None if listed.is_under_way => CertificateState::Ordering,
        None => CertificateState::Missing,
    };
    WireCertificate {
        host: listed.host,
        source: match listed.source {
            Source::Acme => CertificateSource::Acme,
            Source::Files => CertificateSource::Files,
        },
        state,
        issuer: listed.issuer,
        not_before: listed.not_before.map(At),
        not_after: listed.not_after.map(At),
        next_order_at: listed.next_order_at.map(At),
        failures: listed.failures,
        last_error: listed.last_error,
        alert: listed.alert.map(|alert| CertificateAlert {
            level: level(alert.severity),
            text: alert.text,
        }),
    }
}

/// What `status` of an environment says of the certificates of its hosts.
pub(crate) fn troubles(manager: &Certificates, hosts: &BTreeSet<String>) -> Vec<Trouble> {
    let listed = manager.list().into_iter();
    let of_hosts = listed.filter(|listed| hosts.contains(&listed.host));
    let trouble = |listed: Listed| {
        let Alert { text, .. } = listed.alert?;
        let hint = match listed.source {
            Source::Acme => format!(
                "what is in the way is in the reason; then `landfast certificates renew {}`",
                listed.host
            ),
            Source::Files => "renew the files the manifest names in `tls`".to_owned(),
        };
        Some(Trouble {
            text: format!("{}: {text}", listed.host),
            hint: Some(hint),
        })
    };
    of_hosts.filter_map(trouble).collect()
}

/// The certificates for Prometheus.
pub(crate) fn metrics(manager: &Certificates) -> String {
    let listed = manager.list();
    let mut text = String::new();
    let mut family = |name: &str, help: &str, value: &dyn Fn(&Listed) -> Option<i64>| {
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
        for (listed, value) in listed.iter().filter_map(|one| Some((one, value(one)?))) {
            text.push_str(&format!("{name}{{host=\"{}\"}} {value}\n", listed.host));
        }
    };
    family(
        "landfast_certificate_expires_timestamp_seconds",
        "When a host's certificate ends.",
        &|listed| Some(listed.not_after?.as_micros() / 1_000_000),
    );
    family(
        "landfast_certificate_order_failures",
        "Orders of a host that failed since the last one that brought a certificate.",
        &|listed| Some(i64::from(listed.failures)),
    );
    family(
        "landfast_certificate_alert",
        "0 all is well, 1 somebody should look at it, 2 soon.",
        &|listed| {
            Some(match &listed.alert {
                None => 0,
                Some(alert) if alert.severity == Severity::Warning => 1,
                Some(_) => 2,
            })
        },
    );
    text
}

fn level(severity: Severity) -> Level {
    match severity {
        Severity::Warning => Level::Warning,
        Severity::Error => Level::Error,
    }
}
