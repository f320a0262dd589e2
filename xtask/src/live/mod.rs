//! Real hosts for the demo and the proofs: a server, its proxy and its instances in a folder of their own on
//! loopback, steered by the command line alone, with the loss judge beside them. Whatever is started here is ended
//! here, also when a proof fails.

mod app;
mod docker;
mod host;
mod judge;
mod process;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

pub(crate) use self::{
    app::{App, AppSettings, Content},
    docker::{Events, flextime_image, program_folder},
    host::{Host, HostSettings, free_port},
    judge::{Judge, JudgeSettings, Judged, Verdict},
    process::{
        instant, is_alive, kill, now_micros, processor_nanos, proportional_kib, resident_kib,
        share, signal, spawn, wait_until,
    },
};

/// Where built things are.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    /// `target/release`, or what `LANDFAST_PROFILE` names.
    bin: PathBuf,
    releases: PathBuf,
}

/// The releases the demo and the proofs deploy: version, and what is wrong with it.
pub(crate) const RELEASES: [(u64, Option<&str>); 10] = [
    (1, None),
    (2, None),
    (3, None),
    (4, None),
    // It begins to fail after some requests of each instance: the smoke test passes, the canary sees it.
    (5, Some("errors:50,after:20")),
    (6, Some("exit-at-start")),
    (7, Some("never-ready")),
    (8, Some("slow-start:3s")),
    (9, None),
    (10, Some("errors:50")),
];

impl Build {
    /// The built binary alone, for proofs that deploy nothing.
    pub(crate) fn landfast_alone() -> anyhow::Result<PathBuf> {
        let profile = std::env::var("LANDFAST_PROFILE").unwrap_or_else(|_| "release".into());
        let folder = if profile == "dev" { "debug" } else { &profile };
        let binary = target_folder().join(folder).join("landfast");
        let shown = binary.display();
        ensure!(
            binary.is_file(),
            "`{shown}` was not built; run `make build` first"
        );
        Ok(binary)
    }

    /// Finds what was built, and builds the releases of the example that are missing.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let profile = std::env::var("LANDFAST_PROFILE").unwrap_or_else(|_| "release".into());
        let folder = if profile == "dev" {
            "debug"
        } else {
            profile.as_str()
        };
        let target = target_folder();
        let build = Self {
            bin: target.join(folder),
            releases: target.join("flextime").join(&profile),
        };
        for name in ["landfast", "landfast-judge"] {
            let binary = build.bin.join(name);
            let shown = binary.display();
            ensure!(
                binary.is_file(),
                "`{shown}` was not built; run `make build` first"
            );
        }
        for (version, fault) in RELEASES {
            if !build.release(version).is_file() {
                build.make_release(&profile, version, fault)?;
            }
        }
        Ok(build)
    }

    pub(crate) fn landfast(&self) -> PathBuf {
        self.bin.join("landfast")
    }

    pub(crate) fn judge(&self) -> PathBuf {
        self.bin.join("landfast-judge")
    }

    pub(crate) fn bench(&self) -> PathBuf {
        self.bin.join("landfast-bench")
    }

    /// The binary of a release of the example.
    pub(crate) fn release(&self, version: u64) -> PathBuf {
        self.releases.join(version.to_string()).join("flextime")
    }

    fn make_release(&self, profile: &str, version: u64, fault: Option<&str>) -> anyhow::Result<()> {
        eprintln!(
            "building release {version} of the example ({})",
            fault.unwrap_or("sound")
        );
        let mut arguments = vec![
            "--versions".to_owned(),
            version.to_string(),
            "--profile".to_owned(),
            profile.to_owned(),
            "--out".to_owned(),
            self.releases.display().to_string(),
        ];
        if let Some(fault) = fault {
            arguments.extend(["--fault".to_owned(), format!("{version}={fault}")]);
        }
        crate::flextime::run(&arguments)
    }
}

/// Cargo's target folder.
pub(crate) fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
    }
}

/// A command without a shell.
#[expect(
    clippy::disallowed_methods,
    reason = "proofs start the binaries they prove, argv only"
)]
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// Whether the short form was asked for, which fits into CI.
pub(crate) fn is_short() -> bool {
    std::env::var_os("SHORT").is_some_and(|value| value != "0" && !value.is_empty())
}

/// A folder for one proof, under the system's temporary folder; short, because sockets go into it.
pub(crate) fn scratch(name: &str) -> anyhow::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("lf-{name}-{}", std::process::id()));
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("failed to empty the scratch folder")?;
    }
    std::fs::create_dir_all(&folder).context("failed to create the scratch folder")?;
    Ok(folder)
}
