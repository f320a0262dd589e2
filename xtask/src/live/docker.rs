//! What proofs need of a Docker daemon beside containers: images made of programs of this machine, and its events.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::Context as _;
use landfast_testbed::Dockerd;
use serde_json::Value;

use super::{
    Build,
    app::copy_libraries,
    process::{replace_file, spawn},
};

/// Puts programs of this machine, with the libraries they are linked with, into the folder of an image.
pub(crate) fn program_folder(folder: &Path, programs: &[&str]) -> anyhow::Result<()> {
    for program in programs {
        replace_file(
            Path::new(program),
            &folder.join(program.trim_start_matches('/')),
        )?;
        copy_libraries(Path::new(program), folder)?;
    }
    Ok(())
}

/// Makes the image `flextime:<version>` of a release, with `curl` for checks that run inside.
pub(crate) fn flextime_image(
    docker: &Dockerd,
    build: &Build,
    version: u64,
    scratch: &Path,
) -> anyhow::Result<String> {
    let folder = scratch.join(format!("image-{version}"));
    program_folder(&folder, &["/usr/bin/curl"])?;
    let binary = build.release(version);
    replace_file(&binary, &folder.join("flextime"))?;
    copy_libraries(&binary, &folder)?;
    let name = format!("flextime:{version}");
    docker.import(&name, &folder, &["ENTRYPOINT [\"/flextime\"]"])?;
    fs::remove_dir_all(&folder)?;
    Ok(name)
}

/// One event of a container, as the daemon tells it.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) action: String,
    /// The container.
    pub(crate) id: String,
    /// The daemon's own time, in microseconds since the epoch.
    pub(crate) at: i64,
    /// Landfast's name of the instance, where it is one.
    pub(crate) instance: String,
}

/// Everything a daemon tells of its containers while this value lives.
#[derive(Debug)]
pub(crate) struct Events {
    child: Child,
    file: PathBuf,
}

impl Events {
    /// Begins to listen. What was told just before is told again, so nothing is missed.
    pub(crate) fn listen(docker: &Dockerd, file: PathBuf) -> anyhow::Result<Self> {
        let output = fs::File::create(&file)?;
        let mut client = docker.client()?;
        client.args(["events", "--since", "1s", "--format", "{{json .}}"]);
        for action in ["create", "start", "die", "destroy"] {
            client.args(["--filter", &format!("event={action}")]);
        }
        client
            .args(["--filter", "type=container"])
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null());
        let child = spawn(&mut client)?;
        Ok(Self { child, file })
    }

    /// All so far, in order.
    pub(crate) fn all(&self) -> anyhow::Result<Vec<Event>> {
        let text = fs::read_to_string(&self.file).context("failed to read the daemon's events")?;
        // The last line may still be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        Ok(whole.lines().filter_map(event).collect())
    }

    /// The first event of an action after an instant that a condition holds for.
    pub(crate) fn first(
        &self,
        action: &str,
        after: i64,
        holds: impl Fn(&Event) -> bool,
    ) -> anyhow::Result<Option<Event>> {
        let mut all = self.all()?.into_iter();
        Ok(all.find(|event| event.action == action && event.at >= after && holds(event)))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn event(line: &str) -> Option<Event> {
    let told: Value = serde_json::from_str(line).ok()?;
    let attributes = &told["Actor"]["Attributes"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Some(Event {
        action: text(&told["Action"]),
        id: text(&told["Actor"]["ID"]),
        at: told["timeNano"].as_i64()? / 1_000,
        instance: text(&attributes["dev.landfast.instance"]),
    })
}
