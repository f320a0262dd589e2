//! Asks a route's gate, and says no in its name. What is decided is in [`landfast_routing::admission`].

use http::{HeaderMap, HeaderValue, Response, StatusCode, header::RETRY_AFTER};
use landfast_routing::{
    admission::{Asked, RateReport, Refusal, seconds},
    table::TableRoute,
};

use crate::{
    answer::AnswerBody,
    clock,
    exchange::Exchange,
    handler::{Client, plain},
    shared::Live,
};

/// What a request's admission leaves to be done to its answer.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    report: RateReport,
}

impl Admitted {
    /// Adds to an answer, ours or the application's, what the route's rules say.
    pub(crate) fn dress(&self, fields: &mut HeaderMap) {
        self.report.write(fields);
    }
}

/// Lets a request in, or answers why not. A request that is decided anew was let in before.
pub(crate) fn admit(
    client: &Client,
    live: &Live,
    entry: &TableRoute,
    fields: &HeaderMap,
    exchange: &mut Exchange,
) -> Option<Response<AnswerBody>> {
    // A release is tested from this host before anybody else sees it.
    let is_test = client.is_preview && client.address.to_canonical().is_loopback();
    if exchange.admitted.is_some() || is_test {
        return None;
    }
    if live
        .table
        .is_ambiguous(&exchange.host, &exchange.path, entry)
    {
        exchange.cause = Some("the path leads to two routes".into());
        let text = "the path can be read in two ways that lead to different places";
        return Some(plain(StatusCode::BAD_REQUEST, text));
    }
    let asked = Asked {
        client: exchange.client,
        path: &exchange.path,
        headers: fields,
    };
    let limiter = &live.routes[entry.index].limiter;
    let result = entry.gate.admit(&asked, limiter, clock::monotonic());
    let counters = &live.services[entry.service].counters;
    let (report, response) = match result {
        Ok(report) => (report, None),
        Err(Refusal::Network) => {
            counters.denied.add(1);
            exchange.cause = Some("the client is in no network that is allowed".into());
            let response = plain(StatusCode::FORBIDDEN, "not allowed from your address");
            (RateReport::default(), Some(response))
        }
        Err(Refusal::Rate { wait, report }) => {
            counters.rate_limited.add(1);
            exchange.cause = Some("over the rate limit".into());
            let mut response = plain(StatusCode::TOO_MANY_REQUESTS, "too many requests");
            let wait = HeaderValue::from(seconds(wait));
            response.headers_mut().insert(RETRY_AFTER, wait);
            (report, Some(response))
        }
    };
    exchange.admitted = Some(Admitted { report });
    response
}
