//! Whom the kernel killed because its memory ran out, by the kernel's own log.
//!
//! A daemon hears of it from the shim of the container, beside its end, and on a busy machine never: containerd 1.6 drops
//! what it has not published by the time the group of the container is gone (3 of 40 containers under load, seen with
//! Docker 20.10). The kernel logs it before the end can be seen. Kubernetes' kubelet reads it from the same place.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt as _,
};

/// The kernel's log, one record a read (`Documentation/ABI/testing/dev-kmsg`).
pub(crate) const KERNEL_LOG: &str = "/dev/kmsg";
/// The longest record the kernel gives out is 8 KiB (`PRINTK_MESSAGE_MAX` is less).
const RECORD_MAX: usize = 8 << 10;

/// Whether the log says that a container's memory ran out. Reads what the kernel holds, and waits for nothing.
///
/// # Errors
/// Where the log cannot be read: it is for root, and not in every container.
pub(crate) fn ran_out(container: &str) -> io::Result<bool> {
    let log = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(KERNEL_LOG)?;
    find(log, container)
}

fn find(mut log: impl Read, container: &str) -> io::Result<bool> {
    let mut record = vec![0; RECORD_MAX];
    loop {
        match log.read(&mut record) {
            Ok(0) => return Ok(false),
            Ok(length) if names(&record[..length], container) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The record was written over before it was read; the next read gives the oldest there is.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a record says that something was killed for the limit of a container's own group. Groups have the container's
/// id in their names, whatever lies above or below them.
fn names(record: &[u8], container: &str) -> bool {
    let record = String::from_utf8_lossy(record);
    let Some(killed) = record.split_once("oom-kill:") else {
        return false;
    };
    let limit = killed
        .1
        .split(',')
        .find_map(|word| word.strip_prefix("oom_memcg="));
    !container.is_empty() && limit.is_some_and(|group| group.contains(container))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "98adaa96c658597028ef0c53dd919468a969a16f0c32ee1d6f4f39639c642a69";

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
        let log = |records: Vec<_>| find(Log(records), ID);
        let other = Ok("6,1,2,-;app invoked oom-killer: gfp_mask=0xcc0\n".to_owned());
        assert!(log(vec![other.clone(), Ok(killed(&own, &own))]).unwrap());
        let scope = format!("/system.slice/docker-{ID}.scope");
        let inner = format!("{scope}/inner");
        assert!(log(vec![Err(ErrorKind::BrokenPipe), Ok(killed(&scope, &inner))]).unwrap());
        // The limit of a group above it, and another container.
        assert!(!log(vec![Ok(killed("/docker", &own))]).unwrap());
        assert!(!log(vec![Ok(killed("/docker/98ad", "/docker/98ad")), other]).unwrap());
        assert!(log(vec![Err(ErrorKind::PermissionDenied)]).is_err());
    }
}
