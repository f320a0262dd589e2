//! JSON lines on standard output, one write per line so that lines of threads never mix.

use std::{
    io::Write as _,
    sync::atomic::{AtomicU8, Ordering},
};

use serde_json::{Value, json};

use crate::clock;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "debug" | "trace" => Some(Self::Debug),
            "info" => Some(Self::Info),
            "warn" => Some(Self::Warn),
            "error" => Some(Self::Error),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

pub(crate) fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Writes one line with the fields of `more`, an object or null.
pub(crate) fn line(level: Level, message: &str, more: Value) {
    if (level as u8) < LEVEL.load(Ordering::Relaxed) {
        return;
    }
    let mut entry =
        json!({"time": clock::now().to_string(), "level": level.name(), "message": message});
    if let (Value::Object(entry), Value::Object(more)) = (&mut entry, more) {
        entry.extend(more);
    }
    raw(&entry);
}

/// Writes one JSON value as a line. A closed standard output is no reason to stop serving.
pub(crate) fn raw(value: &Value) {
    let text = format!("{value}\n");
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
}

/// Says something to a person, on standard error.
pub(crate) fn complain(message: &str) {
    drop(
        std::io::stderr()
            .lock()
            .write_all(format!("pms: {message}\n").as_bytes()),
    );
}
