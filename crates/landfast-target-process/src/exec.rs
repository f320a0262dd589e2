//! Commands run beside an instance, by its shim.

use std::io;

use landfast_shim::wire::{OutputStream, Reply, Request};
use landfast_target::{ExecOutput, Exit, InstanceRef, TargetError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
};

use crate::{ProcessTarget, client, exit};

/// Pieces of output that wait for the reader; the command waits beyond that.
const PIECES_MAX: usize = 16;

impl ProcessTarget {
    pub(crate) async fn exec_beside(
        &self,
        id: &InstanceRef,
        command: Vec<String>,
        stdin: Vec<u8>,
    ) -> Result<mpsc::Receiver<ExecOutput>, TargetError> {
        let io = |source| TargetError::Io {
            doing: format!("run a command beside instance `{}`", id.instance),
            source,
        };
        let folder = self.folder(id);
        match folder.observe().await.map_err(io)? {
            Some((state, true)) if state.ended.is_none() => {}
            Some(_) | None => return Err(TargetError::NoSuchInstance(id.instance.clone())),
        }
        let mut stream = client::connect(&folder).await.map_err(io)?;
        let request = Request::Exec {
            argv: command,
            stdin_bytes: stdin.len() as u64,
        };
        client::say(&mut stream, &request).await.map_err(io)?;
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let (read, write) = stream.into_split();
        let mut read = BufReader::new(read);
        // The input goes out while output comes in, or both sides would wait for each other.
        let mut feeding = Box::pin(feed(write, stdin));
        let mut is_fed = false;
        let first = loop {
            tokio::select! {
                reply = client::read_reply(&mut read) => break reply.map_err(io)?,
                () = &mut feeding, if !is_fed => is_fed = true,
            }
        };
        let first = match first {
            Some(Reply::CommandMissing { command }) => {
                return Err(TargetError::CommandMissing { command });
            }
            Some(Reply::Refused { .. }) | None => {
                return Err(TargetError::NoSuchInstance(id.instance.clone()));
            }
            Some(first) => first,
        };
        let passing = async move {
            let passing = pass_on(first, read, &sender);
            tokio::pin!(passing);
            loop {
                tokio::select! {
                    passed = &mut passing => {
                        if let Err(error) = passed {
                            tracing::debug!(%error, "exec was cut");
                        }
                        return;
                    }
                    () = &mut feeding, if !is_fed => is_fed = true,
                    // Nobody reads any more: leaving the shim ends the command.
                    () = sender.closed() => return,
                }
            }
        };
        let mut execs = self.execs.lock().expect("nobody panics while holding it");
        while execs.try_join_next().is_some() {}
        execs.spawn(passing);
        Ok(receiver)
    }
}

/// Sends the input. What the command does not read is no error. The half is kept open until the end of the command.
async fn feed(mut write: OwnedWriteHalf, stdin: Vec<u8>) {
    if let Err(error) = write.write_all(&stdin).await {
        tracing::debug!(%error, "the input of an exec was not taken whole");
    }
    write.forget();
}

async fn pass_on(
    first: Reply,
    mut read: BufReader<OwnedReadHalf>,
    sender: &mpsc::Sender<ExecOutput>,
) -> io::Result<()> {
    let mut next = Some(first);
    loop {
        let piece = match next {
            Some(Reply::Output { stream, bytes }) => {
                let mut piece = vec![0; bytes];
                read.read_exact(&mut piece).await?;
                match stream {
                    OutputStream::Stdout => ExecOutput::Stdout(piece),
                    OutputStream::Stderr => ExecOutput::Stderr(piece),
                }
            }
            Some(Reply::Exec {
                exit: ended,
                out_of_memory,
            }) => ExecOutput::Exited(exit(ended, out_of_memory)),
            // The shim died, and the command with it.
            None => ExecOutput::Exited(Exit::Unknown),
            Some(
                Reply::State { .. }
                | Reply::Ended { .. }
                | Reply::Done
                | Reply::Stale { .. }
                | Reply::CommandMissing { .. }
                | Reply::Refused { .. },
            ) => return Err(io::Error::other("the shim answered something else")),
        };
        let is_last = matches!(piece, ExecOutput::Exited(_));
        if sender.send(piece).await.is_err() || is_last {
            return Ok(());
        }
        next = client::read_reply(&mut read).await?;
    }
}
