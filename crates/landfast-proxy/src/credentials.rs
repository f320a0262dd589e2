//! Names and passwords of Basic authentication (RFC 7617), held against hashes that are slow on purpose.
//!
//! A hash that takes a tenth of a second must not take it from a thread that serves, nor be asked for at will:
//!
//! - one thread of its own checks, at the lowest priority, from a short queue; when that is full, the answer is 503;
//! - credentials that were right are remembered under a keyed digest for some minutes, so that a page with fifty parts
//!   costs one check;
//! - a client that keeps being wrong is refused before anything is checked.

use std::{
    hash::RandomState,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use argon2::{Argon2, PasswordVerifier, password_hash::phc::PasswordHash};
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use landfast_routing::admission::{BasicAuth, Limiter, Quota};
use landfast_types::{Secret, Timestamp};
use tokio::sync::oneshot;

use crate::clock;

/// Checks that may wait.
const QUEUE_MAX: usize = 64;
/// How long what was right needs no further check.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Credentials that are remembered at a time.
const SLOTS: usize = 1_024;
/// Longer credentials are nobody's.
const CREDENTIALS_LEN_MAX: usize = 1_024;
/// How often a client may be wrong. Pages ask for their parts all at once before any was found right.
const WRONG: Quota = Quota {
    requests: 10,
    per_ms: 60_000,
    burst: 60,
};

/// What was found of a request's credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Right,
    /// There are none, or they are nobody's.
    Wrong,
    /// This client was wrong too often.
    Barred {
        wait: Duration,
    },
    /// Too many wait to be checked.
    Busy,
}

/// Checks credentials for all threads of a worker.
pub(crate) struct Verifier {
    key: hmac::Key,
    memory: Arc<Memory>,
    wrong: Limiter,
    /// Made when the first credentials are to be checked.
    queue: OnceLock<SyncSender<Job>>,
}

struct Job {
    users: Vec<String>,
    /// Name and password, as they came.
    given: Secret<Vec<u8>>,
    digest: Digest,
    reply: oneshot::Sender<bool>,
}

type Digest = [u8; 32];

/// Digests of what was right, and until when that counts: as many as there are slots, the newer in the place of
/// the older.
struct Memory(Mutex<Vec<(Digest, Timestamp)>>);

impl Default for Verifier {
    fn default() -> Self {
        let key: Digest = rand::random();
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            memory: Arc::new(Memory(Mutex::default())),
            wrong: Limiter::new(RandomState::new()),
            queue: OnceLock::new(),
        }
    }
}

impl Verifier {
    /// Holds a request's `Authorization` against a route's users. `client`: who is barred for being wrong.
    pub(crate) async fn check(
        &self,
        auth: &BasicAuth,
        field: Option<&HeaderValue>,
        client: u64,
    ) -> Found {
        let Some(given) = field.and_then(credentials) else {
            return Found::Wrong;
        };
        let digest = self.digest(auth, &given);
        let now = clock::monotonic();
        if self.memory.holds(&digest, now) {
            return Found::Right;
        }
        let taken = self.wrong.take(&client, &WRONG, now);
        if !taken.is_admitted {
            return Found::Barred { wait: taken.wait };
        }
        let (reply, answer) = oneshot::channel();
        let job = Job {
            users: auth.users.clone(),
            given,
            digest,
            reply,
        };
        let is_queued = self
            .queue()
            .is_some_and(|queue| queue.try_send(job).is_ok());
        let answer = if is_queued { answer.await.ok() } else { None };
        match answer {
            Some(false) => Found::Wrong,
            Some(true) => {
                self.wrong.give_back(&client, &WRONG);
                Found::Right
            }
            None => {
                self.wrong.give_back(&client, &WRONG);
                Found::Busy
            }
        }
    }

    /// Of the users as well: who is no longer one is not remembered as one.
    fn digest(&self, auth: &BasicAuth, given: &Secret<Vec<u8>>) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        for user in &auth.users {
            context.update(user.as_bytes());
            context.update(b"\n");
        }
        context.update(b"\n");
        context.update(given.reveal());
        let tag = context.sign();
        tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn queue(&self) -> Option<&SyncSender<Job>> {
        if let Some(queue) = self.queue.get() {
            return Some(queue);
        }
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let memory = Arc::clone(&self.memory);
        let thread = std::thread::Builder::new().name("credentials".into());
        // Where two threads come here at once, the queue of one of them is dropped, and its thread ends.
        if let Err(error) = thread.spawn(move || work(&jobs, &memory)) {
            tracing::error!(%error, "failed to start the thread that checks credentials");
            return None;
        }
        Some(self.queue.get_or_init(|| queue))
    }
}

/// The checking thread's life: until the worker is gone.
fn work(jobs: &Receiver<Job>, memory: &Memory) {
    // On Linux this is of the calling thread alone.
    if let Err(error) = rustix::process::nice(19) {
        tracing::debug!(%error, "checking credentials at full priority");
    }
    while let Ok(job) = jobs.recv() {
        // Whoever asked has gone: nobody needs to know.
        if job.reply.is_closed() {
            continue;
        }
        // The parts of one page come together; the first was checked for all.
        let is_right = memory.holds(&job.digest, clock::monotonic())
            || is_user(&job.users, job.given.reveal());
        if is_right {
            memory.keep(job.digest, clock::monotonic() + REMEMBERED);
        }
        if job.reply.send(is_right).is_err() {
            tracing::debug!("whoever asked has gone");
        }
    }
}

impl Memory {
    fn holds(&self, digest: &Digest, now: Timestamp) -> bool {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = slots.get(slot(digest));
        held.is_some_and(|(held, until)| held == digest && *until > now)
    }

    fn keep(&self, digest: Digest, until: Timestamp) {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.resize(SLOTS, ([0; 32], Timestamp::EPOCH));
        slots[slot(&digest)] = (digest, until);
    }
}

fn slot(digest: &Digest) -> usize {
    usize::from(u16::from_le_bytes([digest[0], digest[1]])) % SLOTS
}

/// Name and password with the colon between them.
fn credentials(field: &HeaderValue) -> Option<Secret<Vec<u8>>> {
    let text = field.to_str().ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > CREDENTIALS_LEN_MAX {
        return None;
    }
    let given = STANDARD.decode(encoded.trim()).ok()?;
    given.contains(&b':').then(|| Secret::new(given))
}

/// Whether name and password are those of a user. A name that nobody has takes as long as one that somebody has.
fn is_user(users: &[String], given: &[u8]) -> bool {
    let Some(colon) = given.iter().position(|byte| *byte == b':') else {
        return false;
    };
    let (name, password) = (&given[..colon], &given[colon + 1..]);
    let mut entries = users.iter().filter_map(|user| user.split_once(':'));
    let own = entries.clone().find(|(known, _)| known.as_bytes() == name);
    let Some((_, hash)) = own.or_else(|| entries.next()) else {
        return false;
    };
    let fits = if hash.starts_with("$argon2") {
        let parsed = PasswordHash::new(hash);
        let verify =
            |hash: PasswordHash| Argon2::default().verify_password(password, &hash).is_ok();
        parsed.is_ok_and(verify)
    } else {
        bcrypt::verify(password, hash).unwrap_or(false)
    };
    fits && own.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `correct horse`, by libxcrypt and by the reference implementation of Argon2.
    fn users() -> Vec<String> {
        [
            "ann:$2y$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e",
            "amy:$2b$04$Xi2J/aZphOvlm3xphDQAduCFV3xuDJQWxHxHWxkkdBYpW/JzyWbzu",
            "abe:$argon2id$v=19$m=256,t=1,p=1$c2FsdHNhbHRzYWx0$xNYeOFrda0m/2sJVlcs76T/JvmL0kWpAqeONLu3PZDw",
            "bob:$broken",
        ]
        .map(str::to_owned)
        .into()
    }

    fn field(name: &str, password: &str) -> HeaderValue {
        let text = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
        HeaderValue::from_str(&text).expect("a value")
    }

    #[test]
    fn only_the_right_password_of_the_right_user_fits() {
        let users = users();
        for (given, expected) in [
            ("ann:correct horse", true),
            ("amy:correct horse", true),
            ("abe:correct horse", true),
            ("abe:correct horsf", false),
            ("ann:correct horsf", false),
            ("ann:", false),
            ("bob:correct horse", false),
            ("eve:correct horse", false),
            (":correct horse", false),
            ("ann", false),
        ] {
            assert_eq!(is_user(&users, given.as_bytes()), expected, "{given}");
        }
        assert!(!is_user(&[], b"ann:correct horse"));
    }

    #[tokio::test]
    async fn what_was_right_is_remembered_while_its_user_is_one_and_who_is_wrong_is_barred() {
        let verifier = Verifier::default();
        let auth = BasicAuth {
            realm: "staging".into(),
            users: users(),
        };
        let right = field("ann", "correct horse");
        assert_eq!(verifier.check(&auth, Some(&right), 1).await, Found::Right);
        assert_eq!(verifier.check(&auth, None, 1).await, Found::Wrong);
        let bearer = HeaderValue::from_static("Bearer x");
        assert_eq!(verifier.check(&auth, Some(&bearer), 1).await, Found::Wrong);
        for _ in 0..WRONG.burst {
            let wrong = field("ann", "guess");
            assert_eq!(verifier.check(&auth, Some(&wrong), 1).await, Found::Wrong);
        }
        let barred = verifier.check(&auth, Some(&field("ann", "guess")), 1).await;
        assert!(matches!(barred, Found::Barred { .. }), "{barred:?}");
        // Who was right before is not kept out by another behind the same address, nor is anybody elsewhere.
        assert_eq!(verifier.check(&auth, Some(&right), 1).await, Found::Right);
        let wrong = field("ann", "guess");
        assert_eq!(verifier.check(&auth, Some(&wrong), 2).await, Found::Wrong);
        let others = BasicAuth {
            users: auth.users[1..].to_vec(),
            ..auth
        };
        assert_eq!(verifier.check(&others, Some(&right), 2).await, Found::Wrong);
    }
}
