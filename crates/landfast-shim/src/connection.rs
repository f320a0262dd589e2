//! One client of the control socket: lines in, lines out, and perhaps a command run for it.

use std::{
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::Child,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal},
};

use crate::{
    clock::Monotonic,
    os::signal_group,
    state::Exit,
    wire::{OutputStream, Reply},
};

/// A request line longer than this closes the connection.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Output of an `exec` is read only while less than this waits to be sent.
const UNSENT_BYTES_MAX: usize = 256 << 10;

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    Nothing,
    /// The end of the command and of everything it started.
    Gone,
    /// That the folder may be removed.
    Forget,
}

pub(crate) struct Connection {
    pub(crate) stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    pub(crate) awaited: Awaited,
    pub(crate) exec: Option<Exec>,
    pub(crate) is_closed: bool,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            awaited: Awaited::Nothing,
            exec: None,
            is_closed: false,
        })
    }

    pub(crate) fn wants_input(&self) -> bool {
        // While a command is fed, its pipe sets the pace.
        self.exec.as_ref().is_none_or(Exec::wants_input)
    }

    pub(crate) fn wants_output(&self) -> bool {
        !self.output.is_empty()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.output.len() < UNSENT_BYTES_MAX
    }

    /// Reads what has come. A client that leaves takes its command with it.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) {
        match self.stream.read(buffer) {
            // Everything we answer was asked for by a client that stays until it has the answer.
            Ok(0) => self.is_closed = true,
            Ok(count) => match &mut self.exec {
                Some(exec) => exec.feed(&buffer[..count]),
                None => {
                    self.input.extend_from_slice(&buffer[..count]);
                    self.is_closed |= self.input.len() > LINE_BYTES_MAX;
                }
            },
            Err(error) if is_transient(&error) => {}
            Err(_) => self.is_closed = true,
        }
    }

    /// Takes the next whole line, without its newline.
    pub(crate) fn next_line(&mut self) -> Option<Vec<u8>> {
        if self.exec.is_some() || self.is_closed {
            return None;
        }
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        let rest = self.input.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.input, rest);
        line.pop();
        Some(line)
    }

    /// Starts feeding a command; what was read beyond its line is the begin of its input.
    pub(crate) fn begin_exec(&mut self, mut exec: Exec) {
        let early = std::mem::take(&mut self.input);
        exec.feed(&early);
        self.exec = Some(exec);
    }

    pub(crate) fn say(&mut self, reply: &Reply) {
        match serde_json::to_writer(&mut self.output, reply) {
            Ok(()) => self.output.push(b'\n'),
            Err(_) => self.is_closed = true,
        }
        self.send();
    }

    /// Sends as much as the client takes.
    pub(crate) fn send(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.is_closed = true;
                    return;
                }
            }
        }
        self.output = Vec::new();
    }

    /// Passes on one read of the command's output.
    pub(crate) fn pass_on(&mut self, stream: OutputStream, buffer: &mut [u8]) {
        let Some(exec) = &mut self.exec else {
            return;
        };
        let pipe = match stream {
            OutputStream::Stdout => &mut exec.stdout,
            OutputStream::Stderr => &mut exec.stderr,
        };
        let Some(bytes) = read_pipe(pipe, buffer) else {
            return;
        };
        let bytes = &buffer[..bytes];
        self.say(&Reply::Output {
            stream,
            bytes: bytes.len(),
        });
        self.output.extend_from_slice(bytes);
        self.send();
    }

    /// Ends an `exec` whose command has ended and whose output was passed on.
    pub(crate) fn settle_exec(&mut self, now: Monotonic) {
        let Some(exec) = &self.exec else {
            return;
        };
        let Some(ended) = &exec.ended else {
            return;
        };
        let is_drained = exec.stdout.is_none() && exec.stderr.is_none();
        if is_drained || now >= ended.drain_until {
            let (exit, out_of_memory) = (ended.exit.clone(), ended.out_of_memory);
            self.exec = None;
            self.say(&Reply::Exec {
                exit,
                out_of_memory,
            });
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(exec) = &self.exec
            && exec.ended.is_none()
        {
            // Not reaped yet, so its number is still its own.
            signal_group(exec.pid, Signal::KILL);
        }
    }
}

/// A command run beside the instance, for one client.
pub(crate) struct Exec {
    pub(crate) pid: Pid,
    pub(crate) stdin: Option<OwnedFd>,
    stdin_left: u64,
    unfed: Vec<u8>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Kills for want of memory in its jail before it began.
    pub(crate) oom_kills: u64,
    pub(crate) ended: Option<ExecEnd>,
}

/// How a command ended.
pub(crate) struct ExecEnd {
    pub(crate) exit: Exit,
    /// The memory limit at which the kernel killed it.
    pub(crate) out_of_memory: Option<u64>,
    /// Until when its output is waited for: a grandchild may hold the pipes for ever.
    pub(crate) drain_until: Monotonic,
}

impl Exec {
    pub(crate) fn new(child: Child, stdin_bytes: u64, oom_kills: u64) -> io::Result<Self> {
        let pid = Pid::from_child(&child);
        let mut exec = Self {
            pid,
            stdin: child.stdin.map(OwnedFd::from),
            stdin_left: stdin_bytes,
            unfed: Vec::new(),
            stdout: child.stdout.map(OwnedFd::from),
            stderr: child.stderr.map(OwnedFd::from),
            oom_kills,
            ended: None,
        };
        for pipe in [&exec.stdin, &exec.stdout, &exec.stderr]
            .into_iter()
            .flatten()
        {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        exec.close_fed_stdin();
        Ok(exec)
    }

    pub(crate) fn wants_input(&self) -> bool {
        // One more byte is always welcome: it is how a client that left is noticed.
        self.unfed.is_empty()
    }

    pub(crate) fn wants_feeding(&self) -> bool {
        !self.unfed.is_empty()
    }

    fn feed(&mut self, bytes: &[u8]) {
        let taken = bytes
            .len()
            .min(usize::try_from(self.stdin_left).unwrap_or(usize::MAX));
        self.stdin_left -= taken as u64;
        self.unfed.extend_from_slice(&bytes[..taken]);
        self.pump();
    }

    /// Writes what the command takes of its input.
    pub(crate) fn pump(&mut self) {
        while !self.unfed.is_empty() {
            let Some(stdin) = &self.stdin else {
                self.unfed.clear();
                break;
            };
            match rustix::io::write(stdin, &self.unfed) {
                Ok(count) => drop(self.unfed.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // It reads no more; what it was to be given is dropped.
                Err(_) => self.stdin = None,
            }
        }
        self.close_fed_stdin();
    }

    fn close_fed_stdin(&mut self) {
        if self.unfed.is_empty() && self.stdin_left == 0 {
            self.stdin = None;
        }
    }
}

/// Reads once from a pipe that does not block. `None` when nothing came; the pipe is dropped at its end.
pub(crate) fn read_pipe(pipe: &mut Option<OwnedFd>, buffer: &mut [u8]) -> Option<usize> {
    let read = rustix::io::read(pipe.as_ref()?, &mut *buffer);
    match read {
        Ok(count) if count > 0 => Some(count),
        Err(Errno::AGAIN | Errno::INTR) => None,
        Ok(_) | Err(_) => {
            *pipe = None;
            None
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}
