//! One request and its answer, judged.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use tokio::{sync::Semaphore, time::timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock,
    connection::{Connector, Failure, Protocol},
    http1::{Head, Http1, Idleness, ReadError, is_reset},
    http2::Pool,
    plan::Planned,
    receipts::Post,
    settings::Settings,
    tally::{Kind, LostSample, Reason, Tally},
};

/// An idle connection older than this is closed by us, well before any server would.
const IDLE_TIME_MAX: Duration = Duration::from_secs(30);
/// Different bodies that are sent, so that an answer to another request is noticed.
const BODIES: usize = 16;

/// Everything the tasks of a run share.
pub(crate) struct Shared {
    pub settings: Settings,
    pub connector: Connector,
    pub run: String,
    pub tally: Mutex<Tally>,
    pub posts: Mutex<Vec<Post>>,
    pub pool: Pool,
    pub tasks: TaskTracker,
    /// No more requests; streams close in order.
    pub stop: CancellationToken,
    /// When the judge itself was last found late.
    pub late_at: Mutex<Option<Instant>>,
    idle: Mutex<VecDeque<Idle>>,
    /// One for each connection that may be kept.
    seats: Option<Semaphore>,
    bodies: Vec<(Bytes, String)>,
}

struct Idle {
    http: Http1,
    opened: Instant,
    since: Instant,
}

/// The connection a request went over, for samples.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub http: &'static str,
    pub kept: bool,
    pub opened: Instant,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
}

impl Shared {
    pub(crate) fn new(settings: Settings, connector: Connector, run: String) -> Self {
        let bodies = (0..BODIES).map(|number| {
            let body: Vec<u8> = (0..settings.post_bytes)
                .map(|index| crate::plan::mix((number * settings.post_bytes + index) as u64) as u8)
                .collect();
            let hex = digest(&SHA256, &body)
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            (Bytes::from(body), hex)
        });
        Self {
            tally: Mutex::new(Tally::new(run.clone(), settings.rate, settings.samples_max)),
            bodies: bodies.collect(),
            posts: Mutex::default(),
            pool: Pool::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            late_at: Mutex::default(),
            idle: Mutex::default(),
            seats: (settings.connections_max > 0).then(|| Semaphore::new(settings.connections_max)),
            settings,
            connector,
            run,
        }
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn posts(&self) -> MutexGuard<'_, Vec<Post>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines of a request's head that are the same for all.
    pub(crate) fn common_headers(&self) -> String {
        let mut text = format!(
            "host: {}\r\nuser-agent: landfast-judge\r\n",
            self.settings.host
        );
        for (name, value) in &self.settings.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text
    }
}

/// What a planned request asks for.
pub(crate) struct Request {
    pub method: &'static str,
    pub path: String,
    pub body: Bytes,
    pub id: Option<String>,
}

/// Sends one request at its time and counts what became of it.
pub(crate) async fn perform(shared: Arc<Shared>, planned: Planned, scheduled: Instant) {
    let post = (planned.kind == Kind::Post).then(|| {
        let mut posts = shared.posts();
        posts.push(Post::Sent);
        posts.len() - 1
    });
    let request = request(&shared, planned, post);
    shared.tally().sent(planned.kind);
    let expected = if planned.kind == Kind::Wait {
        shared.settings.wait
    } else {
        Duration::ZERO
    };
    let limit = scheduled + expected + shared.settings.late_after + shared.settings.never_after;
    let mut route = Route {
        http: if planned.http2 { "2" } else { "1.1" },
        kept: false,
        opened: scheduled,
    };
    let exchange = async {
        match planned.http2 {
            true => crate::http2::exchange(&shared, planned, &request, &mut route).await,
            false => over_http1(&shared, planned, &request, &mut route).await,
        }
    };
    let result = timeout_at(limit.into(), exchange).await;
    let result =
        result.unwrap_or_else(|_| Err(Failure::new(Reason::NoAnswer, "no whole answer in time")));
    let latency = clock::instant().duration_since(scheduled);
    if result
        .as_ref()
        .is_ok_and(|answer| is_limited(&shared, &answer.head))
    {
        shared.tally().limited(planned.kind);
        if let Some(number) = post {
            shared.posts()[number] = Post::Limited;
        }
        return;
    }
    let judged = result
        .and_then(|answer| judge(&shared, planned, post, expected, latency, answer, scheduled));
    let mut tally = shared.tally();
    match judged {
        Ok((head, release)) => {
            tally.answered(planned.kind, &release, head.status, head.is_fault, latency);
            if let (Some(number), 200) = (post, head.status) {
                shared.posts()[number] = Post::Acknowledged;
            }
        }
        Err(Failure {
            reason,
            detail,
            app_ms,
        }) => {
            let status = detail
                .strip_prefix("status ")
                .and_then(|rest| rest.get(..3)?.parse().ok());
            let mut sample = sample(planned.kind, reason, detail, &route);
            (sample.status, sample.id) = (status, request.id.clone());
            (sample.waited_ms, sample.app_ms) = (Some(latency.as_millis() as u64), app_ms);
            tally.lost(sample);
            if let Some(number) = post {
                shared.posts()[number] = Post::Lost;
            }
        }
    }
}

/// Whether a request was refused by a rate limit, as agreed. An application that answers 429 itself has answered.
fn is_limited(shared: &Shared, head: &Head) -> bool {
    shared.settings.expects_limits && head.status == 429 && head.has_rate && head.release.is_none()
}

/// A sample of something that went wrong on `route`.
pub(crate) fn sample(kind: Kind, reason: Reason, detail: String, route: &Route) -> LostSample {
    LostSample {
        at: clock::now(),
        kind,
        reason,
        detail,
        http: route.http.to_owned(),
        kept: route.kept,
        connection_age_ms: clock::instant().duration_since(route.opened).as_millis() as u64,
        status: None,
        release: None,
        id: None,
        waited_ms: None,
        app_ms: None,
    }
}

fn request(shared: &Shared, planned: Planned, post: Option<usize>) -> Request {
    match post {
        Some(number) => Request {
            method: "POST",
            path: "/v2/rehearsal/receipts".to_owned(),
            body: shared.bodies[number % BODIES].0.clone(),
            id: Some(format!("{}-{number}", shared.run)),
        },
        None => {
            let paths = &shared.settings.paths;
            let path = match planned.kind {
                Kind::Wait => format!("/v2/rehearsal/wait?ms={}", shared.settings.wait.as_millis()),
                Kind::Get | Kind::Post | Kind::Websocket | Kind::Events => paths
                    .get(planned.number as usize % paths.len().max(1))
                    .map_or("/", String::as_str)
                    .to_owned(),
            };
            Request {
                method: "GET",
                path,
                body: Bytes::new(),
                id: None,
            }
        }
    }
}

/// Whether a whole answer is the application's, in time and to this request.
fn judge(
    shared: &Shared,
    planned: Planned,
    post: Option<usize>,
    expected: Duration,
    latency: Duration,
    answer: Answer,
    scheduled: Instant,
) -> Result<(Head, String), Failure> {
    let Answer { head, body } = answer;
    let Some(release) = head.release.clone() else {
        let text: String = String::from_utf8_lossy(&body).chars().take(120).collect();
        return Err(Failure::new(
            Reason::NotFromApp,
            format!("status {} without x-release: {text}", head.status),
        ));
    };
    let app_time = head
        .app_time
        .as_ref()
        .and_then(|text| text.parse::<f64>().ok());
    let app_time = app_time.filter(|time| time.is_finite() && *time >= 0.0);
    let app_time = Duration::from_secs_f64(app_time.unwrap_or(0.0).min(3.6e6) / 1e3).max(expected);
    if latency > app_time + shared.settings.late_after {
        let late_at = *shared
            .late_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if late_at.is_some_and(|late_at| late_at >= scheduled) {
            // The judge did not look in time; it cannot know when the answer came.
            shared.tally().judge_late_answer();
        } else {
            let detail = format!(
                "after {} ms of which the application took {}",
                latency.as_millis(),
                app_time.as_millis()
            );
            return Err(Failure {
                app_ms: Some(app_time.as_millis() as u64),
                ..Failure::new(Reason::Late, detail)
            });
        }
    }
    if let Some(number) = post
        && head.status == 200
    {
        let text = String::from_utf8_lossy(&body);
        let id = format!("\"{}-{number}\"", shared.run);
        if !text.contains(&shared.bodies[number % BODIES].1) || !text.contains(&id) {
            let text: String = text.chars().take(200).collect();
            return Err(Failure::new(
                Reason::WrongBody,
                format!("answered with {text}"),
            ));
        }
    }
    if head.status == 200 && planned.kind != Kind::Post && body.is_empty() {
        return Err(Failure::new(Reason::ShortBody, "an empty body"));
    }
    Ok((head, release))
}

async fn over_http1(
    shared: &Arc<Shared>,
    planned: Planned,
    request: &Request,
    route: &mut Route,
) -> Result<Answer, Failure> {
    let text = head_text(shared, planned, request);
    let _seat = match &shared.seats {
        Some(seats) if !planned.new_connection => seats.acquire().await.ok(),
        Some(_) | None => None,
    };
    let (mut http, write_failure) = loop {
        let mut http = match planned.new_connection {
            true => open(shared, route).await?,
            false => kept(shared, route).await?,
        };
        match http.write([text.as_bytes(), &request.body]).await {
            Ok(()) => break (http, None),
            // The server closed it before anything was sent: an honest client takes another connection.
            Err(error) if error.bytes_written == 0 && route.kept => {
                let mut tally = shared.tally();
                tally.connections().closed_idle += 1;
                tally.connections().reset += u64::from(is_reset(&error.source));
            }
            // It may have answered before it stopped reading.
            Err(error) => break (http, Some(error)),
        }
    };
    let mut started = false;
    let head = http
        .head(&mut started)
        .await
        .map_err(|error| match (error, write_failure) {
            (_, Some(failed)) if !started => {
                let detail = format!(
                    "after {} bytes were written: {}",
                    failed.bytes_written, failed.source
                );
                Failure::new(Reason::Reset, detail)
            }
            (ReadError::Closed, _) if !started => {
                Failure::new(Reason::NoAnswer, "closed without an answer")
            }
            (error, _) => read_failure(error, "in the head"),
        })?;
    let mut body = Vec::new();
    while let Some(data) = http
        .data()
        .await
        .map_err(|error| read_failure(error, "in the body"))?
    {
        // Enough to check and to show; the rest only has to be there.
        if body.len() < 4 << 10 {
            body.extend_from_slice(&data);
        }
    }
    if head.closes && !planned.new_connection {
        shared.tally().connections().closed_announced += 1;
    }
    if !head.closes && !planned.new_connection {
        let idle = Idle {
            http,
            opened: route.opened,
            since: clock::instant(),
        };
        shared
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(idle);
    }
    Ok(Answer { head, body })
}

pub(crate) fn read_failure(error: ReadError, place: &str) -> Failure {
    match error {
        ReadError::Closed => Failure::new(Reason::ShortBody, format!("ended {place}")),
        ReadError::Broken(error) => Failure::new(Reason::Reset, format!("{place}: {error}")),
        ReadError::Malformed(what) => Failure::new(Reason::Malformed, what),
    }
}

fn head_text(shared: &Shared, planned: Planned, request: &Request) -> String {
    let mut text = format!(
        "{} {} HTTP/1.1\r\n{}",
        request.method,
        request.path,
        shared.common_headers()
    );
    if let Some(id) = &request.id {
        text.push_str(&format!(
            "x-receipt-id: {id}\r\ncontent-length: {}\r\n",
            request.body.len()
        ));
    }
    if planned.new_connection && planned.asks_close {
        text.push_str("connection: close\r\n");
    }
    text.push_str("\r\n");
    text
}

async fn open(shared: &Shared, route: &mut Route) -> Result<Http1, Failure> {
    let io = shared.connector.open(Protocol::Http1).await?;
    shared.tally().connections().opened += 1;
    (route.kept, route.opened) = (false, clock::instant());
    Ok(Http1::new(io))
}

/// A connection that has carried requests before, or a new one that will.
async fn kept(shared: &Shared, route: &mut Route) -> Result<Http1, Failure> {
    loop {
        let idle = shared
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        let Some(mut idle) = idle else {
            return open(shared, route).await;
        };
        if clock::instant().duration_since(idle.since) > IDLE_TIME_MAX {
            continue;
        }
        let idleness = idle.http.idleness().await;
        if idleness == Idleness::Usable {
            (route.kept, route.opened) = (true, idle.opened);
            shared.tally().connections().reused += 1;
            return Ok(idle.http);
        }
        let mut tally = shared.tally();
        tally.connections().closed_idle += 1;
        tally.connections().reset += u64::from(idleness == Idleness::Reset);
    }
}
