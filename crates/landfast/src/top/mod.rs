//! `landfast top`: an environment as it moves. The screen is drawn from values that [`meter`] makes of what the
//! server says; nothing is decided here.

mod draw;
mod meter;

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::anyhow;
use landfast_api::{EnvironmentStatus, Traffic};
use landfast_client::Client;
use landfast_types::Scope;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::{sync::mpsc, time::sleep};

use self::meter::{Meter, Reading};
use crate::{
    args::{Global, Top},
    clock::now,
    context::scope,
    exit::{Exit, Failure},
    out::Printer,
};

/// How often the keyboard thread looks whether it is still wanted.
const KEY_WAIT: Duration = Duration::from_millis(200);

/// Shows the environment until `q`; one reading where there is no terminal or JSON was asked for.
pub(crate) async fn top(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &Top,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    let interval = Duration::from_millis(arguments.interval_ms.clamp(200, 60_000));
    if printer.json || arguments.once || !io::stdout().is_terminal() {
        return once(printer, client, &scope, interval).await;
    }
    let mut terminal = ratatui::try_init().map_err(|error| {
        let failure = Failure::new(
            Exit::Failed,
            anyhow!("the terminal cannot be drawn on: {error}"),
        );
        failure.hint("`landfast top --once` prints one reading")
    })?;
    let result = watch(
        &mut terminal,
        client,
        &scope,
        interval,
        printer.paint.colour(),
    )
    .await;
    ratatui::try_restore()?;
    result.map(|()| Exit::Done)
}

async fn look(client: &Client, scope: &Scope) -> Result<(EnvironmentStatus, Traffic), Failure> {
    Ok((client.status(scope).await?, client.traffic().await?))
}

async fn once(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    interval: Duration,
) -> Result<Exit, Failure> {
    let mut meter = Meter::default();
    let (status, traffic) = look(client, scope).await?;
    meter.take(&status, &traffic);
    sleep(interval).await;
    let (status, traffic) = look(client, scope).await?;
    let reading = meter.take(&status, &traffic);
    if printer.json {
        printer.json(&reading)?;
    } else {
        printer.data(&draw::text(&reading))?;
    }
    Ok(Exit::Done)
}

/// What is on the screen.
struct Screen {
    status: EnvironmentStatus,
    reading: Reading,
    /// Why the server could not be asked, since when this is old.
    away: Option<String>,
    colour: bool,
}

async fn watch(
    terminal: &mut DefaultTerminal,
    client: &Client,
    scope: &Scope,
    interval: Duration,
    colour: bool,
) -> Result<(), Failure> {
    let mut keys = keys();
    let mut meter = Meter::default();
    let (status, traffic) = look(client, scope).await?;
    let reading = meter.take(&status, &traffic);
    let mut screen = Screen {
        status,
        reading,
        away: None,
        colour,
    };
    let mut tick = tokio::time::interval(interval);
    tick.reset();
    loop {
        terminal.draw(|frame| draw::screen(frame, &screen, now()))?;
        tokio::select! {
            key = keys.recv() => match key {
                Some(Key::Quit) | None => return Ok(()),
                Some(Key::Redraw) => {}
            },
            _tick = tick.tick() => match look(client, scope).await {
                Ok((status, traffic)) => {
                    screen.reading = meter.take(&status, &traffic);
                    screen.status = status;
                    screen.away = None;
                }
                // A server that restarts is waited for; traffic goes on without it.
                Err(failure) => screen.away = Some(failure.to_string()),
            },
        }
    }
}

enum Key {
    Quit,
    Redraw,
}

/// Reads the keyboard on a thread of its own, which ends with the channel.
fn keys() -> mpsc::Receiver<Key> {
    let (sender, receiver) = mpsc::channel(8);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let key = match event::poll(KEY_WAIT) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let key = match key {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    let interrupt = key.modifiers.contains(KeyModifiers::CONTROL)
                        && matches!(key.code, KeyCode::Char('c' | 'd'));
                    if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                        Key::Quit
                    } else {
                        continue;
                    }
                }
                Ok(Event::Resize(..)) => Key::Redraw,
                Ok(_) => continue,
                // Without a keyboard there is no way to end it.
                Err(_gone) => Key::Quit,
            };
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    receiver
}
