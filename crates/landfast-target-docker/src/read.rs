//! What a container writes, passed on to whoever started it instead of being kept.
//!
//! It is attached to before it starts, so that nothing is missed. The daemon keeps nothing, and holds back what nobody reads.

use std::{
    pin::Pin,
    sync::{Mutex, PoisonError},
};

use bollard::{
    container::LogOutput,
    query_parameters::{AttachContainerOptions, AttachContainerOptionsBuilder},
};
use futures_util::{Stream, StreamExt as _};
use landfast_target::{ExecOutput, Exit};
use tokio::sync::mpsc;

use crate::{core::Core, daemon::DaemonError};

/// Pieces on their way; a daemon's piece is 32 KiB.
const PIECES_MAX: usize = 16;

type Pieces = Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;

/// Where the output of a start is put.
#[derive(Default)]
pub(crate) struct Reader(Mutex<Option<Pieces>>);

/// An output on its way.
pub(crate) struct Reading {
    pieces: Pieces,
    sender: mpsc::Sender<ExecOutput>,
}

impl Reader {
    /// Attaches to a container that was made and has not begun.
    pub(crate) async fn attach(&self, core: &Core, container: &str) -> Result<(), DaemonError> {
        let attached = core.daemon.call(|client| {
            let container = container.to_owned();
            async move { client.attach_container(&container, Some(options())).await }
        });
        let pieces = attached.await?.output;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(pieces);
        Ok(())
    }

    /// `None` where nothing was attached: it had been started before.
    pub(crate) fn take(self) -> Option<(Reading, mpsc::Receiver<ExecOutput>)> {
        let pieces = self
            .0
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)?;
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        Some((Reading { pieces, sender }, receiver))
    }
}

fn options() -> AttachContainerOptions {
    let options = AttachContainerOptionsBuilder::default();
    options.stream(true).stdout(true).stderr(true).build()
}

impl Reading {
    /// Passes it on until it ends, or nobody reads. What ends by an error is said to be lost.
    pub(crate) async fn drive(mut self) {
        loop {
            let piece = tokio::select! {
                piece = self.pieces.next() => piece,
                () = self.sender.closed() => return,
            };
            let piece = match piece {
                Some(Ok(LogOutput::StdOut { message })) => ExecOutput::Stdout(message.into()),
                Some(Ok(LogOutput::StdErr { message })) => ExecOutput::Stderr(message.into()),
                // The rest of a piece whose end never came.
                Some(Ok(LogOutput::Console { .. } | LogOutput::StdIn { .. })) => continue,
                Some(Err(error)) => {
                    tracing::debug!(%error, "what a container writes is lost from here on");
                    // Nobody reads any more where it is not taken.
                    let lost = ExecOutput::Exited(Exit::Unknown);
                    return self.sender.send(lost).await.unwrap_or_default();
                }
                None => return,
            };
            if self.sender.send(piece).await.is_err() {
                return;
            }
        }
    }
}
