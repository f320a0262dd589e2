//! A process of a run, from outside: started, asked, listened to, killed.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use landfast_backup_postgres::{WalEvent, WalStatus};

use crate::order::{Ask, Told};

/// What was told, and when it was heard.
#[derive(Debug, Clone)]
pub struct Heard {
    pub at: Instant,
    pub told: Told,
}

/// A running process. Dropping it kills it.
pub struct Hosted {
    child: Child,
    stdin: Option<ChildStdin>,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// Answers that were waited for so far.
    place: usize,
    log: std::path::PathBuf,
}

impl Hosted {
    /// Starts a role on an order. `environment` is for what stands between it and the system's clock.
    pub fn start(
        program: &Path,
        role: &str,
        order: &Path,
        environment: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let log = order.with_extension("log");
        let mut command = Command::new(program);
        command
            .arg(role)
            .arg(order)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::options().append(true).create(true).open(&log)?);
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let stdout = child.stdout.take().context("its output is a pipe")?;
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let hearing = Arc::clone(&heard);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                if let Ok(told) = serde_json::from_str(&line) {
                    let at = Instant::now();
                    lock(&hearing).push(Heard { at, told });
                }
            }
        });
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            heard,
            place: 0,
            log,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything heard so far.
    pub fn heard(&self) -> Vec<Heard> {
        lock(&self.heard).clone()
    }

    /// The newest status.
    pub fn status(&self) -> Option<WalStatus> {
        let heard = lock(&self.heard);
        heard.iter().rev().find_map(|heard| match &heard.told {
            Told::Status { status } => Some(status.clone()),
            _ => None,
        })
    }

    /// Events since an instant.
    pub fn events(&self, since: Instant) -> Vec<(Instant, WalEvent)> {
        let heard = lock(&self.heard);
        let later = heard.iter().filter(|heard| heard.at >= since);
        let events = later.filter_map(|heard| match &heard.told {
            Told::Event { event } => Some((heard.at, event.clone())),
            _ => None,
        });
        events.collect()
    }

    pub fn ask(&mut self, ask: &Ask) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("it was killed")?;
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        stdin.write_all(&line)?;
        stdin.flush()?;
        Ok(())
    }

    /// Waits for the next line that is an answer; events and states are none.
    pub async fn answer(&mut self, patience: Duration) -> anyhow::Result<Told> {
        let begun = Instant::now();
        loop {
            {
                let heard = lock(&self.heard);
                let later = heard.iter().enumerate().skip(self.place);
                let found = later.filter(|(_, heard)| {
                    !matches!(heard.told, Told::Event { .. } | Told::Status { .. })
                });
                if let Some((place, heard)) =
                    found.map(|(place, heard)| (place, heard.clone())).next()
                {
                    self.place = place + 1;
                    return Ok(heard.told);
                }
            }
            let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
            if let Some(status) = self.child.try_wait()? {
                // What it said last may still be on its way.
                if begun.elapsed() > Duration::from_millis(300) {
                    bail!("the process ended ({status}): {}", log().trim_end());
                }
            }
            if begun.elapsed() > patience {
                let last = lock(&self.heard).last().cloned();
                bail!("no answer within {patience:?}, behind {last:?}: {}", log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until something was told.
    pub async fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut is_it: impl FnMut(&Heard) -> bool,
    ) -> anyhow::Result<Heard> {
        let begun = Instant::now();
        loop {
            if let Some(heard) = lock(&self.heard).iter().find(|heard| is_it(heard)) {
                return Ok(heard.clone());
            }
            if begun.elapsed() > patience {
                bail!(
                    "{what} was not told within {patience:?}; it says {:?}",
                    self.status()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL; it is gone when this returns.
    pub fn kill(&mut self) {
        self.stdin = None;
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// SIGKILL, sent and not waited for.
    pub fn kill_now(&mut self) {
        drop(self.child.kill());
    }

    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(heard: &Mutex<Vec<Heard>>) -> MutexGuard<'_, Vec<Heard>> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}
