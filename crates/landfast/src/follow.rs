//! Staying with a rollout: a live view on a terminal, plain lines elsewhere, until it is where it was to be.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::anyhow;
use landfast_api::{Level, Rollout, RolloutState};
use landfast_client::{Client, Error, Followed};
use landfast_types::Scope;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{interval, timeout},
};

use crate::{
    args::Wait,
    clock::now,
    exit::{Exit, Failure},
    out::Printer,
    table, view,
};

/// How often the live view is drawn again: figures and times move without events.
const REDRAW: Duration = Duration::from_millis(500);
/// How often a rollout is looked at where nothing is drawn.
const LOOK: Duration = Duration::from_secs(2);

/// What a command wants of the rollout it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// The new release: being taken back is a failure.
    Forward,
    /// The old one: being taken back is what was asked.
    Back,
}

/// Follows a rollout until it is settled (or ended, with [`Wait::Seal`]), and says how.
pub(crate) async fn follow(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    rollout: Rollout,
    wait: Wait,
    want: Want,
) -> Result<Exit, Failure> {
    let mut screen = Screen::new(*printer);
    let result = tokio::select! {
        result = watch(&mut screen, client, scope, rollout, wait, want) => result,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            screen.leave()?;
            printer.say("detached; the rollout goes on");
            printer.say(&format!(
                "{} `landfast status --follow` comes back to it, `landfast abort` takes it back",
                printer.paint_error.good("hint:"),
            ));
            return Ok(Exit::Detached);
        }
    };
    screen.leave()?;
    ended(printer, &result?, want)
}

/// Looks again after each event and each tick.
async fn watch(
    screen: &mut Screen,
    client: &Client,
    scope: &Scope,
    mut rollout: Rollout,
    wait: Wait,
    want: Want,
) -> Result<Rollout, Failure> {
    let (sender, mut receiver) = mpsc::channel(64);
    let mut events = client.events(Some(scope), Some(rollout.sequence));
    // Apart from the loop below, which gives up what it waits for at each tick. Ends with the set.
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let followed = events.next().await;
            let over = followed.is_err();
            if sender.send(followed).await.is_err() || over {
                return;
            }
        }
    });
    let id = rollout.id;
    let mut tick = interval(if screen.printer.live { REDRAW } else { LOOK });
    loop {
        screen.show(&rollout)?;
        if is_over(&rollout, wait, want) {
            return Ok(rollout);
        }
        tokio::select! {
            followed = receiver.recv() => match followed {
                Some(Ok(Followed::Event(event))) => {
                    screen.event(&event)?;
                    // What else is there already needs one look, not one each.
                    while let Ok(Ok(Followed::Event(event))) = receiver.try_recv() {
                        screen.event(&event)?;
                    }
                }
                Some(Ok(Followed::Connected)) => screen.back()?,
                Some(Ok(Followed::Lost(error))) => screen.lost(&error)?,
                Some(Err(error)) => return Err(error.into()),
                None => return Err(anyhow!("the stream of events ended").into()),
            },
            _tick = tick.tick() => {}
        }
        // While the server is away the client waits for it; the drawing goes on meanwhile.
        match timeout(LOOK, client.rollout(scope, id)).await {
            Ok(Ok(newer)) => rollout = newer,
            Ok(Err(error)) if error.is_away() => screen.lost(&error)?,
            Ok(Err(error)) => return Err(error.into()),
            Err(_elapsed) => {}
        }
    }
}

fn is_over(rollout: &Rollout, wait: Wait, want: Want) -> bool {
    match (wait, want) {
        (Wait::Start, _) => true,
        (Wait::Promotion, Want::Forward) => rollout.state.is_settled(),
        // A rollout that was promoted is still to be taken back.
        (Wait::Promotion, Want::Back) => {
            rollout.state.is_ended() || rollout.state == RolloutState::Parked
        }
        (Wait::Seal, _) => rollout.state.is_ended() || rollout.state == RolloutState::Parked,
    }
}

/// Prints how it ended and chooses the exit code.
fn ended(printer: &Printer, rollout: &Rollout, want: Want) -> Result<Exit, Failure> {
    if printer.json {
        printer.json(rollout)?;
    } else {
        printer.data(&view::outcome(rollout, now(), printer.paint).join("\n"))?;
    }
    let fail = |exit, text: String, hint: &str| Err(Failure::new(exit, anyhow!(text)).hint(hint));
    let logs = match rollout
        .cause
        .as_ref()
        .and_then(|cause| cause.instance.as_ref())
    {
        Some(instance) => format!("`landfast logs {instance}` shows what it wrote"),
        None => {
            "`landfast history` shows what it cost; `landfast logs` what instances wrote".to_owned()
        }
    };
    let cause = view::cause(rollout);
    match rollout.state {
        RolloutState::RolledBack if want == Want::Back => Ok(Exit::Done),
        RolloutState::RolledBack => fail(Exit::RolledBack, format!("rolled back: {cause}"), &logs),
        RolloutState::Parked => fail(
            Exit::Parked,
            format!("parked: {cause}"),
            "`landfast promote` goes on, `landfast abort` takes it back",
        ),
        RolloutState::Refused => fail(
            Exit::GateRefused,
            format!("refused: {cause}"),
            "`landfast plan` shows what the gates see; nothing was changed",
        ),
        RolloutState::Superseded => fail(
            Exit::Superseded,
            "superseded by a newer rollout".to_owned(),
            "`landfast status --follow` watches the newer one",
        ),
        RolloutState::Sealed | RolloutState::Promoted if want == Want::Back => fail(
            Exit::NotNow,
            format!("release {} was not taken back", rollout.to),
            "`landfast rollback` goes to the release before",
        ),
        RolloutState::Waiting
        | RolloutState::Moving
        | RolloutState::Promoted
        | RolloutState::RollingBack
        | RolloutState::Sealed
        | RolloutState::Unknown => Ok(Exit::Done),
    }
}

/// What is shown meanwhile: on a terminal drawn in place, elsewhere as lines.
struct Screen {
    printer: Printer,
    /// Lines of the last drawing.
    drawn: usize,
    /// The last phase that was printed as a line.
    phase: String,
    away: bool,
}

impl Screen {
    fn new(printer: Printer) -> Self {
        Self {
            printer,
            drawn: 0,
            phase: String::new(),
            away: false,
        }
    }

    fn show(&mut self, rollout: &Rollout) -> io::Result<()> {
        if self.printer.json {
            return Ok(());
        }
        if !self.printer.live {
            let phase = format!("{}: {}", rollout.state.as_str(), rollout.phase);
            if phase != self.phase {
                self.line(&phase);
                self.phase = phase;
            }
            return Ok(());
        }
        let (height, width) = size();
        let mut lines = view::live(rollout, now(), self.printer.paint_error);
        lines.push(String::new());
        lines.push(
            self.printer
                .paint_error
                .dim("Ctrl-C detaches; the rollout goes on"),
        );
        if self.away {
            lines.push(
                self.printer
                    .paint_error
                    .warn("the server is away; instances and traffic are not touched"),
            );
        }
        lines.truncate(height.saturating_sub(1).max(3));
        // Over the last drawing, in one write, each line's rest cleared: no flicker.
        let mut text = self.home();
        for line in &lines {
            text.push_str(&view::cut(line, width));
            text.push_str("\u{1b}[K\n");
        }
        text.push_str("\u{1b}[J");
        self.drawn = lines.len();
        io::stderr().lock().write_all(text.as_bytes())
    }

    /// Back to the first line of the last drawing.
    fn home(&self) -> String {
        if self.drawn > 0 {
            format!("\r\u{1b}[{}A", self.drawn)
        } else {
            String::new()
        }
    }

    /// Clears the drawing: what comes next stands in its place.
    fn leave(&mut self) -> io::Result<()> {
        if self.drawn == 0 {
            return Ok(());
        }
        let text = self.home() + "\u{1b}[J";
        self.drawn = 0;
        io::stderr().lock().write_all(text.as_bytes())
    }

    fn event(&mut self, event: &landfast_api::Event) -> io::Result<()> {
        let paint = self.printer.paint_error;
        match event.level {
            // The drawing shows these.
            Level::Info | Level::Unknown if self.printer.live => Ok(()),
            Level::Info | Level::Unknown => {
                self.line(&event.text);
                Ok(())
            }
            Level::Warning => self.above(&format!("{} {}", paint.warn("warning:"), event.text)),
            Level::Error => self.above(&format!("{} {}", paint.bad("failed:"), event.text)),
        }
    }

    fn lost(&mut self, error: &Error) -> io::Result<()> {
        if std::mem::replace(&mut self.away, true) || self.printer.live {
            return Ok(());
        }
        self.line(&format!("{error}; trying again"));
        Ok(())
    }

    fn back(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.away) && !self.printer.live {
            self.line("the server is back");
        }
        Ok(())
    }

    /// A line that stays, above the drawing.
    fn above(&mut self, text: &str) -> io::Result<()> {
        self.leave()?;
        self.line(text);
        Ok(())
    }

    fn line(&self, text: &str) {
        let at = table::instant(landfast_api::At(now()));
        let time = at.split_once(' ').map_or(at.as_str(), |(_, time)| time);
        self.printer.say(&format!("{time} {text}"));
    }
}

/// Lines and columns of the terminal.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 => (usize::from(size.ws_row), usize::from(size.ws_col)),
        Ok(_) | Err(_) => (24, 80),
    }
}
