//! A file system of its own, small enough to fill.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A mounted tmpfs, or a folder of another disk; gone when dropped.
pub struct Disk(PathBuf);

impl Disk {
    /// Of a size as `mount` takes it: `200m`.
    pub fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let at = at.to_owned();
        let options = format!("size={size},mode=755");
        let folder = at.display().to_string();
        run(
            "mount",
            &["-t", "tmpfs", "-o", &options, "landfast-test", &folder],
        );
        Self(at)
    }

    /// What is below one folder lies in another one.
    pub fn bind(folder: &Path, at: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        fs::create_dir_all(at).unwrap();
        let (from, to) = (folder.display().to_string(), at.display().to_string());
        run("mount", &["--bind", &from, &to]);
        Self(at.to_owned())
    }

    /// Takes all room but so many bytes; gives the file that does.
    pub fn fill(&self, but: u64) -> PathBuf {
        let ballast = self.0.join("ballast");
        let told = rustix::fs::statvfs(&self.0).unwrap();
        let free = told.f_bavail * told.f_frsize;
        let file = fs::File::create(&ballast).unwrap();
        let taken = free.saturating_sub(but);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken).unwrap();
        ballast
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what still runs there is ended by the host, which is dropped later.
        run("umount", &["-l", &self.0.display().to_string()]);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "mounting is what a test of a full disk needs"
)]
fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).status();
    assert!(done.unwrap().success(), "{program} {arguments:?}");
}
