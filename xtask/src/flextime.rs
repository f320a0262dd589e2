//! `cargo xtask flextime`: builds releases of the example, each with its own version and fault compiled in.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

pub(crate) const USAGE: &str = "flextime --versions 1..5 [--fault 5=errors:50]… [--profile dev|release|dist] [--out target/flextime]";

/// Builds what the arguments ask for into `<out>/<version>/flextime`.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let plan = Plan::read(arguments).with_context(|| format!("usage: cargo xtask {USAGE}"))?;
    for version in &plan.versions {
        let built = build(&plan, version)?;
        let folder = plan.out.join(version);
        fs::create_dir_all(&folder)
            .with_context(|| format!("failed to create `{}`", folder.display()))?;
        let target = folder.join("flextime");
        // A running release must not be written to: it is replaced by name.
        let beside = folder.join("flextime.new");
        fs::copy(&built, &beside)
            .with_context(|| format!("failed to copy `{}`", built.display()))?;
        // As one is that goes to production: a fifth of the size.
        let stripped = command("strip").arg("--strip-debug").arg(&beside).status();
        let stripped = stripped.context("failed to start strip (Debian package `binutils`)")?;
        ensure!(
            stripped.success(),
            "release {version} could not be stripped"
        );
        fs::rename(&beside, &target)
            .with_context(|| format!("failed to place `{}`", target.display()))?;
        check(&target, version)?;
    }
    Ok(())
}

struct Plan {
    versions: Vec<String>,
    faults: BTreeMap<String, String>,
    profile: String,
    out: PathBuf,
}

impl Plan {
    fn read(arguments: &[String]) -> anyhow::Result<Self> {
        let mut plan = Self {
            versions: Vec::new(),
            faults: BTreeMap::new(),
            profile: "dev".to_owned(),
            out: PathBuf::from("target/flextime"),
        };
        let mut arguments = arguments.iter();
        while let Some(flag) = arguments.next() {
            let value = arguments
                .next()
                .with_context(|| format!("`{flag}` lacks its value"))?;
            match flag.as_str() {
                "--versions" => plan.versions = versions(value)?,
                "--fault" => {
                    let (version, fault) =
                        value.split_once('=').context("a fault is VERSION=FAULT")?;
                    plan.faults.insert(version.to_owned(), fault.to_owned());
                }
                "--profile" => plan.profile.clone_from(value),
                "--out" => plan.out = PathBuf::from(value),
                _ => bail!("there is no `{flag}`"),
            }
        }
        ensure!(!plan.versions.is_empty(), "`--versions` is missing");
        if let Some(stray) = plan
            .faults
            .keys()
            .find(|version| !plan.versions.contains(version))
        {
            bail!("a fault is given for version {stray}, which is not built");
        }
        Ok(plan)
    }
}

/// `1..5`, both included, or `2`, or `1,2,7`.
fn versions(text: &str) -> anyhow::Result<Vec<String>> {
    if let Some((first, last)) = text.split_once("..") {
        let (first, last): (u32, u32) = (first.parse()?, last.parse()?);
        return Ok((first..=last).map(|version| version.to_string()).collect());
    }
    Ok(text.split(',').map(str::to_owned).collect())
}

fn build(plan: &Plan, version: &str) -> anyhow::Result<PathBuf> {
    let fault = plan.faults.get(version).map_or("", String::as_str);
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = command(&cargo)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "flextime",
            "--bin",
            "flextime",
        ])
        .args([
            "--profile",
            &plan.profile,
            "--message-format",
            "json-render-diagnostics",
        ])
        .envs([("FLEXTIME_VERSION", version), ("FLEXTIME_FAULT", fault)])
        .stderr(Stdio::inherit())
        .output()
        .context("failed to start cargo")?;
    ensure!(output.status.success(), "release {version} was not built");
    let text = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    let executable = text.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    });
    executable.context("cargo named no executable")
}

/// Asks the copy who it is: another build in the same folder may have come between.
fn check(binary: &Path, version: &str) -> anyhow::Result<()> {
    let output = command(binary).arg("version").output();
    let output = output.with_context(|| format!("failed to start `{}`", binary.display()))?;
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "`{}` does not say its version: {}",
            binary.display(),
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    ensure!(
        said["version"] == version,
        "`{}` is version {}, not {version}",
        binary.display(),
        said["version"]
    );
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a chore that builds has to start cargo; argv only"
)]
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}
