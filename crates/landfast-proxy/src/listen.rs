//! Binding the sockets, and saying who has a port that is taken.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::Mode,
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
};

use crate::{link::Listeners, settings::HolderSettings};

/// Connections that may wait to be accepted, such as while a killed worker is replaced.
const BACKLOG: i32 = 4_096;

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("port {port} ({address}) is taken by {owner}", port = address.port())]
    Taken { address: SocketAddr, owner: String },
    #[error("port {port} ({address}) needs more rights; use one above 1023", port = address.port())]
    Denied {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("failed to listen on {address}")]
    Failed {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("another proxy already listens at `{}`", path.display())]
    ControlTaken { path: PathBuf },
    #[error("failed to listen at `{}`", path.display())]
    Control { path: PathBuf, source: io::Error },
}

/// Binds everything the settings name.
pub(crate) fn bind_all(settings: &HolderSettings) -> Result<Listeners, BindError> {
    let bind_each = |list: &[SocketAddr]| {
        list.iter()
            .map(|address| bind(*address))
            .collect::<Result<Vec<_>, _>>()
    };
    let control = bind_control(&settings.control)?;
    let tcp = || {
        Ok(Listeners {
            http: bind_each(&settings.http)?,
            https: bind_each(&settings.https)?,
            preview: settings.preview.map(bind).transpose()?,
            control,
        })
    };
    tcp().inspect_err(|_| {
        // Nobody will serve it: leave no dead socket behind.
        drop(fs::remove_file(&settings.control));
    })
}

fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    try_bind(address).map_err(|source| {
        let kind = source.kind();
        if kind == io::ErrorKind::AddrInUse {
            let owner = port_owner(address.port()).unwrap_or_else(|| "another process".into());
            return BindError::Taken { address, owner };
        }
        if kind == io::ErrorKind::PermissionDenied {
            return BindError::Denied { address, source };
        }
        BindError::Failed { address, source }
    })
}

fn try_bind(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

fn bind_control(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |source| BindError::Control {
        path: path.to_owned(),
        source,
    };
    if UnixStream::connect(path).is_ok() {
        return Err(BindError::ControlTaken {
            path: path.to_owned(),
        });
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    bind_private(path).map_err(failed)
}

/// A socket for this user alone. Called while the process has one thread, so nothing else is created under the mask.
pub(crate) fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let before = rustix::process::umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = bound?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The process that listens on a port, by `/proc`: its name and number, where they can be seen.
pub fn port_owner(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| {
            let table = fs::read_to_string(table).ok()?;
            table
                .lines()
                .skip(1)
                .find_map(|line| listening_inode(line, port).map(str::to_owned))
        })?;
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    for process in processes {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = descriptors.filter_map(Result::ok).any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        });
        if holds {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("`{}` (process {pid})", command.trim()));
        }
    }
    None
}

fn listening_inode(line: &str, port: u16) -> Option<&str> {
    const LISTENING: &str = "0A";
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    let (_, found) = local.rsplit_once(':')?;
    let same = u16::from_str_radix(found, 16).is_ok_and(|found| found == port);
    (same && state == LISTENING).then_some(inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_process_that_has_a_port() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let error = bind(address).expect_err("the port is taken").to_string();
        assert!(
            error.contains(&format!("(process {})", std::process::id())),
            "{error}"
        );
        assert!(
            error.starts_with(&format!("port {}", address.port())),
            "{error}"
        );
        drop(listener);
        bind(address).expect("free again");
    }

    #[test]
    fn refuses_a_second_proxy_on_the_same_socket_and_clears_a_dead_one() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run/proxy.sock");
        let first = bind_control(&path).expect("a socket");
        let mode = fs::metadata(&path).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            bind_control(&path),
            Err(BindError::ControlTaken { .. })
        ));
        drop(first);
        bind_control(&path).expect("the dead socket is cleared");
    }
}
