//! The password of a PostgreSQL that Landfast runs, changed again and again under load: what the judge lost, and whether
//! any earlier password opens anything at the end.

use std::{collections::BTreeSet, fs, process::Stdio};

use anyhow::{Context as _, ensure};

use crate::live::{
    App, AppSettings, Build, Host, HostSettings, Judge, JudgeSettings, command, instant, is_short,
};

const STORE: &str = r#"
[stores.main]
engine = "postgres"
memory = "128MiB"
"#;

/// Where an instance was told its store is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    login: String,
    password: String,
    port: String,
}

impl Address {
    fn parse(url: &str) -> Option<Self> {
        let (who, place) = url.strip_prefix("postgres://")?.split_once('@')?;
        let (login, password) = who.split_once(':')?;
        let port = place.split(['/', ':']).nth(1)?;
        Some(Self {
            login: login.to_owned(),
            password: password.to_owned(),
            port: port.to_owned(),
        })
    }

    /// Logs in with PostgreSQL's own client; what it says when it is refused.
    fn log_in(&self) -> anyhow::Result<Result<(), String>> {
        let output = command("psql")
            .args(["-h", "127.0.0.1", "-p", &self.port, "-U", &self.login])
            .args(["-d", "flextime", "-Atc", "SELECT 1"])
            .env("PGPASSWORD", &self.password)
            .stdin(Stdio::null())
            .output()
            .context("failed to run psql")?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(if output.status.success() {
            Ok(())
        } else {
            Err(said)
        })
    }
}

/// Rotates under load.
pub(crate) fn rotation(build: &Build) -> anyhow::Result<()> {
    let (rotations, rate, streams) = if is_short() {
        (2, 100, 20)
    } else {
        (6, 500, 200)
    };
    let host = Host::start(build, "rotation", HostSettings::default())?;
    let settings = AppSettings {
        strategy: "rolling".into(),
        gates: r#"["preflight"]"#.into(),
        uses: r#"["main"]"#.into(),
        more: STORE.into(),
        ..AppSettings::default()
    };
    let app = App::new(&host, build, settings)?;
    app.deploy_well(&host, 1, "rolling", "seal")?;
    let judge = JudgeSettings {
        rate,
        websockets: streams,
        events: streams / 10,
        // Each reads the database.
        paths: vec!["/v2/constraints".into()],
        ..JudgeSettings::default()
    };
    let judge = Judge::start(build, &host, &app, &judge)?;
    let (mut dead, mut seconds) = (BTreeSet::new(), Vec::new());
    for _ in 0..rotations {
        let before = addresses(&host)?;
        for address in &before {
            let entered = address.log_in()?;
            ensure!(
                entered.is_ok(),
                "`{}` should open: {entered:?}",
                address.login
            );
        }
        let begun = instant();
        let arguments = app.arguments(&["store", "rotate", "main"]);
        let output = host.cli(&app.folder, &arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the rotation failed: {said}");
        seconds.push(begun.elapsed().as_secs_f64());
        dead.extend(before);
        let now = addresses(&host)?;
        ensure!(now.is_disjoint(&dead), "an instance has an old password");
    }
    let verdict = judge.finish()?;
    let mut refused = 0;
    for address in &dead {
        let entered = address.log_in()?;
        let Err(said) = entered else {
            anyhow::bail!("an old password of `{}` opens still", address.login);
        };
        ensure!(
            said.contains("authentication failed"),
            "`{}` was refused for another reason: {said}",
            address.login
        );
        refused += 1;
    }
    let restarts = app.history(&host)?;
    let restarts = restarts
        .iter()
        .filter(|rollout| rollout["kind"] == "restart");
    let lost = verdict.lost();
    let slowest = seconds.iter().copied().fold(0.0, f64::max);
    println!(
        "figure: {rotations} rotations under {} requests ({} restarts of 3 instances): {lost} lost, {} streams cut; \
         {refused} of {} old passwords refused; the slowest rotation took {slowest:.1} s",
        verdict.number("requests"),
        restarts.count(),
        verdict.cut(),
        dead.len(),
    );
    ensure!(
        verdict.is_valid(),
        "the judge did not keep up:\n{}",
        verdict.samples()
    );
    ensure!(
        lost == 0 && verdict.cut() == 0,
        "lost:\n{}",
        verdict.samples()
    );
    ensure!(dead.len() >= rotations, "too few passwords were seen");
    Ok(())
}

/// What the instances that run were told, by their own environment.
fn addresses(host: &Host) -> anyhow::Result<BTreeSet<Address>> {
    let mut found = BTreeSet::new();
    for (id, _, main) in host.instances() {
        if !id.contains("api.") {
            continue;
        }
        let environ = fs::read(format!("/proc/{main}/environ"));
        let environ = environ.with_context(|| format!("{id} has no environment"))?;
        let mut variables = environ.split(|byte| *byte == 0);
        let url = variables.find_map(|variable| variable.strip_prefix(b"DATABASE_URL="));
        let url = url.with_context(|| format!("{id} was told of no store"))?;
        let address = Address::parse(&String::from_utf8_lossy(url));
        found.insert(address.context("it is no address")?);
    }
    ensure!(!found.is_empty(), "no instance runs");
    Ok(found)
}
