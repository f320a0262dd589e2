//! Single figures: seconds, megabytes and refusals.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::live::{
    App, AppSettings, Build, Host, HostSettings, Judge, JudgeSettings, instant, processor_nanos,
    proportional_kib, wait_until,
};

fn start(build: &Build, name: &str, settings: AppSettings) -> anyhow::Result<(Host, App)> {
    let host = Host::start(build, name, HostSettings::default())?;
    let app = App::new(&host, build, settings)?;
    Ok((host, app))
}

/// `plan` for 200 services.
pub(crate) fn plan(build: &Build) -> anyhow::Result<()> {
    const SERVICES: usize = 200;
    let host = Host::start(build, "plan", HostSettings::default())?;
    let folder = host.folder.join("large");
    fs::create_dir_all(&folder)?;
    fs::copy(build.release(1), folder.join("flextime"))?;
    let mut text = "app = \"large\"\n".to_owned();
    for number in 0..SERVICES {
        text.push_str(&format!(
            "\n[services.s{number}]\nartifact = \"flextime\"\ncommand = [\"./flextime\", \"serve\"]\nport = 3000\n\
             replicas = 2\nresources = {{ memory = \"1MiB\" }}\nhealth = {{ ready = \"http:/ready\" }}\n\
             \n[routes.r{number}]\nhost = \"s{number}.example\"\nservice = \"s{number}\"\n"
        ));
    }
    fs::write(folder.join("landfast.toml"), text)?;
    let first = host.json(&folder, &["plan"])?;
    let services = first["services"].as_array().map_or(0, Vec::len);
    ensure!(services == SERVICES, "the plan names {services} services");
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..5 {
        let begun = instant();
        host.json(&folder, &["plan"])?;
        times.push(begun.elapsed());
    }
    times.sort();
    println!(
        "figure: plan for {SERVICES} services: {} ms (median of 5)",
        times[2].as_millis()
    );
    ensure!(
        times[2] < Duration::from_millis(200),
        "it took 200 ms or more"
    );
    Ok(())
}

/// A release that exits at start fails its step within two seconds of the exit.
pub(crate) fn exit(build: &Build) -> anyhow::Result<()> {
    let (host, app) = start(build, "exit", AppSettings::default())?;
    app.deploy_well(&host, 1, "rolling", "seal")?;
    let mut slowest = 0;
    for strategy in ["rolling", "blue-green", "canary"] {
        app.build(6)?;
        let code = app.deploy(&host, strategy, "seal")?;
        ensure!(
            code == 5,
            "{strategy}: exit code {code}, not 5 (rolled back)"
        );
        let events = events(&app, &host)?;
        let at = |kind: &str| {
            let of_kind = events.iter().rev().filter(|event| event["kind"] == kind);
            of_kind.filter_map(|event| millis(&event["at"])).next()
        };
        let (ended, failed) = (last_exit(&host), at("rollout-failed"));
        let (ended, failed) = (
            ended.context("no exit was kept")?,
            failed.context("nothing failed")?,
        );
        let took = failed - ended;
        println!("  {strategy}: failed {took} ms after the exit");
        slowest = slowest.max(took);
    }
    println!("figure: the step fails at most {slowest} ms after the exit");
    ensure!(slowest < 2_000, "it took two seconds or more");
    Ok(())
}

/// When an instance of the broken release last said that it leaves at once.
fn last_exit(host: &Host) -> Option<i64> {
    let folder = host.state().join("logs/flextime/production");
    let mut newest = None;
    for entry in fs::read_dir(folder).ok()?.flatten() {
        for segment in fs::read_dir(entry.path()).ok()?.flatten() {
            let text = fs::read_to_string(segment.path()).unwrap_or_default();
            let ends = text.lines().filter(|line| line.contains("built to"));
            let at = ends
                .filter_map(|line| millis_of(line.split(' ').next()?))
                .max();
            newest = newest.max(at);
        }
    }
    newest
}

fn events(app: &App, host: &Host) -> anyhow::Result<Vec<Value>> {
    // The stream has no end: what is there comes at once.
    let arguments = app.arguments(&["events", "--after", "0", "--json"]);
    let file = host.folder.join("events.json");
    let mut child = crate::live::command(build_landfast())
        .args(&arguments)
        .arg("--socket")
        .arg(host.run().join("landfast.sock"))
        .current_dir(&app.folder)
        .stdout(fs::File::create(&file)?)
        .stderr(std::process::Stdio::null())
        .spawn()?;
    sleep(Duration::from_secs(2));
    drop(child.kill());
    drop(child.wait());
    let text = fs::read_to_string(&file)?;
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

fn build_landfast() -> std::path::PathBuf {
    Build::find()
        .map(|build| build.landfast())
        .unwrap_or_default()
}

fn millis(value: &Value) -> Option<i64> {
    millis_of(value.as_str()?)
}

/// Milliseconds of the day of an RFC 3339 instant in UTC: enough for differences within a proof.
fn millis_of(text: &str) -> Option<i64> {
    let time = text.split('T').nth(1)?.trim_end_matches('Z');
    let mut parts = time.split(':');
    let hours: i64 = parts.next()?.parse().ok()?;
    let minutes: i64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some((hours * 60 + minutes) * 60_000 + (seconds * 1e3) as i64)
}

/// The source folder is rebuilt differently between the deploy and the rollback.
pub(crate) fn source(build: &Build) -> anyhow::Result<()> {
    let (host, app) = start(build, "source", AppSettings::default())?;
    app.deploy_well(&host, 1, "rolling", "seal")?;
    let first = app.get(&host, "/version")?;
    app.deploy_well(&host, 2, "blue-green", "seal")?;
    let second = app.get(&host, "/version")?;
    ensure!(
        first["digest"] != second["digest"],
        "the releases do not differ"
    );
    fs::remove_dir_all(app.folder.join("bin"))?;
    app.build(7)?;
    let output = host.cli(&app.folder, &app.arguments(&["rollback", "--wait", "seal"]))?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let back = app.get(&host, "/version")?;
    println!(
        "figure: /version before {}, after the rollback {}",
        first["digest"], back["digest"]
    );
    ensure!(back == first, "another release answers: {back}");
    Ok(())
}

/// Two apps and two environments on one host; a second claim of a route.
pub(crate) fn scopes(build: &Build) -> anyhow::Result<()> {
    let host = Host::start(build, "scopes", HostSettings::default())?;
    let settings = |name: &str, environment: &str, at: &str| AppSettings {
        name: name.into(),
        environment: environment.into(),
        host: at.into(),
        replicas: 1,
        ..AppSettings::default()
    };
    let apps = [
        settings("shop", "production", "shop.example"),
        settings("shop", "staging", "staging.shop.example"),
        settings("desk", "production", "desk.example"),
    ];
    let mut running = Vec::new();
    for (settings, release) in apps.into_iter().zip([1, 2, 3]) {
        let app = App::new(&host, build, settings)?;
        app.deploy_well(&host, release, "rolling", "promotion")?;
        running.push((app, release));
    }
    for (app, release) in &running {
        let version = app.get(&host, "/version")?;
        ensure!(
            version["version"].as_str() == Some(release.to_string().as_str()),
            "{} is served by {version}",
            app.settings.host
        );
    }
    let thief = App::new(
        &host,
        build,
        settings("thief", "production", "shop.example"),
    )?;
    thief.build(4)?;
    // A plan that a deploy would be refused for prints all the same, and says so by its exit code.
    let planned = host.cli(&thief.folder, &thief.arguments(&["plan", "--json"]))?;
    let plan: Value = serde_json::from_slice(&planned.stdout).context("the plan is no JSON")?;
    let owner = plan["routes"][0]["taken_by"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let output = host.cli(&thief.folder, &thief.arguments(&["deploy"]))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!(
        "figure: three environments serve; the second claim: plan names `{owner}`, deploy says: {}",
        said.lines()
            .find(|line| line.starts_with("error: "))
            .unwrap_or_default()
    );
    ensure!(
        owner == "shop/production/public",
        "the plan does not name the owner"
    );
    ensure!(
        !output.status.success() && said.contains("shop/production/public"),
        "the deploy went through"
    );
    let version = running[0].0.get(&host, "/version")?;
    ensure!(version["version"] == "1", "the owner's route was touched");
    Ok(())
}

/// From the command to the last request routed to the bad release.
pub(crate) fn rollback(build: &Build) -> anyhow::Result<()> {
    let settings = AppSettings {
        standby: "10m".into(),
        ..AppSettings::default()
    };
    let (host, app) = start(build, "rollback", settings)?;
    // The first release has nothing to let go and seals at once.
    app.deploy_well(&host, 1, "rolling", "seal")?;
    app.deploy_well(&host, 2, "blue-green", "promotion")?;
    let load = JudgeSettings {
        rate: 300,
        websockets: 50,
        events: 10,
        ..JudgeSettings::default()
    };
    let judge = Judge::start(build, &host, &app, &load)?;
    sleep(Duration::from_secs(3));
    let asked = crate::live::now_micros();
    let output = host.cli(&app.folder, &app.arguments(&["rollback", "--wait", "seal"]))?;
    ensure!(
        [Some(0), Some(5)].contains(&output.status.code()),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let verdict = judge.finish()?;
    sleep(Duration::from_secs(2));
    let last = last_routed(&host, 2)?;
    let took = last - asked / 1_000 % 86_400_000;
    println!(
        "figure: the last request was routed to the bad release {took} ms after the command; {} requests, {} lost",
        verdict.number("requests"),
        verdict.lost()
    );
    ensure!(took <= 1_000, "it took longer than a second");
    ensure!(
        verdict.lost() + verdict.cut() == 0,
        "lost:\n{}",
        verdict.samples()
    );
    Ok(())
}

/// When the last request was routed to a release, by the access log, in milliseconds of the day.
fn last_routed(host: &Host, release: u64) -> anyhow::Result<i64> {
    let text = fs::read_to_string(host.state().join("proxy/access.log"))?;
    let mut last = None;
    for line in text.lines() {
        let Ok(entry) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        if entry["release"].as_u64() != Some(release) {
            continue;
        }
        let Some(at) = millis(&entry["at"]) else {
            bail!("the access log has no instant: {line}");
        };
        last = last.max(Some(at));
    }
    last.context("nothing was routed to the release")
}

/// Memory and processor at rest.
pub(crate) fn idle(build: &Build) -> anyhow::Result<()> {
    const SECONDS: u64 = 20;
    let (host, app) = start(build, "idle", AppSettings::default())?;
    app.deploy_well(&host, 1, "rolling", "seal")?;
    sleep(Duration::from_secs(5));
    let weigh = |host: &Host| -> anyhow::Result<(Vec<u32>, Vec<u32>)> {
        let (holder, worker) = host.proxy()?;
        let server = host.server_pid().context("the server runs")?;
        let shims = host
            .instances()
            .into_iter()
            .map(|(_, shim, _)| shim)
            .collect();
        Ok((vec![server, holder, worker], shims))
    };
    let (main, shims) = weigh(&host)?;
    ensure!(shims.len() == 3, "{} shims run", shims.len());
    let all: Vec<u32> = main.iter().chain(&shims).copied().collect();
    let used = || -> Vec<u64> { all.iter().map(|pid| processor_nanos(*pid)).collect() };
    let before = used();
    sleep(Duration::from_secs(SECONDS));
    let percent = |nanos: u64| nanos as f64 / (SECONDS as f64 * 1e9) * 100.0;
    let shares: Vec<f64> = used()
        .iter()
        .zip(&before)
        .map(|(after, before)| percent(after.saturating_sub(*before)))
        .collect();
    let share: f64 = shares.iter().sum();
    let shares: Vec<String> = shares.iter().map(|share| format!("{share:.3}")).collect();
    let total: u64 = all.iter().map(|pid| proportional_kib(*pid)).sum();
    let each: Vec<String> = all
        .iter()
        .map(|pid| format!("{:.1}", proportional_kib(*pid) as f64 / 1024.0))
        .collect();
    // A further shim: what it adds to the sum.
    let scaled = host.cli(&app.folder, &app.arguments(&["scale", "api", "6"]))?;
    ensure!(
        scaled.status.success(),
        "{}",
        String::from_utf8_lossy(&scaled.stderr)
    );
    wait_until("six instances run", Duration::from_secs(30), || {
        host.instances().len() == 6
    })?;
    sleep(Duration::from_secs(3));
    let (main, shims) = weigh(&host)?;
    let more: u64 = main
        .iter()
        .chain(&shims)
        .map(|pid| proportional_kib(*pid))
        .sum();
    let further = more.saturating_sub(total) as f64 / 3.0 / 1024.0;
    println!(
        "figure: {:.1} MB PSS (server, holder, worker, 3 shims: {} MB), each further shim {further:.2} MB, {share:.2} % of a core ({} %)",
        total as f64 / 1024.0,
        each.join(", "),
        shares.join(", ")
    );
    ensure!(total <= 60 * 1024, "more than 60 MB");
    ensure!(further <= 1.5, "a further shim adds more than 1.5 MB");
    ensure!(share <= 0.5, "more than 0.5 % of a core");
    Ok(())
}

/// A release that fails half, at 20 requests per second in all.
pub(crate) fn canary(build: &Build) -> anyhow::Result<()> {
    // Without a smoke gate, which would refuse such a release before its first request.
    let gates = r#"["preflight", "analysis"]"#.to_owned();
    let settings = AppSettings {
        hold: "5m".into(),
        gates,
        ..AppSettings::default()
    };
    let (host, app) = start(build, "canary", settings)?;
    app.deploy_well(&host, 1, "rolling", "seal")?;
    let load = JudgeSettings {
        rate: 20,
        websockets: 0,
        events: 0,
        paths: vec!["/v2/constraints".into()],
        ..JudgeSettings::default()
    };
    let judge = Judge::start(build, &host, &app, &load)?;
    app.build(10)?;
    let code = app.deploy(&host, "canary", "seal")?;
    ensure!(code == 5, "exit code {code}, not 5 (rolled back)");
    let verdict = judge.finish()?;
    let events = events(&app, &host)?;
    let after = |kind: &str, words: &str| {
        let found = events.iter().rev().find(|event| {
            event["kind"] == kind
                && event["text"]
                    .as_str()
                    .is_some_and(|text| text.contains(words))
        });
        found.and_then(|event| millis(&event["at"]))
    };
    let begun = after("phase", "watching step 1").context("no step began")?;
    let failed = after("rollout-failed", "").context("nothing failed")?;
    let took = failed - begun;
    println!(
        "figure: aborted {took} ms after the 5 % step began; {} requests, {} lost, {} failed by the release",
        verdict.number("requests"),
        verdict.lost(),
        verdict.number("faults")
    );
    ensure!(took <= 10_000, "it took longer than 10 s");
    ensure!(verdict.lost() == 0, "lost:\n{}", verdict.samples());
    Ok(())
}
