//! An `sshd` of a test's own on loopback. Debian: `apt-get install openssh-server`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use landfast_testbed::free_port;
use tempfile::TempDir;

/// A minute, for a loaded machine.
const LOOKS: usize = 1_200;

#[expect(
    clippy::disallowed_methods,
    reason = "a real sshd, keys and their owner's name"
)]
fn command(program: &str) -> Command {
    Command::new(program)
}

/// An `sshd` of its own, with keys of its own, and a `ssh` in PATH that knows both.
pub struct Sshd {
    child: Child,
    pub port: u16,
    pub user: String,
    folder: TempDir,
}

impl Sshd {
    /// `None` where there can be none, which is said.
    #[allow(
        clippy::print_stdout,
        reason = "whoever runs the tests is told why one was left out"
    )]
    pub fn start_or_skip() -> Option<Self> {
        let absent = ["/usr/sbin/sshd", "/usr/bin/ssh", "/usr/bin/ssh-keygen"]
            .into_iter()
            .find(|program| !Path::new(program).is_file());
        if let Some(program) = absent {
            println!("skipped: `{program}` is not there (make setup)");
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            println!("skipped: sshd wants a folder that root makes");
            return None;
        }
        Some(Self::start())
    }

    /// # Panics
    /// Where there can be none, or it does not listen: with what it said.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for name in ["host", "user"] {
            let made = command("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(path.join(name))
                .status();
            assert!(made.expect("ssh-keygen is installed").success());
        }
        fs::copy(path.join("user.pub"), path.join("authorized")).unwrap();
        fs::create_dir_all("/run/sshd").expect("sshd wants its folder, and tests run as root");
        let user = command("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap().trim().to_owned();
        let port = free_port().unwrap();
        let at = path.display();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
        );
        fs::write(path.join("sshd_config"), config).unwrap();
        let host_key = fs::read_to_string(path.join("host.pub")).unwrap();
        fs::write(path.join("known"), format!("[127.0.0.1]:{port} {host_key}")).unwrap();
        let config =
            format!("IdentityFile {at}/user\nUserKnownHostsFile {at}/known\nBatchMode yes\n");
        fs::write(path.join("ssh_config"), config).unwrap();
        fs::create_dir(path.join("bin")).unwrap();
        fs::create_dir(path.join("tmp")).unwrap();
        let wrapper = path.join("bin/ssh");
        fs::write(
            &wrapper,
            format!("#!/bin/sh\nexec /usr/bin/ssh -F {at}/ssh_config \"$@\"\n"),
        )
        .unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let child = command("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(path.join("sshd_config"))
            .stderr(fs::File::create(path.join("log")).unwrap())
            .spawn()
            .expect("sshd is installed");
        let mut sshd = Self {
            child,
            port,
            user,
            folder,
        };
        sshd.wait_until_it_listens();
        sshd
    }

    fn wait_until_it_listens(&mut self) {
        for _attempt in 0..LOOKS {
            // Another may have taken the port meanwhile, so it is asked whether this one lives, too.
            let listens = std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok();
            let ended = self.child.try_wait().unwrap();
            if listens && ended.is_none() {
                return;
            }
            if ended.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = fs::read_to_string(self.path_of("log")).unwrap_or_default();
        panic!("sshd does not listen on port {}:\n{log}", self.port);
    }

    pub fn url(&self, socket: &Path) -> String {
        format!(
            "ssh://{}@127.0.0.1:{}?socket={}",
            self.user,
            self.port,
            socket.display()
        )
    }

    /// `PATH`, with an `ssh` before it that has the key.
    pub fn path(&self) -> String {
        format!(
            "{}:{}",
            self.folder.path().join("bin").display(),
            std::env::var("PATH").unwrap()
        )
    }

    pub fn path_of(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the command's temporary folders go.
    pub fn tmp(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    /// Ends every connection, as a network that goes away would.
    pub fn cut(&self) {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(children).unwrap();
        assert!(!children.trim().is_empty(), "nobody was connected");
        for child in children.split_whitespace() {
            let child = child
                .parse()
                .ok()
                .and_then(rustix::process::Pid::from_raw)
                .unwrap();
            // One that has just ended by itself is as good.
            let _gone = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
