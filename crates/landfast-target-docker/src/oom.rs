//! Whom the kernel killed because its memory ran out, by the kernel's own log.
//!
//! A daemon hears of it from the shim of the container, beside its end, and on a busy machine never: containerd 1.6 drops
//! what it has not published by the time the group of the container is gone (3 of 40 containers under load, seen with
//! Docker 20.10). The kernel logs it before it kills. It is no certainty either: a kernel that kills more than ten in five
//! seconds leaves lines out, and the log wraps. Kubernetes' kubelet reads it from the same place.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt as _,
    time::Duration,
};

use crate::clock;

/// The kernel's log, one record a read (`Documentation/ABI/testing/dev-kmsg`).
const KERNEL_LOG: &str = "/dev/kmsg";
/// Longer than any record the kernel gives out.
const RECORD_MAX: usize = 8 << 10;
/// A kill so far from the end of a container was not its end. The log's clock is not the daemon's.
const APART_MAX: Duration = Duration::from_secs(60);

/// Whether the log says that the memory of a container which ended so long ago ran out. Waits for nothing.
///
/// # Errors
/// Where the log cannot be read: it is for root, and not in every container.
pub(crate) fn ran_out(container: &str, ago: Duration) -> io::Result<bool> {
    let log = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(KERNEL_LOG)?;
    find(log, container, clock::since_boot().saturating_sub(ago))
}

/// `ended` is since the kernel started.
fn find(mut log: impl Read, container: &str, ended: Duration) -> io::Result<bool> {
    let mut record = vec![0; RECORD_MAX];
    loop {
        match log.read(&mut record) {
            Ok(0) => return Ok(false),
            Ok(length) if names(&record[..length], container, ended) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The record was written over before it was read; the next read gives the oldest there is.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a record, `6,1523,36719170898,-;oom-kill:…,oom_memcg=/docker/ID,…`, says that somebody was killed for the limit
/// of a container's own group about then.
fn names(record: &[u8], container: &str, ended: Duration) -> bool {
    let record = String::from_utf8_lossy(record);
    let Some((head, text)) = record.split_once(';') else {
        return false;
    };
    let micros = head.split(',').nth(2).and_then(|at| at.parse().ok());
    let is_then = micros
        .map(Duration::from_micros)
        .is_some_and(|at| at.abs_diff(ended) <= APART_MAX);
    let after = |mark| text.split_once(mark).map(|(_, rest)| rest);
    // The second is how kernels before 5.0 put it.
    let group = after("oom_memcg=").or_else(|| after("killed as a result of limit of "));
    let group = group.and_then(|group| group.split([',', '\n']).next());
    is_then && group.is_some_and(|group| is_of(group, container))
}

/// Whether a group is that of a container: its name has the id in it (`/docker/ID`, `docker-ID.scope`, `libpod-ID.scope`).
/// Groups below it are others', but for the one that crun makes.
fn is_of(group: &str, container: &str) -> bool {
    let group = group.strip_suffix("/container").unwrap_or(group);
    let name = group.rsplit('/').next().unwrap_or_default();
    !container.is_empty() && name.contains(container)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "98adaa96c658597028ef0c53dd919468a969a16f0c32ee1d6f4f39639c642a69";
    const ENDED: Duration = Duration::from_secs(36_719);

    /// Gives out one record a read, as the kernel does.
    struct Log(Vec<Result<String, ErrorKind>>);

    impl Read for Log {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(ErrorKind::WouldBlock.into());
            }
            let record = self.0.remove(0)?;
            bytes[..record.len()].copy_from_slice(record.as_bytes());
            Ok(record.len())
        }
    }

    fn killed(limit: &str, task: &str) -> String {
        format!(
            "6,1523,36719170898,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg={limit},task_memcg={task},task=app,pid=1986,uid=0\n"
        )
    }

    #[test]
    fn finds_the_container_whose_limit_was_reached() {
        let own = format!("/docker/{ID}");
        let log = |records: Vec<_>| find(Log(records), ID, ENDED);
        let other = Ok("6,1,36719170800,-;app invoked oom-killer: gfp_mask=0xcc0\n".to_owned());
        assert!(log(vec![other.clone(), Ok(killed(&own, &own))]).unwrap());
        let scope = format!("/system.slice/docker-{ID}.scope");
        let inner = format!("{scope}/inner");
        let overwritten = Err(ErrorKind::BrokenPipe);
        assert!(log(vec![overwritten, Ok(killed(&scope, &inner))]).unwrap());
        let crun = format!("/machine.slice/libpod-{ID}.scope/container");
        assert!(log(vec![Ok(killed(&crun, &crun))]).unwrap());
        let old = format!("6,1,36719170800,-;Task in {own} killed as a result of limit of {own}\n");
        assert!(log(vec![Ok(old)]).unwrap());
        // The limit of a group above it or below it, and another container.
        for limit in ["/docker", &inner, "/docker/98ad"] {
            assert!(!log(vec![Ok(killed(limit, &own)), other.clone()]).unwrap());
        }
        assert!(log(vec![Err(ErrorKind::PermissionDenied)]).is_err());
    }

    #[test]
    fn a_kill_long_before_the_end_was_not_the_end() {
        let own = format!("/docker/{ID}");
        let log = || Log(vec![Ok(killed(&own, &own))]);
        let found = |ended| find(log(), ID, ended).unwrap();
        assert!(found(ENDED + Duration::from_secs(30)));
        assert!(!found(ENDED + Duration::from_secs(300)));
        assert!(!found(Duration::ZERO));
    }
}
