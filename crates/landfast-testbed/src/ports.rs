//! Ports for tests that run side by side.

use std::{
    env,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    net::{TcpListener, UdpSocket},
    ops::Range,
};

use crate::StartError;

/// Below those that Linux gives to connections (from 32768) and those that Landfast gives to stores and instances (from
/// 15000): a port that is free stays free until its server listens.
const PORTS: Range<u16> = 10_000..15_000;
/// The last port handed out, for every test process of this machine.
const LAST: &str = "landfast-test-port";

/// A loopback port nobody listens at, and no other test is given before all the others were.
///
/// # Errors
/// [`StartError::Io`]: the temporary folder cannot be written, or every port is taken.
pub fn free_port() -> Result<u16, StartError> {
    next().map_err(|source| StartError::Io {
        what: "find a free port".into(),
        source,
    })
}

fn next() -> io::Result<u16> {
    let path = env::temp_dir().join(LAST);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    // Until the file is closed.
    file.lock()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let last: u16 = text.trim().parse().unwrap_or(PORTS.end);
    let after = last.saturating_add(1).clamp(PORTS.start, PORTS.end);
    let port = (after..PORTS.end)
        .chain(PORTS.start..after)
        .find(|port| is_free(*port))
        .ok_or(io::ErrorKind::AddrInUse)?;
    file.seek(SeekFrom::Start(0))?;
    file.set_len(0)?;
    write!(file, "{port}")?;
    Ok(port)
}

/// On every address, for TCP and UDP: servers differ in what they listen at.
fn is_free(port: u16) -> bool {
    TcpListener::bind(("0.0.0.0", port)).is_ok() && UdpSocket::bind(("0.0.0.0", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, thread};

    use super::*;

    #[test]
    fn no_port_is_given_twice_nor_one_that_is_taken() {
        let threads: Vec<_> = (0..4)
            .map(|_| thread::spawn(|| (0..25).map(|_| free_port().unwrap()).collect::<Vec<_>>()))
            .collect();
        let ports: Vec<_> = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect();
        let distinct: BTreeSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), 100);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
        let taken = TcpListener::bind(("127.0.0.1", ports[0])).unwrap();
        assert!(!is_free(ports[0]));
        drop(taken);
        assert!(is_free(ports[0]));
    }
}
