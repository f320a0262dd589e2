//! The worker's place in the scheduler. Each request waits for it twice, and it is never the one that computes for
//! long; so it goes before whatever else runs on the host: instances that start, jobs, an upload being hashed.

use std::{fs, io};

/// As nginx's `worker_priority` and HAProxy's `tune.sched.low-latency` are for: three times the weight of a process
/// at 0 (`sched-nice-design` in the kernel's documentation), so a flood at the proxy still leaves instances a quarter.
const NICE: i32 = -5;

/// Asks for it; done before the first thread is started, since each thread has a niceness of its own and takes its
/// creator's. Not allowed without `CAP_SYS_NICE`, and nothing depends on it.
pub(crate) fn raise() {
    // With autogroups (`sched(7)`) niceness counts within a session only, and sessions share evenly: a worker in the
    // session of the server would share one portion with it. It fails for the leader of a group, which is then one
    // that somebody starts by hand.
    let session = rustix::process::setsid().map(drop).map_err(io::Error::from);
    // Not relative: a holder that a worker started hands its own on to the next worker.
    let niceness = rustix::process::setpriority_process(None, NICE).map_err(io::Error::from);
    let group = match fs::write("/proc/self/autogroup", NICE.to_string()) {
        // A kernel without autogroups.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    };
    for (what, done) in [
        ("session", session),
        ("niceness", niceness),
        ("group", group),
    ] {
        if let Err(error) = done {
            tracing::debug!(%error, what, "the worker runs at the priority of others");
        }
    }
}
