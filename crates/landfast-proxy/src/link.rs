//! The socket pair between holder and worker: its one message carries the settings and the descriptors
//! (`SCM_RIGHTS`), and its end tells either side that the other is gone. The started side finds it on its
//! standard input, so nothing but a role is in its arguments and no descriptor number has to agree.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::TcpListener,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::settings::HolderSettings;

/// Descriptors in one message. The kernel takes 253.
pub(crate) const DESCRIPTORS_MAX: usize = 64;
const SETTINGS_BYTES_MAX: usize = 1 << 20;

/// What the two sides say after the first message, a byte each. A side of an older binary neither says nor
/// understands all of them, so nobody waits long for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Word {
    /// The worker serves.
    Serving = 1,
    /// The holder asks the worker to take no more snapshots: another worker is about to read the routes back.
    HoldOrders = 2,
    /// The worker takes none any more; the newest is on disk.
    OrdersHeld = 3,
    /// The other worker did not come up: the orders are this one's again.
    TakeOrders = 4,
    /// The last of the older workers has ended.
    Alone = 5,
    /// Another worker serves: accept no more, answer each open connection once more, keep what streams.
    Leave = 6,
    /// The worker does so, and will end by itself.
    Leaving = 7,
    /// The binary has changed: start a holder of the new one in the place of this one.
    Adopt = 8,
    /// The new holder has the descriptors. Who says so to the worker waits for [`Word::Hold`]; who hears it from the
    /// worker may go.
    Holding = 9,
    /// The old holder has gone: the new one is in charge.
    Hold = 10,
    /// The whole proxy ends: older workers are to end as well.
    EndElders = 11,
}

impl Word {
    pub(crate) fn byte(self) -> u8 {
        self as u8
    }

    pub(crate) fn of(byte: u8) -> Option<Self> {
        let all = [
            Self::Serving,
            Self::HoldOrders,
            Self::OrdersHeld,
            Self::TakeOrders,
            Self::Alone,
            Self::Leave,
            Self::Leaving,
            Self::Adopt,
            Self::Holding,
            Self::Hold,
            Self::EndElders,
        ];
        all.into_iter().find(|word| word.byte() == byte)
    }
}

/// Everything that must survive the death of either process.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) control: UnixListener,
    pub(crate) http: Vec<TcpListener>,
    pub(crate) https: Vec<TcpListener>,
    pub(crate) preview: Option<TcpListener>,
}

/// What the started side is told.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    settings: HolderSettings,
    http: usize,
    https: usize,
    has_preview: bool,
    /// The last descriptor is a pidfd of the worker (only to a new holder).
    has_worker: bool,
    sender_pid: u32,
    /// Older workers still serve or finish (only to a worker).
    #[serde(default)]
    has_elders: bool,
    /// Their process ids; a holder of an older binary does not say.
    #[serde(default)]
    elders: Option<Vec<u32>>,
    /// The worker before this one was asked to leave (only to a worker).
    #[serde(default)]
    took_over: bool,
    /// Another holder is still in charge: say that you hold, then wait (only to a holder).
    #[serde(default)]
    waits: bool,
}

/// What the started side got.
#[derive(Debug)]
pub(crate) struct Handover {
    pub(crate) settings: HolderSettings,
    pub(crate) listeners: Listeners,
    pub(crate) worker: Option<OwnedFd>,
    pub(crate) sender_pid: u32,
    pub(crate) elders: Elders,
    pub(crate) took_over: bool,
    pub(crate) waits: bool,
}

/// What a worker is told of those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Elders {
    /// By process id; none is nobody.
    Known(Vec<u32>),
    /// There are some, and the holder's binary is too old to say which.
    Unknown,
}

/// The other side's message could not be understood or sent.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("failed to exchange descriptors on the link")]
    Io(#[from] io::Error),
    #[error("the link's message is not one")]
    Message(#[from] serde_json::Error),
    #[error("{got} descriptors came over the link instead of {expected}")]
    Descriptors { expected: usize, got: usize },
    #[error("standard input is not a link; this role is started by the proxy itself")]
    NoLink,
}

impl Listeners {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut list = vec![self.control.as_fd()];
        list.extend(self.http.iter().map(AsFd::as_fd));
        list.extend(self.https.iter().map(AsFd::as_fd));
        list.extend(self.preview.iter().map(AsFd::as_fd));
        list
    }
}

/// To whom a message goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Receiver<'a> {
    /// With the process ids of the workers before it; `took_over` where the last of them was asked to leave.
    Worker { elders: &'a [u32], took_over: bool },
    /// With a pidfd of the worker that it is to watch; `waits` while another holder is in charge.
    Holder { worker: BorrowedFd<'a>, waits: bool },
}

/// Sends settings and descriptors.
pub(crate) fn send(
    link: &UnixStream,
    settings: &HolderSettings,
    listeners: &Listeners,
    receiver: Receiver<'_>,
) -> Result<(), LinkError> {
    let (worker, elders, took_over, waits) = match receiver {
        Receiver::Worker { elders, took_over } => (None, Some(elders.to_vec()), took_over, false),
        Receiver::Holder { worker, waits } => (Some(worker), None, false, waits),
    };
    let message = Message {
        settings: settings.clone(),
        http: listeners.http.len(),
        https: listeners.https.len(),
        has_preview: listeners.preview.is_some(),
        has_worker: worker.is_some(),
        sender_pid: std::process::id(),
        has_elders: elders.as_ref().is_some_and(|elders| !elders.is_empty()),
        elders,
        took_over,
        waits,
    };
    let body = serde_json::to_vec(&message)?;
    let length = u32::try_from(body.len())
        .map_err(io::Error::other)?
        .to_be_bytes();
    let mut descriptors = listeners.descriptors();
    descriptors.extend(worker);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        let (expected, got) = (DESCRIPTORS_MAX, descriptors.len());
        return Err(LinkError::Descriptors { expected, got });
    }
    // The descriptors travel with the length; the body follows as plain bytes.
    let sent = rustix::net::sendmsg(
        link,
        &[IoSlice::new(&length)],
        &mut control,
        SendFlags::empty(),
    );
    if sent.map_err(io::Error::from)? != length.len() {
        return Err(io::Error::from(io::ErrorKind::WriteZero).into());
    }
    let mut link = link;
    link.write_all(&body)?;
    Ok(())
}

/// The link on standard input.
pub(crate) fn from_stdin() -> Result<UnixStream, LinkError> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::net::sockopt::socket_type(&stdin).map_err(|_| LinkError::NoLink)?;
    Ok(UnixStream::from(stdin))
}

/// Receives what [`send`] sent.
pub(crate) fn receive(link: &UnixStream) -> Result<Handover, LinkError> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        link,
        &mut [IoSliceMut::new(&mut length)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    );
    if received.map_err(io::Error::from)?.bytes != length.len() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = message {
            descriptors.extend(list);
        }
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > SETTINGS_BYTES_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidData).into());
    }
    let mut body = vec![0; length];
    let mut reader = link;
    reader.read_exact(&mut body)?;
    let message: Message = serde_json::from_slice(&body)?;
    sort(message, descriptors)
}

fn sort(message: Message, descriptors: Vec<OwnedFd>) -> Result<Handover, LinkError> {
    let Message {
        settings,
        http,
        https,
        has_preview,
        has_worker,
        sender_pid,
        has_elders,
        elders,
        took_over,
        waits,
    } = message;
    let took_over = took_over || (elders.is_none() && has_elders);
    let elders = match (elders, has_elders) {
        (Some(elders), _) => Elders::Known(elders),
        (None, true) => Elders::Unknown,
        (None, false) => Elders::Known(Vec::new()),
    };
    let expected = 1 + http + https + usize::from(has_preview) + usize::from(has_worker);
    let got = descriptors.len();
    if got != expected {
        return Err(LinkError::Descriptors { expected, got });
    }
    let mut rest = descriptors.into_iter();
    let mut next = || rest.next().expect("counted above");
    let control = UnixListener::from(next());
    let http = (0..http).map(|_| TcpListener::from(next())).collect();
    let https = (0..https).map(|_| TcpListener::from(next())).collect();
    let preview = has_preview.then(|| TcpListener::from(next()));
    let worker = has_worker.then(&mut next);
    let listeners = Listeners {
        control,
        http,
        https,
        preview,
    };
    Ok(Handover {
        settings,
        listeners,
        worker,
        sender_pid,
        elders,
        took_over,
        waits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::WorkerSettings;

    #[test]
    fn descriptors_arrive_with_their_roles() {
        let folder = tempfile::tempdir().expect("a folder");
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let settings = HolderSettings {
            http: vec![],
            https: vec![],
            preview: None,
            control: folder.path().join("proxy.sock"),
            worker: WorkerSettings::new(folder.path().join("routes.json")),
        };
        let listeners = Listeners {
            control: UnixListener::bind(&settings.control).expect("a socket"),
            http: vec![bind(), bind()],
            https: vec![bind()],
            preview: Some(bind()),
        };
        let (here, there) = UnixStream::pair().expect("a pair");
        let receiver = Receiver::Worker {
            elders: &[7],
            took_over: true,
        };
        send(&here, &settings, &listeners, receiver).expect("sent");
        let got = receive(&there).expect("received");
        assert_eq!(got.settings, settings);
        assert_eq!(got.sender_pid, std::process::id());
        let address = |listener: &TcpListener| listener.local_addr().expect("an address");
        let addresses = |list: &[TcpListener]| list.iter().map(address).collect::<Vec<_>>();
        assert_eq!(addresses(&got.listeners.http), addresses(&listeners.http));
        assert_eq!(addresses(&got.listeners.https), addresses(&listeners.https));
        let preview = got.listeners.preview.as_ref().map(address);
        assert_eq!(preview, listeners.preview.as_ref().map(address));
        assert!(got.worker.is_none() && got.took_over);
        assert_eq!(got.elders, Elders::Known(vec![7]));
        drop(here);
        assert!(receive(&there).is_err());
    }
}
