//! What happens to one request: checks, route, mode of the service, then [`crate::forward`].

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, LOCATION, RETRY_AFTER, TE, UPGRADE,
    },
    request::Parts,
    uri::PathAndQuery,
};
use http_body::Body;
use landfast_framing::{Refusal, check_request};
use landfast_routing::{
    grpc,
    headers::{self, Arrival, Forwarding, X_REQUEST_ID},
    snapshot::{Mode, Protocol},
    table::TableRoute,
};
use tokio::sync::watch;

use crate::{
    activity::Activity,
    admission,
    answer::{self, AnswerBody, Leg},
    clock,
    exchange::Exchange,
    finish::{Finish, Stopped},
    forward::{self, Destination, Outcome, Outgoing, Source},
    pause::{Bounds, Held},
    request_body::{BodyError, ClientBody},
    shared::Live,
    static_files::{self, Asked},
    sticky::{self, Sticky},
    thread::{self, Thread},
    tunnel::Handoff,
    upstream::BackendBody,
};

/// What a client is told when we cannot serve: come back in a moment.
const RETRY_AFTER_SECONDS: u32 = 1;

/// The connection a request came on.
pub(crate) struct Client {
    pub(crate) thread: Rc<Thread>,
    pub(crate) address: IpAddr,
    pub(crate) is_https: bool,
    pub(crate) is_preview: bool,
    /// Of its newest request.
    pub(crate) forwarding: RefCell<Option<Rc<Forwarding>>>,
    /// What becomes of the connection once 101 was answered on it.
    pub(crate) handoff: Cell<Option<Handoff>>,
    pub(crate) activity: Rc<Activity>,
}

enum Reply {
    /// Our own word.
    Own {
        response: Response<AnswerBody>,
        close: bool,
    },
    /// The backend's.
    Backend {
        response: Response<BackendBody>,
        leg: Leg,
        idle: Duration,
        is_upgrade: bool,
    },
}

/// Answers one request, or in its place why its head is `refused`.
pub(crate) async fn handle(
    client: Rc<Client>,
    mut request: Request<ClientBody>,
    refused: Option<Refusal>,
) -> Response<AnswerBody> {
    let busy = client.activity.begin();
    let version = request.version();
    let request_id = headers::valid_request_id(request.headers()).unwrap_or_else(new_request_id);
    request
        .headers_mut()
        .insert(X_REQUEST_ID, request_id.clone());
    let finish = Finish::of(&request);
    let mut exchange = Box::new(open_exchange(&client, &request, request_id.clone()));
    let asks_for_upgrade = version == Version::HTTP_11 && request.headers().contains_key(UPGRADE);
    let reply = match refused {
        Some(refusal) => {
            client.activity.linger();
            // Nothing of the request itself was read, and what stands in for it says nothing.
            exchange.target = None;
            refuse_framing(&client, refusal, &mut exchange)
        }
        None => {
            let reply = decide(&client, request, &mut exchange).await;
            match client.activity.refused() {
                Some(refusal) if reply.is_own() => refuse_framing(&client, refusal, &mut exchange),
                _ => reply,
            }
        }
    };
    let admitted = exchange.admitted.take();
    let shared = &client.thread.shared;
    // The rest of a body would have to be read before another request could be.
    let has_unread = exchange.has_unread && version < Version::HTTP_2;
    if has_unread {
        client.activity.linger();
    }
    let is_leaving = shared.life.is_leaving() && version < Version::HTTP_2;
    if is_leaving {
        // Whatever the client has sent on top: closing over it would reset the connection and take the answer away.
        client.activity.linger();
    }
    let mut is_last = is_leaving || has_unread;
    let answers = exchange.answers.clone();
    let answers = answers.as_deref();
    let response = match reply {
        Reply::Own { response, close } => {
            is_last |= close;
            exchange.status = Some(response.status().as_u16());
            exchange.is_over = true;
            let response = finish.own(answers, response);
            exchange.bytes_out = content_length(response.headers()).unwrap_or(0);
            response
        }
        Reply::Backend {
            response,
            leg,
            idle,
            is_upgrade,
        } => {
            let status = response.status();
            let now = clock::instant();
            let waited = now.saturating_duration_since(exchange.attempt_began);
            exchange.status = Some(status.as_u16());
            exchange.first_byte = Some(now.saturating_duration_since(exchange.began));
            leg.entry
                .backend()
                .counters
                .answered(status.as_u16(), waited);
            let sticky = exchange
                .sticky
                .clone()
                .map(|it| (it, Arc::clone(leg.entry.backend())));
            let mut response = pass_on(&client, response, leg, exchange, idle, is_upgrade);
            if let Some((sticky, backend)) = sticky {
                sticky.keep(&backend, response.headers_mut());
            }
            response
        }
    };
    // What came behind the request was sent to whoever would have spoken the other protocol; it is never HTTP.
    if asks_for_upgrade && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        client.activity.linger();
        is_last = true;
    }
    let mut response = finish.code(answers, response);
    let fields = response.headers_mut();
    if let Some(admitted) = admitted {
        admitted.dress(fields);
    }
    fields.insert(X_REQUEST_ID, request_id);
    if is_last && version < Version::HTTP_2 && !fields.contains_key(UPGRADE) {
        fields.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    thread::pass_turn(Some(0));
    response.map(|body| body.hold(busy))
}

async fn decide(
    client: &Rc<Client>,
    request: Request<ClientBody>,
    exchange: &mut Exchange,
) -> Reply {
    let (parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        return own(
            StatusCode::METHOD_NOT_ALLOWED,
            "this is not a forward proxy",
        )
        .closing();
    }
    let shared = &client.thread.shared;
    // What came by HTTP/1.1 was measured by the scanner.
    if parts.version == Version::HTTP_2
        && (head_bytes(&parts.uri, &parts.headers) > shared.settings.header_bytes_max
            || parts.headers.len() > shared.settings.headers_max)
    {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return own(status, "the request head is too large").closing();
    }
    let checked = headers::check_framing(&parts.headers)
        .and_then(|()| headers::authority(parts.version, &parts.uri, &parts.headers));
    let forwarding = match checked {
        Ok(authority) => forwarding(client, exchange, authority),
        Err(error) => return own(StatusCode::BAD_REQUEST, &error.to_string()).closing(),
    };
    let authority = forwarding.authority();
    // What came by HTTP/1.1 was scanned before it was read.
    if parts.version == Version::HTTP_2 {
        let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let method = parts.method.as_str().as_bytes();
        let checked = check_request(method, target.as_bytes(), authority.as_bytes());
        if let Err(refusal) = checked {
            shared.framing_refused.add(1);
            exchange.cause = Some(format!("refused: {refusal}"));
            return own(StatusCode::BAD_REQUEST, &refusal.to_string());
        }
    }
    exchange.forwarding = Some(Rc::clone(&forwarding));
    let challenges = &shared.certificates.challenges;
    if let Some(response) = challenges.answer(&parts.method, authority, exchange.path()) {
        let close = false;
        return Reply::Own { response, close };
    }
    let length = content_length(&parts.headers).or(body.is_end_stream().then_some(0));
    // HTTP/1.0 has no upgrade (RFC 9110, 7.8).
    let is_websocket =
        parts.version == Version::HTTP_11 && headers::is_websocket_upgrade(&parts.headers);
    // What follows the head would be a body to one reader and another request to the next.
    if is_websocket && (parts.method != Method::GET || length != Some(0)) {
        let text = "a WebSocket begins with a GET that has no body";
        return own(StatusCode::BAD_REQUEST, text).closing();
    }
    let thread = &client.thread;
    let mut changes: Option<watch::Receiver<u64>> = None;
    let mut held: Option<Held> = None;
    let mut waiting = Some((parts, body));
    // A request that has to be decided anew is still one request.
    let mut is_counted = false;
    let mut prepared: Option<Outgoing> = None;
    loop {
        if let Some(changes) = &mut changes {
            changes.mark_unchanged();
        }
        let live = thread.shared.live();
        let Some(entry) = live.table.find(authority, exchange.path()) else {
            exchange.route = None;
            exchange.answers = None;
            return own(StatusCode::NOT_FOUND, "no route has this host and path");
        };
        note_route(exchange, &live, entry);
        let service = Arc::clone(&live.services[entry.service]);
        let protocol = live.table.services[entry.service].protocol;
        let refusal = refuse(
            client,
            entry,
            protocol,
            length,
            is_websocket,
            authority,
            exchange,
        );
        let refusal = match (refusal, &waiting) {
            (None, Some((parts, ..))) => {
                let admitted = admission::admit(client, &live, entry, parts, exchange);
                admitted.await.map(Reply::from)
            }
            (refusal, _) => refusal,
        };
        if let Some(refusal) = refusal {
            service
                .counters
                .refused
                .add(u64::from(refusal.is_refusal()));
            return refusal;
        }
        match &live.table.services[entry.service].mode {
            Mode::Serve => {}
            // The new release is tested before what is held is let through to it.
            Mode::Pause { .. } if client.is_preview => {}
            Mode::Maintenance {
                retry_after_s,
                page,
            } => {
                service.counters.maintenance.add(1);
                return maintenance(*retry_after_s, page.as_deref());
            }
            Mode::Pause {
                requests_max,
                bytes_max,
                wait_max_ms,
            } => {
                let bounds = Bounds {
                    requests_max: *requests_max,
                    bytes_max: *bytes_max,
                };
                let wait_max = Duration::from_millis(*wait_max_ms);
                drop(live);
                // Looked at again once changes are seen: the pause may have ended just before.
                let Some(changes) = &mut changes else {
                    changes = Some(thread.shared.changes());
                    continue;
                };
                let place = held
                    .take()
                    .or_else(|| Held::enter(&service, bounds, length));
                let in_time = match &place {
                    Some(place) => Box::pin(place.wait(wait_max, changes)).await,
                    None => false,
                };
                if !in_time {
                    service.counters.pause_rejected.add(1);
                    exchange.cause = Some("paused, and a bound of the queue was reached".into());
                    return unavailable("the service is paused");
                }
                held = place;
                continue;
            }
        }
        // Released: the place in the queue is given up before the request is sent.
        held = None;
        if let Some((parts, _)) = &waiting
            && !is_websocket
        {
            if !client.is_preview {
                let sticky = Sticky::of(&live, entry.service, &parts.headers, client.is_https);
                exchange.sticky = sticky;
            }
            if let Some(response) = file(client, &live, entry, parts, exchange) {
                return Reply::Own {
                    response,
                    close: false,
                };
            }
        }
        let limits = &entry.route.limits;
        let timeouts = &entry.route.timeouts;
        let idle = Duration::from_millis(timeouts.body_idle_ms);
        if let Some((parts, body)) = waiting.take() {
            let source = if is_websocket {
                Ok(Source::Empty)
            } else {
                match Source::at_hand(body, length) {
                    Ok(source) => Ok(source),
                    Err(body) => Box::pin(Source::keep(body, idle)).await,
                }
            };
            let source = match source {
                Ok(source) => source,
                Err(error) => return broken_body(&service, exchange, error),
            };
            exchange.bytes_in = source.len();
            exchange.has_unread = !source.is_read();
            let is_upgrade = is_websocket;
            prepared = Some(Outgoing {
                method: parts.method,
                target: origin_form(&parts.uri),
                headers: outgoing_headers(parts.headers, entry, protocol, is_upgrade),
                forwarding: Rc::clone(&forwarding),
                source,
                body_bytes_max: limits.body_bytes_max,
                timeouts: timeouts.clone(),
                progress: None,
                is_upgrade,
            });
            // Reading the body took time: look at the newest table again.
            if !thread.shared.is_newest(&live) {
                continue;
            }
        }
        let outgoing = prepared
            .as_mut()
            .expect("prepared above, in this turn or before");
        let destination = Destination {
            service: entry.service,
            preview: client.is_preview,
        };
        if !std::mem::replace(&mut is_counted, true) {
            service.budget.deposit(clock::monotonic());
        }
        let outcome = forward::forward(thread, &live, destination, outgoing, exchange).await;
        if let Some(progress) = &outgoing.progress {
            exchange.has_unread = !progress.ended.get();
        }
        return match outcome {
            Outcome::Moved => continue,
            Outcome::Answered(response, leg) => Reply::Backend {
                response,
                leg,
                idle,
                is_upgrade: is_websocket,
            },
            Outcome::Unavailable => {
                service.counters.unavailable.add(1);
                exchange.cause = Some("no backend is ready".into());
                unavailable("no instance is ready")
            }
            Outcome::Failed(StatusCode::SERVICE_UNAVAILABLE, cause) => {
                service.counters.unavailable.add(1);
                exchange.cause = Some(cause);
                unavailable("too many connections")
            }
            Outcome::Failed(status, cause) => {
                let counter = if status.is_server_error() {
                    &service.counters.gateway_errors
                } else {
                    &service.counters.refused
                };
                counter.add(1);
                exchange.cause = Some(cause);
                own(status, status.canonical_reason().unwrap_or("failed"))
                    .closing_if(!status.is_server_error())
            }
        };
    }
}

/// Builds the client's answer from the backend's.
fn pass_on(
    client: &Rc<Client>,
    response: Response<BackendBody>,
    leg: Leg,
    exchange: Box<Exchange>,
    idle: Duration,
    is_upgrade: bool,
) -> Response<AnswerBody> {
    let (mut parts, body) = response.into_parts();
    parts.version = Version::default();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return switch(
            client,
            Response::from_parts(parts, body),
            leg,
            exchange,
            is_upgrade,
        );
    }
    headers::strip_hop_by_hop(&mut parts.headers);
    let is_stream = answer::is_event_stream(&parts.headers) && exchange.method != Method::HEAD;
    let body = if is_stream {
        answer::relay_events(body, leg, exchange)
    } else {
        // An end in trailers is one that an HTTP/1.1 client would take for the whole answer.
        let is_grpc = exchange.protocol == "h2" && grpc::is_grpc(&parts.headers);
        answer::relay(body, leg, exchange, idle, is_grpc)
    };
    Response::from_parts(parts, body)
}

fn switch(
    client: &Rc<Client>,
    mut response: Response<BackendBody>,
    leg: Leg,
    mut exchange: Box<Exchange>,
    is_upgrade: bool,
) -> Response<AnswerBody> {
    if !is_upgrade {
        exchange.fail("the backend switched protocols without being asked");
        exchange.status = Some(StatusCode::BAD_GATEWAY.as_u16());
        return plain(StatusCode::BAD_GATEWAY, "bad gateway");
    }
    let upstream = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    parts
        .headers
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    parts
        .headers
        .insert(UPGRADE, HeaderValue::from_static("websocket"));
    let Leg {
        thread: _,
        sender,
        entry,
        progress: _,
    } = leg;
    let due = crate::drain::Due::new(entry.backend(), &client.thread.shared);
    let stream = entry.into_stream();
    client.handoff.set(Some(Handoff {
        upstream,
        sender,
        stream,
        due,
        exchange,
    }));
    Response::from_parts(parts, AnswerBody::empty())
}

/// The one answer to a request that the scanner refused.
fn refuse_framing(client: &Client, refusal: Refusal, exchange: &mut Exchange) -> Reply {
    client.thread.shared.framing_refused.add(1);
    exchange.cause = Some(format!("refused: {refusal}"));
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
    own(status, &refusal.to_string()).closing()
}

/// The static file of a request, where its route has files.
fn file(
    client: &Client,
    live: &Live,
    entry: &TableRoute,
    parts: &Parts,
    exchange: &Exchange,
) -> Option<Response<AnswerBody>> {
    let files = exchange.answers.as_ref()?.files.as_ref()?;
    let asked = Asked {
        method: &parts.method,
        headers: &parts.headers,
        path: parts.uri.path(),
        query: parts.uri.query(),
        prefix: &entry.route.path,
        descriptors: &client.thread.shared.descriptors,
    };
    let path = asked.file_path();
    let held = exchange.sticky.as_ref().and_then(|sticky| sticky.held);
    let release = sticky::release_for(live, entry.service, client.is_preview, held, path.as_ref())?;
    let mut response = static_files::answer(files, asked, release)?;
    // What caches keep must not carry a client's cookie.
    if let Some(sticky) = &exchange.sticky
        && path.is_some_and(|path| path.is_page())
    {
        sticky.keep_release(live, entry.service, release, response.headers_mut());
    }
    Some(response)
}

/// What a route does not allow.
fn refuse(
    client: &Client,
    entry: &TableRoute,
    protocol: Protocol,
    length: Option<u64>,
    is_websocket: bool,
    authority: &str,
    exchange: &Exchange,
) -> Option<Reply> {
    let route = &entry.route;
    if route.https_only && !exchange.is_https && !client.is_preview {
        return Some(to_https(authority, exchange, client));
    }
    if is_websocket && (!route.websocket || protocol != Protocol::Http1) {
        return Some(own(
            StatusCode::FORBIDDEN,
            "this route passes no WebSockets on",
        ));
    }
    if length.is_some_and(|length| length > route.limits.body_bytes_max) {
        return Some(
            own(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the request body is too large",
            )
            .closing(),
        );
    }
    None
}

fn to_https(authority: &str, exchange: &Exchange, client: &Client) -> Reply {
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, port)| {
            if port.bytes().all(|byte| byte.is_ascii_digit()) {
                host
            } else {
                authority
            }
        });
    let port = match client
        .thread
        .shared
        .addresses
        .https
        .first()
        .map(std::net::SocketAddr::port)
    {
        Some(443) | None => String::new(),
        Some(port) => format!(":{port}"),
    };
    let target = exchange.target.as_ref().map_or("/", PathAndQuery::as_str);
    let location = format!("https://{host}{port}{target}");
    let mut response = plain(StatusCode::PERMANENT_REDIRECT, "use https");
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(LOCATION, location);
    }
    Reply::Own {
        response,
        close: false,
    }
}

fn broken_body(
    service: &crate::backend::Service,
    exchange: &mut Exchange,
    error: BodyError,
) -> Reply {
    exchange.cause = Some(error.to_string());
    let status = match error {
        BodyError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::Idle => StatusCode::REQUEST_TIMEOUT,
        BodyError::ClientGone => StatusCode::BAD_REQUEST,
    };
    let counters = &service.counters;
    let counter = if error == BodyError::ClientGone {
        &counters.client_gone
    } else {
        &counters.refused
    };
    counter.add(1);
    own(status, &error.to_string()).closing()
}

fn note_route(exchange: &mut Exchange, live: &Live, entry: &TableRoute) {
    exchange.route = Some(Arc::clone(&live.routes[entry.index]));
    exchange.answers = live.answers[entry.index].clone();
    let service = &live.services[entry.service];
    if exchange
        .service
        .as_ref()
        .is_none_or(|before| !Arc::ptr_eq(before, service))
    {
        service.counters.requests.add(1);
        exchange.service = Some(Arc::clone(service));
    }
}

fn open_exchange(
    client: &Client,
    request: &Request<ClientBody>,
    request_id: HeaderValue,
) -> Exchange {
    let trust = &client.thread.shared.settings.trust;
    let origin = trust.origin(client.address, client.is_https, request.headers());
    let began = clock::instant();
    Exchange {
        shared: Arc::clone(&client.thread.shared),
        began,
        attempt_began: began,
        request_id,
        client: origin.client,
        is_https: origin.is_https,
        admitted: None,
        protocol: match (request.version(), client.is_https) {
            (Version::HTTP_2, _) => "h2",
            (Version::HTTP_10, _) => "http/1.0",
            _ => "http/1.1",
        },
        method: request.method().clone(),
        forwarding: None,
        target: request.uri().path_and_query().cloned(),
        route: None,
        service: None,
        backend: None,
        status: None,
        bytes_in: 0,
        bytes_out: 0,
        first_byte: None,
        retries: 0,
        cause: None,
        has_unread: !request.body().is_end_stream(),
        answers: None,
        sticky: None,
        is_over: false,
    }
}

fn outgoing_headers(
    mut fields: HeaderMap,
    entry: &TableRoute,
    protocol: Protocol,
    is_upgrade: bool,
) -> HeaderMap {
    let takes_trailers = headers::takes_trailers(&fields) && !is_upgrade;
    headers::strip_hop_by_hop(&mut fields);
    entry.gate.edit_request(&mut fields);
    if takes_trailers {
        fields.insert(TE, HeaderValue::from_static("trailers"));
    }
    Forwarding::clear(&mut fields, protocol);
    join_cookies(&mut fields);
    if is_upgrade {
        fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    fields
}

/// What the backend is told of where the request came from.
fn forwarding(client: &Client, exchange: &Exchange, authority: &str) -> Rc<Forwarding> {
    let arrival = Arrival {
        client: exchange.client,
        is_https: exchange.is_https,
        authority,
    };
    let mut kept = client.forwarding.borrow_mut();
    match &mut *kept {
        Some(before) if before.is_for(arrival) => Rc::clone(before),
        other => Rc::clone(other.insert(Rc::new(Forwarding::new(arrival)))),
    }
}

/// HTTP/2 may split cookies into several fields; HTTP/1.1 knows one (RFC 9113, 8.2.3).
fn join_cookies(fields: &mut HeaderMap) {
    if fields.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let parts: Vec<_> = fields
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        fields.insert(COOKIE, joined);
    }
}

fn origin_form(uri: &Uri) -> Uri {
    let mut parts = http::uri::Parts::default();
    let target = uri.path_and_query().cloned();
    parts.path_and_query = Some(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).expect("a path alone is a target")
}

fn head_bytes(uri: &Uri, fields: &HeaderMap) -> usize {
    let target = uri
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    // Each line has a colon, a space and its end beside name and value.
    fields.iter().fold(target, |sum, (name, value)| {
        sum + name.as_str().len() + value.len() + 4
    })
}

fn content_length(fields: &HeaderMap) -> Option<u64> {
    fields.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn new_request_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let random: [u8; 16] = rand::random();
    let mut id = Vec::with_capacity(2 * random.len());
    for byte in random {
        id.extend([byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]));
    }
    HeaderValue::from_maybe_shared(Bytes::from(id)).expect("hexadecimal digits")
}

/// A short answer of our own.
pub(crate) fn plain(status: StatusCode, text: &str) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::whole(format!("{text}\n")));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn own(status: StatusCode, text: &str) -> Reply {
    Reply::Own {
        response: plain(status, text),
        close: false,
    }
}

fn unavailable(text: &str) -> Reply {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, text);
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    Reply::Own {
        response,
        close: false,
    }
}

fn maintenance(retry_after_s: u32, page: Option<&str>) -> Reply {
    let mut response = match page {
        None => {
            let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "down for maintenance");
            response.extensions_mut().insert(Stopped::Plain);
            response
        }
        Some(page) => {
            let mut response = Response::new(AnswerBody::whole(page.to_owned()));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            let kind = HeaderValue::from_static("text/html; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response.extensions_mut().insert(Stopped::WithPage);
            response
        }
    };
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from(retry_after_s));
    Reply::Own {
        response,
        close: false,
    }
}

impl From<Response<AnswerBody>> for Reply {
    fn from(response: Response<AnswerBody>) -> Self {
        Self::Own {
            response,
            close: false,
        }
    }
}

impl Reply {
    fn closing(self) -> Self {
        self.closing_if(true)
    }

    fn closing_if(self, close: bool) -> Self {
        match self {
            Self::Own {
                response,
                close: before,
            } => Self::Own {
                response,
                close: before || close,
            },
            backend @ Self::Backend { .. } => backend,
        }
    }

    fn is_own(&self) -> bool {
        matches!(self, Self::Own { .. })
    }

    /// Refusals count; a redirect does not.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Own { response, .. } if response.status().is_client_error())
    }
}
