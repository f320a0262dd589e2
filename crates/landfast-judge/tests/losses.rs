//! Shows that the judge sees every kind of loss, and none where there is none: each test runs it against a small
//! server that is sound but for one thing.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a failed unwrap is the failure"
)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a flaw concerns one place; everywhere else the server is sound"
)]

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use landfast_judge::{Judge, Reason, Settings, Verdict};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::sleep,
};

/// What is wrong with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    TruncatedBody,
    TruncatedHead,
    Reset,
    Silent,
    EndsWithoutAnswer,
    Late,
    ForeignStatus,
    OverItsRate,
    DoubledId,
    MissingId,
    OtherBody,
    Fault,
    /// Closes each kept connection after one answer without a word, when it is idle.
    ClosesIdle,
    AnnouncesClose,
    SocketCutInMessage,
    SocketClosedInMessage,
    SocketMoves,
    SocketNormalClose,
    SocketGap,
    SocketNoEcho,
    EventsCutInEvent,
    EventsEnd,
    EventsGap,
    EventsBreak,
}

/// One request in seven is served wrong, so that the judge also sees sound ones.
const EVERY: u64 = 7;

struct Server {
    wrong: Wrong,
    receipts: PathBuf,
    requests: AtomicU64,
    ids: Mutex<BTreeMap<String, u64>>,
}

impl Server {
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let server = Arc::clone(&self);
            tasks.spawn(async move { server.connection(stream).await });
            while tasks.try_join_next().is_some() {}
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).unwrap();
        let mut buffer = Vec::new();
        loop {
            let head = loop {
                if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                    break buffer.drain(..end + 4).collect::<Vec<u8>>();
                }
                if stream.read_buf(&mut buffer).await.ok()? == 0 {
                    return None;
                }
            };
            let head = String::from_utf8(head).unwrap();
            let header = |name: &str| {
                head.lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                    .map(str::to_owned)
            };
            let length: usize =
                header("content-length").map_or(0, |length| length.parse().unwrap());
            while buffer.len() < length {
                if stream.read_buf(&mut buffer).await.ok()? == 0 {
                    return None;
                }
            }
            let body: Vec<u8> = buffer.drain(..length).collect();
            if let Some(key) = header("sec-websocket-key") {
                return self.socket(stream, &key).await;
            }
            if head.starts_with("GET /v2/events") {
                return self.events(stream).await;
            }
            let number = self.requests.fetch_add(1, Ordering::Relaxed);
            let wrong = if number % EVERY == 3 {
                self.wrong
            } else {
                Wrong::Nothing
            };
            if let Some(ms) = head
                .split("wait?ms=")
                .nth(1)
                .and_then(|rest| rest.split(' ').next())
            {
                sleep(Duration::from_millis(ms.parse().unwrap())).await;
            }
            let mut text = r#"{"fine":true}"#.to_owned();
            if let Some(id) = header("x-receipt-id") {
                let hex: String = digest(&SHA256, &body)
                    .as_ref()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                text = format!(r#"{{"id":"{id}","sha256":"{hex}"}}"#);
                *self.ids.lock().unwrap().entry(id.clone()).or_default() += 1;
                let times = match wrong {
                    Wrong::DoubledId => 2,
                    Wrong::MissingId | Wrong::OverItsRate => 0,
                    _ => 1,
                };
                let path = self.receipts.join("receipts-test.log");
                let mut file = std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .unwrap();
                file.write_all(format!("{id}\n").repeat(times).as_bytes())
                    .unwrap();
            }
            let (mut status, mut more) = ("200 OK", "x-release: 1\r\n");
            match wrong {
                Wrong::TruncatedBody => {
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nx-release: 1\r\ncontent-length: {}\r\n\r\n",
                        text.len()
                    );
                    stream
                        .write_all(format!("{head}{}", &text[..5]).as_bytes())
                        .await
                        .ok()?;
                    return None;
                }
                Wrong::TruncatedHead => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nx-rel").await.ok()?;
                    return None;
                }
                Wrong::Reset => {
                    // Closing with a linger of nothing sends a reset.
                    stream.set_zero_linger().unwrap();
                    return None;
                }
                Wrong::Silent => sleep(Duration::from_secs(3_600)).await,
                Wrong::EndsWithoutAnswer => return None,
                Wrong::Late => sleep(Duration::from_millis(1_300)).await,
                Wrong::ForeignStatus => (status, more) = ("503 Service Unavailable", ""),
                Wrong::OverItsRate => {
                    (status, more) = (
                        "429 Too Many Requests",
                        "retry-after: 1\r\nratelimit: \"all\";r=0;t=1\r\n",
                    )
                }
                Wrong::OtherBody => text = r#"{"id":"another","sha256":"00"}"#.to_owned(),
                Wrong::Fault => {
                    (status, more) = (
                        "500 Internal Server Error",
                        "x-release: 1\r\nx-fault: injected\r\n",
                    )
                }
                Wrong::AnnouncesClose => more = "x-release: 1\r\nconnection: close\r\n",
                _ => {}
            }
            let answer = format!(
                "HTTP/1.1 {status}\r\n{more}content-length: {}\r\n\r\n{text}",
                text.len()
            );
            stream.write_all(answer.as_bytes()).await.ok()?;
            if matches!(wrong, Wrong::ClosesIdle | Wrong::AnnouncesClose)
                || head.contains("connection: close")
            {
                return None;
            }
        }
    }

    async fn socket(&self, mut stream: TcpStream, key: &str) -> Option<()> {
        let accept = digest(
            &SHA1_FOR_LEGACY_USE_ONLY,
            format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
        );
        let accept = base64(accept.as_ref());
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nx-release: 1\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
             sec-websocket-accept: {accept}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        let frame = |first: u8, text: &str| [&[first, text.len() as u8], text.as_bytes()].concat();
        let mut received = Vec::new();
        for number in 0_u64.. {
            let named = if self.wrong == Wrong::SocketGap && number == 3 {
                4
            } else {
                number
            };
            let text = format!(r#"{{"number":{named}}}"#);
            let (first, rest) = text.split_at(4);
            stream.write_all(&frame(0x01, first)).await.ok()?;
            if number == 5 && self.wrong == Wrong::SocketCutInMessage {
                return None;
            }
            if number == 5 && self.wrong == Wrong::SocketClosedInMessage {
                stream.write_all(&frame(0x88, "\u{3}\u{74}")).await.ok()?;
                return None;
            }
            stream.write_all(&frame(0x80, rest)).await.ok()?;
            let code: Option<u16> = match self.wrong {
                Wrong::SocketMoves => Some(1012),
                Wrong::SocketNormalClose => Some(1000),
                _ => None,
            };
            if let Some(code) = code.filter(|_| number == 5) {
                stream
                    .write_all(&[&[0x88, 2][..], &code.to_be_bytes()].concat())
                    .await
                    .ok()?;
                drop(stream.read_buf(&mut received).await);
                return None;
            }
            let read =
                tokio::time::timeout(Duration::from_millis(20), stream.read_buf(&mut received))
                    .await;
            if matches!(read, Ok(Ok(0) | Err(_))) {
                return None;
            }
            if let [0x88, ..] = received[..] {
                return None;
            }
            if let [0x81, length, a, b, c, d, ..] = received[..] {
                let length = usize::from(length & 0x7F);
                let masked = &received[6..6 + length];
                let text: Vec<u8> = masked
                    .iter()
                    .zip([a, b, c, d].into_iter().cycle())
                    .map(|(x, y)| x ^ y)
                    .collect();
                received.clear();
                if self.wrong != Wrong::SocketNoEcho {
                    let echo = format!(r#"{{"echo":"{}"}}"#, String::from_utf8(text).unwrap());
                    stream.write_all(&frame(0x81, &echo)).await.ok()?;
                }
            }
        }
        None
    }

    async fn events(&self, mut stream: TcpStream) -> Option<()> {
        let head = "HTTP/1.1 200 OK\r\nx-release: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.ok()?;
        for number in 0.. {
            let named = if self.wrong == Wrong::EventsGap && number == 3 {
                2
            } else {
                number
            };
            let event = format!("id: {named}\ndata: x\n\n");
            let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
            match (number, self.wrong) {
                (5, Wrong::EventsCutInEvent) => {
                    stream
                        .write_all(format!("{}0\r\n\r\n", chunk(&event[..6])).as_bytes())
                        .await
                        .ok()?;
                    return None;
                }
                (5, Wrong::EventsEnd) => {
                    stream
                        .write_all(format!("{}0\r\n\r\n", chunk(&event)).as_bytes())
                        .await
                        .ok()?;
                    return None;
                }
                (5, Wrong::EventsBreak) => return None,
                _ => stream.write_all(chunk(&event).as_bytes()).await.ok()?,
            }
            sleep(Duration::from_millis(20)).await;
        }
        None
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits: Vec<bool> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1))
        .collect();
    while !bits.len().is_multiple_of(6) {
        bits.push(false);
    }
    let index = |six: &[bool]| {
        six.iter()
            .fold(0, |index, bit| index << 1 | usize::from(*bit))
    };
    let mut text: String = bits
        .chunks(6)
        .map(|six| char::from(ALPHABET[index(six)]))
        .collect();
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    text
}

/// Load for a second against a server with that flaw.
fn run(wrong: Wrong, adjust: impl Fn(&mut Settings)) -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let target = listener.local_addr().unwrap();
    let server = Arc::new(Server {
        wrong,
        receipts: folder.path().to_owned(),
        requests: AtomicU64::new(0),
        ids: Mutex::default(),
    });
    let serving = runtime.spawn(Arc::clone(&server).serve(listener));
    let verdict = judged(target, folder.path(), adjust);
    serving.abort();
    verdict
}

fn judged(target: std::net::SocketAddr, folder: &Path, adjust: impl Fn(&mut Settings)) -> Verdict {
    let mut settings = Settings::new(target, "api.example");
    (settings.rate, settings.websockets, settings.event_streams) = (200, 0, 0);
    settings.wait = Duration::from_millis(300);
    settings.never_after = Duration::from_millis(500);
    settings.stream_every = Duration::from_millis(20);
    settings.silence_max = Duration::from_secs(3);
    // Machines that test are busy; the judge's own lateness has its own test.
    settings.judge_late_after = Duration::from_secs(5);
    settings.receipts = Some(folder.to_owned());
    adjust(&mut settings);
    let judge = Judge::start(settings).unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    judge.finish()
}

/// The judge must find this reason, and no other.
fn finds(wrong: Wrong, reason: Reason) {
    finds_one_of(wrong, &[reason]);
}

fn finds_one_of(wrong: Wrong, reasons: &[Reason]) {
    let verdict = run(wrong, |_| {});
    let found: Vec<Reason> = verdict.lost_by_reason.keys().copied().collect();
    assert!(
        !found.is_empty() && found.iter().all(|one| reasons.contains(one)),
        "{wrong:?}: {verdict}"
    );
    assert!(
        verdict.lost_total >= 10 && !verdict.is_clean(),
        "{wrong:?}: {verdict}"
    );
    assert_eq!(verdict.in_flight, 0, "{verdict}");
}

fn cuts(wrong: Wrong, reason: Reason) {
    let streams = |settings: &mut Settings| {
        (settings.rate, settings.websockets, settings.event_streams) = (0, 5, 5)
    };
    let verdict = run(wrong, streams);
    assert_eq!(
        verdict.cut_by_reason.keys().copied().collect::<Vec<_>>(),
        [reason],
        "{wrong:?}: {verdict}"
    );
    assert!(
        verdict.streams_cut >= 5 && !verdict.is_clean() && verdict.lost_total == 0,
        "{wrong:?}: {verdict}"
    );
    assert_eq!(verdict.streams.open, 0, "{verdict}");
}

#[test]
fn a_sound_server_loses_nothing() {
    let verdict = run(Wrong::Nothing, |settings| {
        (settings.websockets, settings.event_streams) = (10, 10)
    });
    assert!(verdict.is_clean(), "{verdict}");
    assert!(
        verdict.requests >= 250 && verdict.answered == verdict.requests,
        "{verdict}"
    );
    assert!(
        verdict.connections.reused > 50 && verdict.connections.opened > 100,
        "{verdict}"
    );
    assert!(
        verdict.streams.messages > 200
            && verdict.streams.events > 200
            && verdict.streams.echoes > 10,
        "{verdict}"
    );
    let receipts = verdict.receipts.clone().unwrap();
    assert!(
        receipts.acknowledged > 50 && receipts.found == receipts.acknowledged,
        "{verdict}"
    );
    assert_eq!(verdict.releases.keys().collect::<Vec<_>>(), ["1"]);
    let json = serde_json::to_string(&verdict).unwrap();
    assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict);
}

#[test]
fn a_truncated_answer_is_short() {
    finds(Wrong::TruncatedBody, Reason::ShortBody);
    finds(Wrong::TruncatedHead, Reason::ShortBody);
}

#[test]
fn a_reset_is_seen() {
    finds(Wrong::Reset, Reason::Reset);
}

#[test]
fn no_answer_is_seen_however_it_stays_away() {
    finds(Wrong::Silent, Reason::NoAnswer);
    finds(Wrong::EndsWithoutAnswer, Reason::NoAnswer);
}

#[test]
fn a_refused_connection_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let verdict = judged(closed, folder.path(), |settings| settings.websockets = 3);
    assert_eq!(
        verdict.lost_by_reason.keys().copied().collect::<Vec<_>>(),
        [Reason::Refused],
        "{verdict}"
    );
    assert_eq!(
        (verdict.lost_total, verdict.answered),
        (verdict.requests, 0)
    );
    assert!(!verdict.lost.is_empty() && verdict.lost.len() <= 200);
}

#[test]
fn a_late_answer_is_lost_but_a_slow_application_is_not() {
    finds(Wrong::Late, Reason::Late);
    let verdict = run(Wrong::Nothing, |settings| {
        settings.wait_percent = 50;
        settings.late_after = Duration::from_secs(2);
    });
    assert!(verdict.is_clean(), "{verdict}");
}

#[test]
fn a_status_the_instance_did_not_send_is_lost_and_a_fault_is_not() {
    finds(Wrong::ForeignStatus, Reason::NotFromApp);
    let verdict = run(Wrong::Fault, |_| {});
    assert!(verdict.is_clean() && verdict.faults >= 20, "{verdict}");
    assert_eq!(verdict.releases["1"].faults, verdict.faults);
    assert_eq!(verdict.app_5xx, 0);
}

#[test]
fn a_request_over_its_rate_is_lost_only_where_no_rate_was_agreed() {
    finds(Wrong::OverItsRate, Reason::NotFromApp);
    let verdict = run(Wrong::OverItsRate, |settings| {
        settings.expects_limits = true
    });
    assert!(verdict.is_clean() && verdict.limited >= 20, "{verdict}");
    assert_eq!(verdict.answered + verdict.limited, verdict.requests);
    // Another refusal is none of a rate.
    let verdict = run(Wrong::ForeignStatus, |settings| {
        settings.expects_limits = true
    });
    assert!(!verdict.is_clean() && verdict.limited == 0, "{verdict}");
}

#[test]
fn ids_are_held_against_the_applications_own_logs() {
    for (wrong, reason) in [
        (Wrong::DoubledId, Reason::ReceiptDoubled),
        (Wrong::MissingId, Reason::ReceiptMissing),
    ] {
        let verdict = run(wrong, |settings| settings.post_percent = 90);
        assert_eq!(
            verdict.lost_by_reason.keys().copied().collect::<Vec<_>>(),
            [reason],
            "{verdict}"
        );
        assert!(
            verdict.lost_total >= 10 && verdict.lost[0].id.is_some(),
            "{verdict}"
        );
    }
}

#[test]
fn an_answer_to_another_request_is_lost() {
    let verdict = run(Wrong::OtherBody, |settings| settings.post_percent = 90);
    assert_eq!(
        verdict.lost_by_reason.keys().copied().collect::<Vec<_>>(),
        [Reason::WrongBody],
        "{verdict}"
    );
}

#[test]
fn logs_that_cannot_be_read_make_the_run_invalid() {
    let verdict = run(Wrong::Nothing, |settings| {
        settings.receipts = Some(PathBuf::from("nowhere/at/all"))
    });
    assert!(
        !verdict.valid && verdict.lost_total == 0 && !verdict.is_clean(),
        "{verdict}"
    );
}

#[test]
fn a_connection_closed_while_idle_or_with_notice_is_no_loss() {
    // Slow enough that the end of a connection arrives before the next request is due.
    let calm = |settings: &mut Settings| (settings.rate, settings.new_connection_percent) = (60, 0);
    let verdict = run(Wrong::ClosesIdle, calm);
    assert!(
        verdict.is_clean() && verdict.connections.closed_idle > 3,
        "{verdict}"
    );
    let verdict = run(Wrong::AnnouncesClose, calm);
    assert!(
        verdict.is_clean() && verdict.connections.closed_announced > 3,
        "{verdict}"
    );
}

#[test]
fn a_websocket_may_end_with_1012_between_messages_only() {
    cuts(Wrong::SocketCutInMessage, Reason::CutInMessage);
    cuts(Wrong::SocketClosedInMessage, Reason::CutInMessage);
    cuts(Wrong::SocketNormalClose, Reason::UnexpectedClose);
    let streams = |settings: &mut Settings| (settings.rate, settings.websockets) = (0, 5);
    let verdict = run(Wrong::SocketMoves, streams);
    assert!(
        verdict.is_clean() && verdict.streams.moved >= 5 && verdict.streams_opened > 5,
        "{verdict}"
    );
}

#[test]
fn a_websocket_must_be_gapless_and_echo() {
    cuts(Wrong::SocketGap, Reason::Gap);
    cuts(Wrong::SocketNoEcho, Reason::Silent);
}

#[test]
fn an_event_stream_may_end_between_events_only() {
    cuts(Wrong::EventsCutInEvent, Reason::CutInEvent);
    cuts(Wrong::EventsBreak, Reason::Unannounced);
    cuts(Wrong::EventsGap, Reason::Gap);
    let streams = |settings: &mut Settings| (settings.rate, settings.event_streams) = (0, 5);
    let verdict = run(Wrong::EventsEnd, streams);
    assert!(
        verdict.is_clean() && verdict.streams.ended >= 5,
        "{verdict}"
    );
}

#[test]
fn a_judge_that_falls_behind_says_so_and_blames_nobody() {
    // Waking within no time at all is what no machine can do.
    let verdict = run(Wrong::Nothing, |settings| {
        settings.judge_late_after = Duration::ZERO
    });
    assert!(
        !verdict.valid && verdict.judge_late > 0 && verdict.lost_total == 0,
        "{verdict}"
    );
    assert!(verdict.to_string().contains("INVALID"));
}
