//! One conversation with the authority, from an order to its certificate (RFC 8555, 7.4). It may be cut off at any
//! point and taken up again: what is done next follows from what the authority says of the order, not from what was
//! done here before.

use std::{fmt, time::Duration};

use instant_acme::{
    Account, AuthorizationStatus, ChallengeStatus, ChallengeType, Error, Identifier,
    KeyAuthorization, NewAccount, NewOrder, Order, OrderStatus, Problem,
};
use landfast_routing::snapshot::{Challenge, ChallengeAnswer};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use tokio::time::sleep;

use crate::{
    connect::Client,
    store::{OpenOrder, Store, StoreError},
};

/// How often one request is repeated when the authority takes no nonce; the client library tries each three times.
const NONCE_TRIES: u32 = 20;
/// Between two looks at an order that the authority works on.
const LOOK_FIRST: Duration = Duration::from_millis(300);
const LOOK_MAX: Duration = Duration::from_secs(5);

/// How a host is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeKind {
    /// A file over plain HTTP on port 80.
    Http01,
    /// A certificate over TLS on port 443.
    TlsAlpn01,
}

impl ChallengeKind {
    /// The word in settings and messages, as the standard has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }

    fn wire(self) -> ChallengeType {
        match self {
            Self::Http01 => ChallengeType::Http01,
            Self::TlsAlpn01 => ChallengeType::TlsAlpn01,
        }
    }
}

impl fmt::Display for ChallengeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Why an order brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    #[error("the authority refused: {}", said(.0))]
    Refused(Problem),
    /// It looked, and did not find what we answer.
    #[error("{kind} failed: {}", said(.problem))]
    Validation { kind: String, problem: Problem },
    #[error("the authority made the order invalid without a reason")]
    Invalid,
    #[error("the authority offers none of {0}")]
    NoChallenge(String),
    #[error("the authority cannot be talked to: {0}")]
    Unreachable(String),
    #[error("the certificate it gave cannot be used: {0}")]
    Unusable(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("failed to make a key or a request")]
    Crypto(#[from] rcgen::Error),
    #[error("the proxy did not take the answer: {0}")]
    Unanswered(String),
}

impl OrderError {
    pub(crate) fn is_rate_limit(&self) -> bool {
        matches!(self, Self::Refused(problem) if has_type(problem, "rateLimited"))
    }

    /// Whether the order itself is over, so that another has to be placed.
    fn ends_the_order(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::Validation { .. }
                | Self::Invalid
                | Self::NoChallenge(_)
                | Self::Unusable(_)
        )
    }
}

impl From<Error> for OrderError {
    fn from(error: Error) -> Self {
        if let Error::Api(problem) = error {
            return Self::Refused(problem);
        }
        Self::Unreachable(chain(&error))
    }
}

fn said(problem: &Problem) -> String {
    let detail = problem
        .detail
        .clone()
        .unwrap_or_else(|| "no reason given".into());
    let inner = problem
        .subproblems
        .iter()
        .filter_map(|inner| inner.detail.clone());
    let all: Vec<String> = std::iter::once(detail).chain(inner).collect();
    let kind = problem
        .r#type
        .as_deref()
        .and_then(|kind| kind.rsplit(':').next());
    // The authority's text goes to people's terminals: nothing in it may move a cursor.
    let text: String = all
        .join("; ")
        .chars()
        .filter(|c| !c.is_control())
        .take(500)
        .collect();
    match kind {
        Some(kind) => format!("{text} ({kind})"),
        None => text,
    }
}

fn has_type(problem: &Problem, word: &str) -> bool {
    let kind = problem.r#type.as_deref();
    kind.and_then(|kind| kind.strip_prefix("urn:ietf:params:acme:error:")) == Some(word)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Repeats a request whose nonce was not taken: the authority did nothing then (RFC 8555, 6.5).
macro_rules! steady {
    ($call:expr) => {{
        let mut left = NONCE_TRIES;
        loop {
            match $call.await {
                Err(Error::Api(problem)) if left > 0 && has_type(&problem, "badNonce") => left -= 1,
                other => break other,
            }
        }
    }};
}

/// Whom certificates are ordered from, and as whom.
pub(crate) struct Authority {
    pub(crate) directory: String,
    pub(crate) contacts: Vec<String>,
    pub(crate) client: Client,
    pub(crate) store: Store,
    account: tokio::sync::Mutex<Option<Account>>,
}

impl Authority {
    pub(crate) fn new(
        directory: String,
        contacts: Vec<String>,
        client: Client,
        store: Store,
    ) -> Self {
        Self {
            directory,
            contacts,
            client,
            store,
            account: tokio::sync::Mutex::default(),
        }
    }

    /// The account on disk, or a new one.
    async fn account(&self) -> Result<Account, OrderError> {
        let mut held = self.account.lock().await;
        if let Some(account) = &*held {
            return Ok(account.clone());
        }
        let builder = || Account::builder_with_http(Box::new(self.client.clone()));
        let account = match self.store.account(&self.directory) {
            Some(credentials) => builder().from_credentials(credentials).await?,
            None => {
                let contacts: Vec<String> = self
                    .contacts
                    .iter()
                    .map(|contact| format!("mailto:{contact}"))
                    .collect();
                let contacts: Vec<&str> = contacts.iter().map(String::as_str).collect();
                let wanted = NewAccount {
                    contact: &contacts,
                    terms_of_service_agreed: true,
                    only_return_existing: false,
                };
                let made = steady!(builder().create(&wanted, self.directory.clone(), None));
                let (account, credentials) = made?;
                self.store.keep_account(&self.directory, &credentials)?;
                account
            }
        };
        *held = Some(account.clone());
        Ok(account)
    }

    async fn forget_account(&self) {
        *self.account.lock().await = None;
        self.store.drop_account(&self.directory);
    }

    /// Places an order, once more with a new account where the authority has forgotten the old one.
    async fn place(&self, host: &str) -> Result<Order, OrderError> {
        let identifiers = [Identifier::Dns(host.to_owned())];
        let wanted = NewOrder::new(&identifiers);
        let account = self.account().await?;
        match steady!(account.new_order(&wanted)) {
            Err(Error::Api(problem)) if has_type(&problem, "accountDoesNotExist") => {
                self.forget_account().await;
                let account = self.account().await?;
                Ok(steady!(account.new_order(&wanted))?)
            }
            other => Ok(other?),
        }
    }

    /// The open order, where it can still bring something, else a new one.
    async fn take_up(
        &self,
        host: &str,
        open: Option<OpenOrder>,
    ) -> Result<(Order, OpenOrder), OrderError> {
        if let Some(open) = open.filter(|open| open.directory == self.directory) {
            let account = self.account().await?;
            let order = match steady!(account.order(open.url.clone())) {
                Ok(order) => Some(order),
                // It expired, or the authority has forgotten it.
                Err(Error::Api(_)) => None,
                Err(error) => return Err(error.into()),
            };
            let usable = |order: &mut Order| order.state().status != OrderStatus::Invalid;
            if let Some(mut order) = order
                && usable(&mut order)
            {
                return Ok((order, open));
            }
            tracing::debug!(host, url = open.url, "the order that was open is over");
        }
        let order = self.place(host).await?;
        let open = OpenOrder {
            directory: self.directory.clone(),
            url: order.url().to_owned(),
            key: KeyPair::generate()?.serialize_pem(),
            answer: None,
        };
        Ok((order, open))
    }
}

/// What an order needs of those around it.
pub(crate) trait Desk: Send + Sync {
    /// Remembers the order before it can bring anything, or that there is none any more.
    fn remember(&self, open: Option<OpenOrder>) -> Result<(), StoreError>;
    /// Puts an answer in force: when this returns, the proxy gives it.
    fn answer(&self, challenge: Challenge) -> impl Future<Output = Result<(), String>> + Send;
}

/// Obtains a certificate for one host: key and chain in one PEM text. `kinds` are tried in this order, as far as
/// the authority offers them.
pub(crate) async fn obtain(
    authority: &Authority,
    desk: &impl Desk,
    host: &str,
    open: Option<OpenOrder>,
    kinds: &[ChallengeKind],
) -> Result<String, OrderError> {
    let (mut order, open) = authority.take_up(host, open).await?;
    desk.remember(Some(open.clone()))?;
    let obtained = converse(authority, desk, host, &mut order, &open, kinds).await;
    if obtained.as_ref().is_err_and(OrderError::ends_the_order) {
        desk.remember(None)?;
    }
    obtained
}

async fn converse(
    authority: &Authority,
    desk: &impl Desk,
    host: &str,
    order: &mut Order,
    open: &OpenOrder,
    kinds: &[ChallengeKind],
) -> Result<String, OrderError> {
    let key = KeyPair::from_pem(&open.key)?;
    let mut is_answered = false;
    let mut nonces_left = NONCE_TRIES;
    let mut wait = LOOK_FIRST;
    loop {
        match order.state().status {
            OrderStatus::Pending => {
                if !is_answered {
                    // Without a nonce nothing was said: the next look begins here again.
                    match answer(authority, desk, host, order, kinds).await {
                        Err(OrderError::Refused(problem))
                            if nonces_left > 0 && has_type(&problem, "badNonce") =>
                        {
                            nonces_left -= 1;
                            wait = LOOK_FIRST;
                        }
                        answered => is_answered = answered?.is_some(),
                    }
                }
            }
            OrderStatus::Ready => {
                let request = request(host, &key)?;
                steady!(order.finalize_csr(&request))?;
                continue;
            }
            OrderStatus::Processing => {}
            OrderStatus::Valid => {
                if let Some(chain) = steady!(order.certificate())? {
                    let pem = format!("{}{chain}", open.key);
                    let usable = crate::store::usable(pem.as_bytes(), host);
                    return usable.map(|_facts| pem).map_err(OrderError::Unusable);
                }
            }
            OrderStatus::Invalid => return Err(why_invalid(order).await),
        }
        sleep(wait).await;
        wait = (wait * 2).min(LOOK_MAX);
        steady!(order.refresh())?;
    }
}

/// Answers the challenge of an order's authorization and says so. Gives the kind that was answered; nothing where
/// the authority needs no answer.
async fn answer(
    authority: &Authority,
    desk: &impl Desk,
    host: &str,
    order: &mut Order,
    kinds: &[ChallengeKind],
) -> Result<Option<ChallengeKind>, OrderError> {
    let mut authorizations = order.authorizations();
    let Some(authorization) = authorizations.next().await else {
        return Err(OrderError::Invalid);
    };
    let mut authorization = authorization?;
    if authorization.status != AuthorizationStatus::Pending {
        return Ok(None);
    }
    let offers = |kind: &ChallengeKind| {
        let mut offered = authorization.challenges.iter();
        offered.any(|challenge| challenge.r#type == kind.wire())
    };
    let Some(kind) = kinds.iter().copied().find(offers) else {
        let words: Vec<_> = kinds.iter().map(|kind| kind.word()).collect();
        return Err(OrderError::NoChallenge(words.join(", ")));
    };
    let challenge = authorization.challenge(kind.wire());
    let mut challenge = challenge.ok_or(OrderError::Invalid)?;
    let proof = challenge.key_authorization();
    let answer = match kind {
        ChallengeKind::Http01 => ChallengeAnswer::Http {
            token: challenge.token.clone(),
            key_authorization: proof.as_str().to_owned(),
        },
        ChallengeKind::TlsAlpn01 => {
            let pem = tls_answer(host, &proof)?;
            let path = authority.store.keep_challenge(host, &pem)?;
            ChallengeAnswer::TlsAlpn {
                chain_path: path.clone(),
                key_path: path,
            }
        }
    };
    let host = host.to_owned();
    let answered = desk.answer(Challenge { host, answer }).await;
    answered.map_err(OrderError::Unanswered)?;
    // One that is looked at already was said to be ready by an earlier life of the server.
    if challenge.status == ChallengeStatus::Pending {
        steady!(challenge.set_ready())?;
    }
    Ok(Some(kind))
}

/// What the authority says of the challenge that failed.
async fn why_invalid(order: &mut Order) -> OrderError {
    let of_order = order.state().error.clone();
    let mut authorizations = order.authorizations();
    if let Some(Ok(authorization)) = authorizations.next().await {
        let failed = authorization.challenges.iter().find_map(|challenge| {
            let problem = challenge.error.clone()?;
            Some(OrderError::Validation {
                kind: kind_text(&challenge.r#type),
                problem,
            })
        });
        if let Some(failed) = failed {
            return failed;
        }
    }
    of_order.map_or(OrderError::Invalid, OrderError::Refused)
}

fn kind_text(kind: &ChallengeType) -> String {
    let known = [ChallengeKind::Http01, ChallengeKind::TlsAlpn01];
    let known = known.iter().find(|known| known.wire() == *kind);
    known.map_or_else(|| "the proof".to_owned(), ToString::to_string)
}

/// The request for a certificate of one name (RFC 2986).
fn request(host: &str, key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut wanted = CertificateParams::new([host.to_owned()])?;
    wanted.distinguished_name = DistinguishedName::new();
    Ok(wanted.serialize_request(key)?.der().to_vec())
}

/// A certificate that nobody would trust, with the proof in it (RFC 8737, 3), and its key.
fn tls_answer(host: &str, proof: &KeyAuthorization) -> Result<String, rcgen::Error> {
    let mut wanted = CertificateParams::new([host.to_owned()])?;
    let digest = proof.digest();
    wanted.custom_extensions = vec![CustomExtension::new_acme_identifier(digest.as_ref())];
    let key = KeyPair::generate()?;
    let made = wanted.self_signed(&key)?;
    Ok(format!("{}{}", key.serialize_pem(), made.pem()))
}
