//! Asks a route's gate, and says no in its name. What is decided is in [`landfast_routing::admission`].

use std::sync::Arc;

use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{AUTHORIZATION, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE},
    request::Parts,
};
use landfast_routing::{
    admission::{Asked, BasicAuth, Preflight, RateReport, Refusal, client_bits, seconds},
    table::TableRoute,
};

use crate::{
    answer::AnswerBody,
    clock,
    credentials::Found,
    exchange::Exchange,
    handler::{Client, plain},
    shared::Live,
};

/// What a request's admission leaves to be done to its answer.
pub(crate) struct Admitted {
    live: Arc<Live>,
    route: usize,
    /// The origin of the page that asks.
    origin: Option<HeaderValue>,
    is_https: bool,
    report: RateReport,
}

impl Admitted {
    /// Adds to an answer, ours or the application's, what the route's rules say.
    pub(crate) fn dress(&self, fields: &mut HeaderMap) {
        self.report.write(fields);
        let gate = &self.live.table.routes[self.route].gate;
        gate.dress(fields, self.origin.as_ref(), self.is_https);
    }
}

/// Lets a request in, or answers why not. A request that is decided anew was let in before.
pub(crate) async fn admit(
    client: &Client,
    live: &Arc<Live>,
    entry: &TableRoute,
    parts: &Parts,
    exchange: &mut Exchange,
) -> Option<Response<AnswerBody>> {
    if exchange.admitted.is_some() {
        return None;
    }
    let mut admitted = Admitted {
        live: Arc::clone(live),
        route: entry.index,
        origin: parts.headers.get(ORIGIN).cloned(),
        is_https: exchange.is_https,
        report: RateReport::default(),
    };
    // A release is tested from this host before anybody else sees it.
    let is_test = client.is_preview && client.address.to_canonical().is_loopback();
    let refusal = if is_test {
        None
    } else {
        let refusal = keep_out(live, entry, parts, exchange, &mut admitted.report);
        match refusal.or_else(|| preflight(entry, parts, exchange)) {
            None => match entry.gate.auth(exchange.path()) {
                None => None,
                Some(auth) => Box::pin(ask_who(client, live, entry, auth, parts, exchange)).await,
            },
            refusal => refusal,
        }
    };
    exchange.admitted = Some(admitted);
    refusal
}

/// Refuses by address, path and rate.
fn keep_out(
    live: &Live,
    entry: &TableRoute,
    parts: &Parts,
    exchange: &mut Exchange,
    report: &mut RateReport,
) -> Option<Response<AnswerBody>> {
    let path = exchange.path();
    if live.table.is_ambiguous(exchange.host(), path, entry) {
        exchange.cause = Some("the path leads to two routes".into());
        let text = "the path can be read in two ways that lead to different places";
        return Some(plain(StatusCode::BAD_REQUEST, text));
    }
    let asked = Asked {
        client: exchange.client,
        path,
        headers: &parts.headers,
    };
    let limiter = &live.routes[entry.index].limiter;
    let counters = &live.services[entry.service].counters;
    match entry.gate.admit(&asked, limiter, clock::monotonic()) {
        Ok(taken) => {
            *report = taken;
            None
        }
        Err(Refusal::Network) => {
            counters.denied.add(1);
            exchange.cause = Some("the client is in no network that is allowed".into());
            let response = plain(StatusCode::FORBIDDEN, "not allowed from your address");
            Some(response)
        }
        Err(Refusal::Rate {
            wait,
            report: taken,
        }) => {
            *report = taken;
            counters.rate_limited.add(1);
            exchange.cause = Some("over the rate limit".into());
            Some(later(StatusCode::TOO_MANY_REQUESTS, seconds(wait)))
        }
    }
}

/// Answers a browser that asks before it sends. It shows no credentials, so it is asked for none.
fn preflight(
    entry: &TableRoute,
    parts: &Parts,
    exchange: &mut Exchange,
) -> Option<Response<AnswerBody>> {
    match entry.gate.preflight(&parts.method, &parts.headers)? {
        Preflight::Allowed(fields) => {
            let mut response = Response::new(AnswerBody::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            *response.headers_mut() = fields;
            Some(response)
        }
        Preflight::Refused => {
            exchange.cause = Some("another origin that may not".into());
            let text = "this origin may not read answers from here";
            Some(plain(StatusCode::FORBIDDEN, text))
        }
    }
}

/// Asks for a name and a password where the route wants them.
async fn ask_who(
    client: &Client,
    live: &Live,
    entry: &TableRoute,
    auth: &BasicAuth,
    parts: &Parts,
    exchange: &mut Exchange,
) -> Option<Response<AnswerBody>> {
    let field = parts.headers.get(AUTHORIZATION);
    let asker = client_bits(exchange.client);
    let verifier = &client.thread.shared.verifier;
    let counters = &live.services[entry.service].counters;
    match verifier.check(auth, field, asker).await {
        Found::Right => None,
        Found::Wrong => {
            counters.denied.add(1);
            exchange.cause = Some("no credentials that are right".into());
            Some(unauthorized(auth))
        }
        Found::Barred { wait } => {
            counters.rate_limited.add(1);
            exchange.cause = Some("wrong credentials too often".into());
            Some(later(StatusCode::TOO_MANY_REQUESTS, seconds(wait)))
        }
        Found::Busy => {
            counters.unavailable.add(1);
            exchange.cause = Some("too many credentials wait to be checked".into());
            Some(later(StatusCode::SERVICE_UNAVAILABLE, 1))
        }
    }
}

fn unauthorized(auth: &BasicAuth) -> Response<AnswerBody> {
    let mut response = plain(StatusCode::UNAUTHORIZED, "a name and a password, please");
    let realm = auth.realm.replace(['"', '\\'], "");
    let challenge = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"");
    let plain = HeaderValue::from_static("Basic realm=\"restricted\"");
    let challenge = HeaderValue::from_str(&challenge).unwrap_or(plain);
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    response
}

fn later(status: StatusCode, wait_s: u64) -> Response<AnswerBody> {
    let mut response = plain(status, "too many requests");
    let wait = HeaderValue::from(wait_s);
    response.headers_mut().insert(RETRY_AFTER, wait);
    response
}
