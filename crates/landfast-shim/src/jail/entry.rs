//! What the child does between fork and exec to enter its jail: async-signal-safe system calls only, in an order in
//! which each step still has the right it needs. A step that fails is named to the parent by one byte.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use rustix::{
    fs::{FileType, Gid, Mode, OFlags, Uid},
    io::Errno,
    process::{Resource, Rlimit, setrlimit, umask},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};

/// Beyond the kernel's newest capability it answers EINVAL; sets have 64 bits.
const CAPABILITIES_MAX: u32 = 64;
/// Commands run beside an instance are the first to go when their common memory is used up.
const BESIDE_OOM_SCORE: &[u8] = b"500";

/// What is entered, ready made.
pub(crate) struct Entry {
    /// `cgroup.procs` of each group.
    pub(super) doors: Vec<OwnedFd>,
    pub(super) mounts: Option<Mounts>,
    pub(super) limits: Vec<(Resource, Rlimit)>,
    pub(super) user: Option<u32>,
    pub(super) ruleset: Option<OwnedFd>,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Cgroup = 1,
    Mounts,
    Limits,
    Bounding,
    User,
    Capabilities,
    NoNewPrivileges,
    Landlock,
}

impl Step {
    /// The step of a byte, in words: `failed to …`.
    pub(crate) fn words(byte: u8) -> Option<&'static str> {
        const ALL: [(Step, &str); 8] = [
            (Step::Cgroup, "enter its cgroup"),
            (Step::Mounts, "mount its temporary folder"),
            (Step::Limits, "set its resource limits"),
            (Step::Bounding, "drop its bounding capabilities"),
            (Step::User, "become its user"),
            (Step::Capabilities, "drop its capabilities"),
            (Step::NoNewPrivileges, "renounce new privileges"),
            (Step::Landlock, "enter its Landlock rules"),
        ];
        let mut all = ALL.into_iter();
        all.find(|(step, _)| *step as u8 == byte)
            .map(|(_, words)| words)
    }
}

impl Entry {
    /// Enters it. After this the process is the user's.
    pub(crate) fn enter(&self, is_beside: bool) -> Result<(), (Step, Errno)> {
        let at = |step| move |error: Errno| (step, error);
        for door in &self.doors {
            rustix::io::write(door, b"0").map_err(at(Step::Cgroup))?;
        }
        if is_beside {
            volunteer_for_oom();
        }
        if let Some(mounts) = &self.mounts {
            mounts.make().map_err(at(Step::Mounts))?;
        }
        for (resource, limit) in &self.limits {
            setrlimit(*resource, *limit).map_err(at(Step::Limits))?;
        }
        drop_bounding().map_err(at(Step::Bounding))?;
        if let Some(user) = self.user {
            become_user(user).map_err(at(Step::User))?;
            umask(Mode::WGRP | Mode::RWXO);
        }
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).map_err(at(Step::Capabilities))?;
        set_no_new_privs(true).map_err(at(Step::NoNewPrivileges))?;
        if let Some(ruleset) = &self.ruleset {
            restrict(ruleset).map_err(at(Step::Landlock))?;
        }
        Ok(())
    }
}

/// Only ever raises the score, which everybody may; where it fails the kernel chooses by size.
fn volunteer_for_oom() {
    let path = c"/proc/self/oom_score_adj";
    if let Ok(file) = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        rustix::io::write(&file, BESIDE_OOM_SCORE).unwrap_or_default();
    }
}

fn drop_bounding() -> Result<(), Errno> {
    // Whatever was ambient would survive the exec of an ordinary program. Kernels before 4.3 have none.
    clear_ambient_capability_set().unwrap_or_default();
    for number in 0..CAPABILITIES_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            // Without CAP_SETPCAP it stays; without new privileges nothing can be gained from it.
            Err(Errno::PERM) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn become_user(number: u32) -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(number), Gid::from_raw(number));
    // `/dev/stdout` opens the pipe anew, which needs the right to it. `/dev/null` must stay everybody's.
    for stdio in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let stat = rustix::fs::fstat(stdio)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            rustix::fs::fchown(stdio, Some(user), Some(group))?;
        }
    }
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)
}

#[expect(
    unsafe_code,
    reason = "no safe wrapper of a child's own restriction exists"
)]
fn restrict(ruleset: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the call takes two numbers; the descriptor is open as long as the reference lives.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_restrict_self,
            ruleset.as_raw_fd(),
            0 as libc::c_uint,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// A folder that is seen in the place of others, by this process and what it starts.
pub(crate) struct Mounts {
    pub(super) source: CString,
    pub(super) places: Vec<CString>,
}

impl Mounts {
    /// Tries it in a process of its own: whether a host lets us mount is told by nothing else.
    pub(super) fn can_be_made(&self) -> bool {
        crate::os::succeeds_in_child(|| self.make().is_ok())
    }

    fn make(&self) -> Result<(), Errno> {
        unshare_mounts()?;
        // What the host mounts later is seen here, and nothing of ours there.
        mount(None, c"/", libc::MS_REC | libc::MS_SLAVE)?;
        for place in &self.places {
            mount(Some(&self.source), place, libc::MS_BIND)?;
        }
        Ok(())
    }
}

#[expect(
    unsafe_code,
    reason = "rustix marks it unsafe for the descriptors it may unshare"
)]
fn unshare_mounts() -> Result<(), Errno> {
    // SAFETY: the call takes a number and changes the namespace of this process, which has one thread.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if result == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

#[expect(
    unsafe_code,
    reason = "the safe wrapper may allocate, which a child must not"
)]
fn mount(source: Option<&CStr>, target: &CStr, flags: libc::c_ulong) -> Result<(), Errno> {
    let source = source.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: both strings are null-terminated and live; type and data may be null for these flags (mount(2)).
    let result = unsafe {
        libc::mount(
            source,
            target.as_ptr(),
            std::ptr::null(),
            flags,
            std::ptr::null(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}
