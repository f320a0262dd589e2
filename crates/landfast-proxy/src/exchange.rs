//! One request from its head to the last byte of its answer, for the access log and the counters.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use http::{HeaderValue, Method, uri::PathAndQuery};
use landfast_routing::headers::Forwarding;
use tokio::time::Instant;

use crate::{
    access_log::{self, Line},
    admission::Admitted,
    backend::{Backend, Service},
    clock,
    route_answers::RouteAnswers,
    shared::{RouteCounters, Shared},
    sticky::Sticky,
};

/// What logs say of a client that left before it had its answer.
const STATUS_CLIENT_GONE: u16 = 499;

/// Dropping it writes it down.
pub(crate) struct Exchange {
    pub(crate) shared: Arc<Shared>,
    pub(crate) began: Instant,
    /// When the newest attempt at a backend began: what it waited for before is not the backend's doing.
    pub(crate) attempt_began: Instant,
    pub(crate) request_id: HeaderValue,
    /// Who asks, also where a proxy that is trusted stands between.
    pub(crate) client: IpAddr,
    /// Whether the client came by HTTPS, to us or to such a proxy.
    pub(crate) is_https: bool,
    /// There once the request was held against its route's rules.
    pub(crate) admitted: Option<Admitted>,
    pub(crate) protocol: &'static str,
    pub(crate) method: Method,
    /// There once it is known which host the request is for.
    pub(crate) forwarding: Option<Rc<Forwarding>>,
    /// Path and query, which is never logged. `None`: the request had none, or was none.
    pub(crate) target: Option<PathAndQuery>,
    pub(crate) route: Option<Arc<RouteCounters>>,
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) backend: Option<Arc<Backend>>,
    pub(crate) status: Option<u16>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) retries: u32,
    pub(crate) cause: Option<String>,
    /// Some of the request's body was not taken from the client yet.
    pub(crate) has_unread: bool,
    /// What the route does with the answer, where it does anything.
    pub(crate) answers: Option<Arc<RouteAnswers>>,
    /// Of a service whose clients are kept where they are.
    pub(crate) sticky: Option<Sticky>,
    /// The answer was given whole, or failed by our or the backend's doing.
    pub(crate) is_over: bool,
}

impl Exchange {
    /// Without its query; empty where there is none.
    pub(crate) fn path(&self) -> &str {
        self.target.as_ref().map_or("", PathAndQuery::path)
    }

    /// With its port, as the client wrote it; empty where none was read.
    pub(crate) fn host(&self) -> &str {
        let forwarding = self.forwarding.as_deref();
        forwarding.map_or("", Forwarding::authority)
    }

    /// Something went wrong that is not the client's leaving.
    pub(crate) fn fail(&mut self, cause: impl Into<String>) {
        self.cause = Some(cause.into());
        self.is_over = true;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.is_over {
            self.cause.get_or_insert_with(|| "client gone".to_owned());
            if let Some(service) = &self.service {
                service.counters.client_gone.add(1);
            }
        }
        let status = self.status.unwrap_or(STATUS_CLIENT_GONE);
        if let Some(route) = &self.route {
            route.statuses.count(status);
        }
        if let Some(backend) = &self.backend {
            backend.counters.bytes_in.add(self.bytes_in);
            backend.counters.bytes_out.add(self.bytes_out);
        }
        if !self.shared.access_log.is_enabled() {
            return;
        }
        let duration = clock::instant().saturating_duration_since(self.began);
        self.shared.access_log.write(Line {
            at: access_log::began(clock::wall(), duration),
            request_id: self.request_id.to_str().unwrap_or_default().to_owned(),
            client: self.client.to_canonical().to_string(),
            protocol: self.protocol,
            route: self.route.as_ref().map(|route| route.name.clone()),
            service: self.service.as_ref().map(|service| service.key.to_string()),
            release: self.backend.as_ref().map(|backend| backend.release.0),
            backend: self.backend.as_ref().map(|backend| backend.id.clone()),
            method: self.method.to_string(),
            host: self.host().to_owned(),
            path: self.path().to_owned(),
            status,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            first_byte_ms: self.first_byte.map(access_log::millis),
            duration_ms: access_log::millis(duration),
            retries: self.retries,
            cause: self.cause.take(),
        });
    }
}
