//! What instances are kept from, tried here and in a virtual machine: Debian's own kernel with nothing but cgroup v2,
//! which the machine of a developer or of CI may not have.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::live::{command, is_short, scratch};

/// Said by the machine as its last word.
const PASSED: &str = "jail-exit 0";
/// What the machine's first process runs besides the test.
const TOOLS: &[&str] = &["sh", "mount", "mkdir", "chmod", "uname", "cat", "poweroff"];
/// Emulated, not virtualised: a machine of CI has no KVM.
const MACHINE_SECONDS_MAX: &str = "600";

/// Runs the tests of the jail here and, in the long form, in the machine.
pub(crate) fn run() -> anyhow::Result<()> {
    let executables = build()?;
    let test = executables
        .iter()
        .find(|path| path.to_string_lossy().contains("/deps/jail-"))
        .context("cargo built no test `jail`")?;
    let status = command(test).status().context("failed to run the test")?;
    ensure!(
        status.success(),
        "an instance was not kept from something on this host"
    );
    println!("figure: every attempt refused on this host");
    if is_short() {
        return Ok(());
    }
    let folder = scratch("jail")?;
    let result = machine(&folder, test, &executables);
    fs::remove_dir_all(&folder).context("failed to remove the scratch folder")?;
    result
}

fn build() -> anyhow::Result<Vec<PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = command(cargo)
        .args([
            "test",
            "--locked",
            "-p",
            "landfast-target-process",
            "--test",
            "jail",
        ])
        .args(["--no-run", "--message-format=json"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("failed to run cargo")?;
    ensure!(output.status.success(), "cargo did not build the test");
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let values = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(values
        .filter_map(|value| Some(PathBuf::from(value["executable"].as_str()?)))
        .collect())
}

/// Boots the newest kernel of the distribution with the test as its only program.
fn machine(folder: &Path, test: &Path, executables: &[PathBuf]) -> anyhow::Result<()> {
    let kernel = kernel(folder)?;
    let root = folder.join("root");
    for inner in [
        "proc", "sys", "dev", "tmp", "etc", "run", "bin", "usr/bin", "var/tmp",
    ] {
        fs::create_dir_all(root.join(inner))?;
    }
    let busybox = found("busybox").context("busybox is missing: apt-get install busybox-static")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for tool in TOOLS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(tool))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
    for file in executables {
        put(&root, file)?;
        for library in libraries(file)? {
            put(&root, &library)?;
        }
    }
    // Where the tests make their worlds: `CARGO_TARGET_TMPDIR`, as it was when they were built.
    let target = test.ancestors().nth(3).context("the test lies too high")?;
    let worlds = target.join("tmp");
    fs::create_dir_all(root.join(worlds.strip_prefix("/")?))?;
    write_init(&root.join("init"), test, &worlds)?;
    pack(&root, &folder.join("initrd"))?;
    let output = command("timeout")
        .args([MACHINE_SECONDS_MAX, "qemu-system-x86_64"])
        .args(["-m", "1500", "-nographic", "-no-reboot", "-append"])
        .arg("console=ttyS0 quiet panic=-1")
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(folder.join("initrd"))
        .stdin(std::process::Stdio::null())
        .output()
        .context("failed to run qemu: apt-get install qemu-system-x86")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !said.contains(PASSED) {
        println!("{said}");
        bail!("an instance was not kept from something in the machine");
    }
    let results = said
        .lines()
        .filter(|line| line.contains("test result") || line.contains("by cgroup"));
    results.for_each(|line| println!("{}", line.trim()));
    ensure!(
        said.contains("memory by cgroup v2"),
        "the machine had no cgroup v2"
    );
    println!("figure: every attempt refused under cgroup v2");
    Ok(())
}

fn write_init(init: &Path, test: &Path, worlds: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let (test, worlds) = (test.display(), worlds.display());
    let text = format!(
        "#!/bin/sh\nexport PATH=/bin\n\
         mount -t proc none /proc\nmount -t sysfs none /sys\nmount -t devtmpfs none /dev\nmkdir -p /dev/shm /dev/pts\n\
         mount -t cgroup2 none /sys/fs/cgroup\nmount -t tmpfs -o mode=1777 none /tmp\n\
         mount -t tmpfs none {worlds}\nchmod 755 {worlds}\n\
         uname -r\n{test} --nocapture --test-threads 2\necho \"jail-exit $?\"\npoweroff -f\n"
    );
    fs::write(init, text)?;
    fs::set_permissions(init, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The kernel of the distribution, downloaded by its own package manager and only unpacked.
fn kernel(folder: &Path) -> anyhow::Result<PathBuf> {
    let depends = text_of(command("apt-cache").args(["depends", "linux-image-amd64"]))?;
    let package = depends
        .split_whitespace()
        .find(|word| word.starts_with("linux-image-") && word.contains('.'))
        .context("apt knows no kernel: apt-get update")?;
    let status = command("apt-get")
        .args(["-q", "-q", "download", package])
        .current_dir(folder)
        .status()?;
    ensure!(status.success(), "apt-get did not download `{package}`");
    let entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let archive = entries
        .into_iter()
        .find(|path| path.extension().is_some_and(|one| one == "deb"));
    let archive = archive.context("apt-get downloaded no package")?;
    let unpacked = folder.join("kernel");
    let status = command("dpkg-deb")
        .arg("-x")
        .arg(archive)
        .arg(&unpacked)
        .status()?;
    ensure!(status.success(), "the kernel's package cannot be unpacked");
    let mut files = fs::read_dir(unpacked.join("boot"))?
        .flatten()
        .map(|entry| entry.path());
    let is_kernel = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
    };
    files.find(is_kernel).context("the package holds no kernel")
}

fn libraries(file: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let text = text_of(command("ldd").arg(file))?;
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// Copies a file to the place it has here.
fn put(root: &Path, file: &Path) -> anyhow::Result<()> {
    let place = root.join(file.strip_prefix("/")?);
    fs::create_dir_all(place.parent().context("it is a file")?)?;
    fs::copy(file, place).with_context(|| format!("failed to copy `{}`", file.display()))?;
    Ok(())
}

fn pack(root: &Path, archive: &Path) -> anyhow::Result<()> {
    let names = text_of(command("find").arg(".").current_dir(root))?;
    let list = root.with_extension("list");
    fs::write(&list, names)?;
    let status = command("cpio")
        .args(["--quiet", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(fs::File::open(list)?)
        .stdout(fs::File::create(archive)?)
        .status()
        .context("failed to run cpio: apt-get install cpio")?;
    ensure!(status.success(), "cpio failed");
    Ok(())
}

fn found(program: &str) -> Option<PathBuf> {
    let folders = ["/usr/bin", "/bin", "/usr/sbin"].map(Path::new);
    let mut paths = folders.iter().map(|folder| folder.join(program));
    paths.find(|path| path.is_file())
}

fn text_of(command: &mut std::process::Command) -> anyhow::Result<String> {
    let output = command.output().context("failed to run a helper")?;
    ensure!(output.status.success(), "a helper failed: {command:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
