//! The worker's side of the link to its holder: what it is told, and how it comes to another holder, when one dies or
//! when the binary has changed.
//!
//! # Another holder in order
//!
//! The old holder asks for it (*adopt*). The worker starts the new one, which takes the descriptors, says *holding* and
//! waits. The worker passes that on; the old holder goes, by which its end of the link closes; only then the new one
//! is told to *hold*. So at each moment at most one of them would start a worker, and the descriptors are held all
//! the time, by the worker itself if by nobody else. If the new one does not come up, the old one stays.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
    time::timeout,
};

use crate::{
    clock,
    elders::Elders,
    holder,
    link::{self, LinkError, Listeners, Receiver, Word},
    settings::HolderSettings,
    shared::Shared,
};

type Link = tokio::net::UnixStream;

/// Between two attempts to start a new holder.
const HOLDER_PAUSE: Duration = Duration::from_secs(1);
/// How long a new holder may take until it has the descriptors; the old one waits longer.
const HOLDING_MAX: Duration = Duration::from_secs(5);

/// What a worker needs to deal with its holder.
pub(crate) struct HolderLink {
    pub(crate) shared: Arc<Shared>,
    pub(crate) elders: Arc<Elders>,
    settings: HolderSettings,
    /// Successors can ask this worker what it has in flight.
    can_be_asked: bool,
    link: Option<UnixStream>,
    listeners: Arc<Listeners>,
}

/// Why the worker stopped listening to a holder.
enum Heard {
    Gone,
    Adopt(Link),
}

impl HolderLink {
    pub(crate) fn new(
        shared: Arc<Shared>,
        elders: Arc<Elders>,
        settings: HolderSettings,
        can_be_asked: bool,
        link: UnixStream,
        listeners: Arc<Listeners>,
    ) -> Self {
        Self {
            shared,
            elders,
            settings,
            can_be_asked,
            link: Some(link),
            listeners,
        }
    }

    /// Does what the holder says, and starts a new one whenever there is none. Only an error that can never go
    /// away ends it.
    pub(crate) async fn watch(mut self) -> io::Error {
        let first = self.link.take().ok_or(io::ErrorKind::NotConnected.into());
        let mut link = match first.and_then(into_tokio) {
            Ok(link) => link,
            Err(error) => return error,
        };
        let mut child: Option<Child> = None;
        let mut started = clock::instant();
        let mut backoff = Duration::ZERO;
        loop {
            if let Heard::Adopt(old) = self.listen(link).await {
                started = clock::instant();
                link = self.exchange_holder(old, &mut child).await;
                continue;
            }
            // A holder that died in the middle of a replacement asks for nothing any more.
            self.shared.hold_orders(false);
            if self.shared.life.is_leaving() {
                std::future::pending::<()>().await;
            }
            tracing::error!("the holder died; starting another");
            if let Some(mut dead) = child.take() {
                // Reaped without waiting; tokio takes care of one that is still on its way out.
                drop(dead.try_wait());
            }
            let lived = clock::instant().saturating_duration_since(started);
            backoff = holder::next_backoff(backoff, lived);
            tokio::time::sleep(backoff).await;
            started = clock::instant();
            link = loop {
                match self.start_holder(false) {
                    Ok((link, started)) => {
                        self.shared.set_holder(started.id().unwrap_or(0));
                        child = Some(started);
                        break link;
                    }
                    Err(error) => {
                        tracing::error!(%error, "failed to start a holder; serving without one");
                        tokio::time::sleep(HOLDER_PAUSE).await;
                    }
                }
            };
        }
    }

    async fn listen(&self, mut link: Link) -> Heard {
        let mut byte = [0];
        while link.read(&mut byte).await.is_ok_and(|count| count > 0) {
            match Word::of(byte[0]) {
                Some(Word::HoldOrders) => {
                    self.shared.hold_orders(true);
                    say(&mut link, Word::OrdersHeld).await;
                }
                Some(Word::TakeOrders) => self.shared.hold_orders(false),
                Some(Word::Alone) => self.shared.set_unknown_elders(false),
                Some(Word::Leave) => {
                    say(&mut link, Word::Leaving).await;
                    self.leave();
                }
                Some(Word::EndElders) => {
                    self.elders.end().await;
                    say(&mut link, Word::EndElders).await;
                }
                Some(Word::Adopt) => return Heard::Adopt(link),
                Some(
                    Word::Serving | Word::OrdersHeld | Word::Leaving | Word::Holding | Word::Hold,
                )
                | None => tracing::debug!(byte = byte[0], "the holder says what nobody knows"),
            }
        }
        Heard::Gone
    }

    fn leave(&self) {
        if self.can_be_asked {
            self.shared.life.leave();
        } else {
            // Drains would wait for it for all its time.
            self.shared.life.end(&self.shared.settings);
        }
    }

    /// Puts a new holder in the place of one that still lives; gives the link to whichever is in charge then.
    async fn exchange_holder(&self, mut old: Link, child: &mut Option<Child>) -> Link {
        let (mut link, mut fresh) = match self.start_holder(true) {
            Ok(started) => started,
            Err(error) => {
                tracing::error!(%error, "failed to start the new holder; the old one stays");
                return old;
            }
        };
        if !hears(&mut link, Word::Holding, HOLDING_MAX).await {
            tracing::error!("the new holder did not come up; the old one stays");
            drop(fresh.start_kill());
            return old;
        }
        say(&mut old, Word::Holding).await;
        if timeout(holder::READY_MAX, closed(&mut old)).await.is_err() {
            tracing::error!("the old holder does not go; the new one ends");
            drop(fresh.start_kill());
            return old;
        }
        say(&mut link, Word::Hold).await;
        self.shared.set_holder(fresh.id().unwrap_or(0));
        tracing::info!(holder = fresh.id(), "a new holder has the descriptors");
        *child = Some(fresh);
        link
    }

    fn start_holder(&self, waits: bool) -> Result<(Link, Child), LinkError> {
        let own = i32::try_from(std::process::id())
            .ok()
            .and_then(Pid::from_raw);
        let own = own.ok_or_else(|| io::Error::other("no process id"))?;
        let worker = pidfd_open(own, PidfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let (link, child) = holder::spawn(holder::ADOPT_ARGUMENTS)?;
        let receiver = Receiver::Holder {
            worker: worker.as_fd(),
            waits,
        };
        link::send(&link, &self.settings, &self.listeners, receiver)?;
        Ok((into_tokio(link)?, child))
    }
}

fn into_tokio(link: UnixStream) -> io::Result<Link> {
    link.set_nonblocking(true)?;
    Link::from_std(link)
}

/// Says a word; a side that does not listen has died, which is noticed elsewhere.
pub(crate) async fn say(link: &mut Link, word: Word) {
    if let Err(error) = link.write_all(&[word.byte()]).await {
        tracing::debug!(%error, ?word, "the other side of the link does not listen");
    }
}

/// Whether a word comes in time; others before it are passed over.
pub(crate) async fn hears(link: &mut Link, word: Word, limit: Duration) -> bool {
    let heard = async {
        let mut byte = [0];
        while Word::of(byte[0]) != Some(word) {
            link.read_exact(&mut byte).await?;
        }
        Ok::<_, io::Error>(())
    };
    matches!(timeout(limit, heard).await, Ok(Ok(())))
}

async fn closed(link: &mut Link) {
    let mut rest = [0; 16];
    while link.read(&mut rest).await.is_ok_and(|count| count > 0) {}
}
