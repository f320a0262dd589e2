//! Wait, decide, record, act: orders certificates while the server runs. What is decided is in `plan`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use landfast_routing::snapshot::{Certificate, Challenge};
use landfast_types::Timestamp;
use tokio::{sync::Notify, task::JoinSet, time::timeout};

use crate::{
    connect::{Client, ConnectError},
    facts::Facts,
    order::{self, Authority, ChallengeKind, Desk, OrderError},
    plan::{self, Alert, Attempts, Known, Severity},
    store::{OpenOrder, Record, Store, StoreError},
};

/// One conversation with the authority. What is not done by then is taken up by the next attempt.
const ORDER_TIME_MAX: Duration = Duration::from_secs(600);
/// The clock on the wall may be set at any time, and files of certificates change without a word.
const LOOK_AT_LEAST: Duration = Duration::from_secs(60);

/// What the manager is told when it starts.
#[derive(Debug, Clone)]
pub struct ManagerSettings {
    /// The authority's directory; `None` orders nothing: what is on disk serves on.
    pub directory: Option<String>,
    /// Mail addresses the authority may write to.
    pub contacts: Vec<String>,
    /// PEM certificates trusted for the directory beside the system's.
    pub ca: Option<PathBuf>,
    /// How hosts are proven; the first is tried first, and after a failure the next.
    pub challenges: Vec<ChallengeKind>,
}

/// Something that happened, for the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub host: String,
    /// A stable word: `certificate-obtained`, `certificate-failed`.
    pub kind: &'static str,
    /// `None`: good news.
    pub severity: Option<Severity>,
    pub text: String,
}

/// What the manager works between: the host's wishes, the proxy and the clock.
pub trait Surroundings: Send + Sync + 'static {
    /// What a clock on the wall shows; certificates live by it.
    fn now(&self) -> Timestamp;
    /// The hosts whose certificates come by ACME, and the certificates that come from files.
    fn wanted(&self) -> (BTreeSet<String>, Vec<Certificate>);
    /// Waits until that has changed.
    fn changed(&self) -> impl Future<Output = ()> + Send;
    /// Puts certificates (by host) and challenge answers in force; returns once the proxy uses them.
    fn put(
        &self,
        certificates: BTreeMap<String, Certificate>,
        challenges: Vec<Challenge>,
    ) -> impl Future<Output = Result<(), String>> + Send;
    /// Takes note of something that happened.
    fn tell(&self, notice: Notice) -> impl Future<Output = ()> + Send;
}

/// Where a certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Acme,
    Files,
}

/// One host's certificate as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub host: String,
    pub source: Source,
    pub issuer: Option<String>,
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
    /// When it is ordered next.
    pub next_order_at: Option<Timestamp>,
    pub is_under_way: bool,
    /// Attempts that failed in a row.
    pub failures: u32,
    pub last_error: Option<String>,
    pub alert: Option<Alert>,
}

/// Why a certificate is not renewed though somebody asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    #[error("the server orders no certificates: ACME is off")]
    Off,
    #[error("no route gets a certificate for `{0}` by ACME")]
    Unknown(String),
}

/// See the head of the module.
pub struct Manager<S> {
    store: Store,
    surroundings: S,
    authority: Option<Authority>,
    challenges: Vec<ChallengeKind>,
    state: Mutex<State>,
    /// Somebody asked for something.
    woken: Notify,
    /// Snapshots are given to the proxy one after the other, or an older one could come last.
    putting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    hosts: BTreeMap<String, Host>,
    under_way: BTreeSet<String>,
    answers: BTreeMap<String, Challenge>,
    files: Vec<Certificate>,
}

/// What is held of one host.
#[derive(Default)]
struct Host {
    facts: Option<Facts>,
    attempts: Attempts,
    open: Option<OpenOrder>,
    asked: bool,
    covered: bool,
}

impl Host {
    fn known(&self) -> Known {
        Known {
            validity: self.facts.as_ref().map(|facts| facts.validity),
            attempts: self.attempts.clone(),
            asked: self.asked,
            covered: self.covered,
        }
    }
}

impl<S: Surroundings> Manager<S> {
    /// A manager over what the store holds.
    ///
    /// # Errors
    /// [`ConnectError`] when the authority's own certificate cannot be read.
    pub fn new(
        settings: ManagerSettings,
        store: Store,
        surroundings: S,
    ) -> Result<Arc<Self>, ConnectError> {
        let client = Client::new(settings.ca.as_deref())?;
        let authority = settings
            .directory
            .map(|directory| Authority::new(directory, settings.contacts, client, store.clone()));
        let manager = Self {
            store,
            surroundings,
            authority,
            challenges: settings.challenges,
            state: Mutex::default(),
            woken: Notify::new(),
            putting: tokio::sync::Mutex::default(),
        };
        manager.look_around();
        Ok(Arc::new(manager))
    }

    /// Orders and renews for ever.
    pub async fn run(self: Arc<Self>) {
        let mut orders: JoinSet<()> = JoinSet::new();
        loop {
            self.look_around();
            let now = self.surroundings.now();
            let choice = self.choose(now);
            for host in choice.begin {
                tracing::info!(host, "ordering a certificate");
                let manager = Arc::clone(&self);
                orders.spawn(async move { manager.obtain(&host).await });
            }
            let wait = choice.wake.map_or(LOOK_AT_LEAST, |wake| wake.since(now));
            let wait = wait.clamp(Duration::from_millis(50), LOOK_AT_LEAST);
            tokio::select! {
                () = self.surroundings.changed() => {}
                () = self.woken.notified() => {}
                () = tokio::time::sleep(wait) => {}
                Some(ended) = orders.join_next() => if let Err(error) = ended {
                    tracing::error!(%error, "an order panicked");
                },
            }
        }
    }

    /// Every certificate of the host's routes, in order of name.
    pub fn list(&self) -> Vec<Listed> {
        let now = self.surroundings.now();
        let state = self.lock();
        let acme = state
            .hosts
            .iter()
            .filter(|(_, held)| !held.covered)
            .map(|(host, held)| {
                let known = held.known();
                let facts = held.facts.as_ref();
                let next = self
                    .authority
                    .as_ref()
                    .and_then(|_| plan::next_order(host, &known));
                Listed {
                    host: host.clone(),
                    source: Source::Acme,
                    issuer: facts.map(|facts| facts.issuer.clone()),
                    not_before: facts.map(|facts| facts.validity.not_before),
                    not_after: facts.map(|facts| facts.validity.not_after),
                    next_order_at: next.map(|at| at.max(now)),
                    is_under_way: state.under_way.contains(host),
                    failures: held.attempts.failures,
                    last_error: held.attempts.reason.clone(),
                    alert: plan::alert(now, &known),
                }
            });
        let files = state
            .files
            .iter()
            .flat_map(|files| listed_files(now, files));
        let mut listed: Vec<_> = acme.chain(files).collect();
        listed.sort_by(|a, b| a.host.cmp(&b.host));
        listed.dedup_by(|a, b| a.host == b.host);
        listed
    }

    /// Orders a certificate now, whatever the plan says.
    ///
    /// # Errors
    /// [`RenewError`]: nothing is ordered then.
    pub fn renew(&self, host: &str) -> Result<(), RenewError> {
        if self.authority.is_none() {
            return Err(RenewError::Off);
        }
        let mut state = self.lock();
        let held = state.hosts.get_mut(host).filter(|held| !held.covered);
        let held = held.ok_or_else(|| RenewError::Unknown(host.to_owned()))?;
        held.asked = true;
        self.woken.notify_one();
        Ok(())
    }

    /// Takes up the hosts that are wanted now, with what the store knows of them.
    fn look_around(&self) {
        let now = self.surroundings.now();
        let (wanted, files) = self.surroundings.wanted();
        let good: Vec<Facts> = files.iter().filter_map(read_file).collect();
        let mut state = self.lock();
        state.hosts.retain(|host, _| wanted.contains(host));
        for host in wanted {
            let covers = |facts: &Facts| facts.covers(&host) && facts.validity.holds_at(now);
            let covered = good.iter().any(covers);
            if !state.hosts.contains_key(&host) {
                let Record { attempts, open } = self.store.record(&host);
                if let Some(answer) = open.as_ref().and_then(|open| open.answer.clone()) {
                    state.answers.insert(host.clone(), answer);
                }
                let facts = self.store.facts(&host);
                let held = Host {
                    facts,
                    attempts,
                    open,
                    ..Host::default()
                };
                state.hosts.insert(host.clone(), held);
            }
            let held = state.hosts.entry(host).or_default();
            held.covered = covered;
            // A clock that was set back must not hold a host up until then.
            held.attempts.last_at = held.attempts.last_at.map(|at| at.min(now));
        }
        state.files = files;
    }

    fn choose(&self, now: Timestamp) -> plan::Choice {
        if self.authority.is_none() {
            return plan::Choice::default();
        }
        let mut state = self.lock();
        let known = state
            .hosts
            .iter()
            .map(|(host, held)| (host.clone(), held.known()));
        let choice = plan::choose(now, &known.collect(), &state.under_way);
        state.under_way.extend(choice.begin.iter().cloned());
        choice
    }

    /// One attempt for one host, from its record to what became of it.
    async fn obtain(&self, host: &str) {
        let result = self.attempt(host).await;
        let was_answered = {
            let mut state = self.lock();
            state.under_way.remove(host);
            state.answers.remove(host).is_some()
        };
        let notice = self.conclude(host, result);
        if was_answered || notice.severity.is_none() {
            if let Err(reason) = self.put().await {
                tracing::warn!(host, reason, "the proxy was not told");
            }
            self.store.drop_challenge(host);
        }
        self.surroundings.tell(notice).await;
    }

    async fn attempt(&self, host: &str) -> Result<Facts, OrderError> {
        let authority = self
            .authority
            .as_ref()
            .expect("orders are begun where there is one");
        let (open, failures) = {
            let now = self.surroundings.now();
            let mut state = self.lock();
            let held = state.hosts.entry(host.to_owned()).or_default();
            held.asked = false;
            held.attempts.cut_off += 1;
            held.attempts.last_at = Some(now);
            self.remember(host, held)?;
            (held.open.clone(), held.attempts.failures)
        };
        let mut kinds = self.challenges.clone();
        let first = failures as usize % kinds.len().max(1);
        kinds.rotate_left(first);
        let desk = HostDesk {
            manager: self,
            host,
        };
        let order = order::obtain(authority, &desk, host, open, &kinds);
        let pem = timeout(ORDER_TIME_MAX, order).await;
        let pem = pem.unwrap_or_else(|_late| {
            let minutes = ORDER_TIME_MAX.as_secs() / 60;
            Err(OrderError::Unreachable(format!(
                "it was not done within {minutes} minutes"
            )))
        })?;
        self.store.keep_certificate(host, &pem)?;
        self.store
            .facts(host)
            .ok_or_else(|| OrderError::Unusable("it does not read back".into()))
    }

    /// Records what became of an attempt.
    fn conclude(&self, host: &str, result: Result<Facts, OrderError>) -> Notice {
        let now = self.surroundings.now();
        let mut state = self.lock();
        // Nobody may want the host any more; what was obtained is on disk for the day somebody does.
        let held = state.hosts.entry(host.to_owned()).or_default();
        let notice = match result {
            Ok(facts) => {
                let text = format!(
                    "{host} has a certificate of {} until {}",
                    facts.issuer, facts.validity.not_after
                );
                held.facts = Some(facts);
                held.attempts = Attempts {
                    last_at: Some(now),
                    ..Attempts::default()
                };
                held.open = None;
                Notice {
                    host: host.to_owned(),
                    kind: "certificate-obtained",
                    severity: None,
                    text,
                }
            }
            Err(error) => {
                held.attempts = Attempts {
                    failures: held.attempts.failures.saturating_add(1),
                    cut_off: 0,
                    last_at: Some(now),
                    reason: Some(error.to_string()),
                    rate_limited: error.is_rate_limit(),
                };
                let severity = plan::alert(now, &held.known())
                    .map_or(Severity::Warning, |alert| alert.severity);
                Notice {
                    host: host.to_owned(),
                    kind: "certificate-failed",
                    severity: Some(severity),
                    text: format!("no new certificate for {host}: {error}"),
                }
            }
        };
        if let Err(error) = self.remember(host, held) {
            tracing::warn!(host, %error, "what became of the order is not remembered");
        }
        match notice.severity {
            None => tracing::info!(host, "{}", notice.text),
            Some(_) => tracing::warn!(host, "{}", notice.text),
        }
        notice
    }

    fn remember(&self, host: &str, held: &Host) -> Result<(), StoreError> {
        let record = Record {
            attempts: held.attempts.clone(),
            open: held.open.clone(),
        };
        self.store.keep_record(host, &record)
    }

    /// Gives the proxy everything that is held now.
    async fn put(&self) -> Result<(), String> {
        let _one_after_the_other = self.putting.lock().await;
        let (certificates, challenges) = {
            let state = self.lock();
            let held = state.hosts.iter().filter(|(_, held)| held.facts.is_some());
            let certificates =
                held.filter_map(|(host, _)| Some((host.clone(), self.store.certificate(host)?)));
            (
                certificates.collect(),
                state.answers.values().cloned().collect(),
            )
        };
        self.surroundings.put(certificates, challenges).await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one order may do with the manager.
struct HostDesk<'a, S> {
    manager: &'a Manager<S>,
    host: &'a str,
}

impl<S: Surroundings> Desk for HostDesk<'_, S> {
    fn remember(&self, open: Option<OpenOrder>) -> Result<(), StoreError> {
        let mut state = self.manager.lock();
        let held = state.hosts.entry(self.host.to_owned()).or_default();
        held.open = open;
        self.manager.remember(self.host, held)
    }

    async fn answer(&self, challenge: Challenge) -> Result<(), String> {
        {
            let mut state = self.manager.lock();
            let held = state.hosts.entry(self.host.to_owned()).or_default();
            if let Some(open) = &mut held.open {
                open.answer = Some(challenge.clone());
            }
            let remembered = self.manager.remember(self.host, held);
            remembered.map_err(|error| error.to_string())?;
            state.answers.insert(self.host.to_owned(), challenge);
        }
        self.manager.put().await
    }
}

fn read_file(certificate: &Certificate) -> Option<Facts> {
    Facts::read(&fs::read(&certificate.chain_path).ok()?).ok()
}

fn listed_files(now: Timestamp, files: &Certificate) -> Vec<Listed> {
    let facts = read_file(files);
    let validity = facts.as_ref().map(|facts| facts.validity);
    let one = |host: &String| Listed {
        host: host.clone(),
        source: Source::Files,
        issuer: facts.as_ref().map(|facts| facts.issuer.clone()),
        not_before: validity.map(|validity| validity.not_before),
        not_after: validity.map(|validity| validity.not_after),
        next_order_at: None,
        is_under_way: false,
        failures: 0,
        last_error: None,
        alert: validity.and_then(|validity| plan::expiring(now, validity)),
    };
    files.hosts.iter().map(one).collect()
}
