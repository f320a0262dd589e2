//! Single values: the form of each kind of value, checked without looking at any other.

mod container;
pub(crate) mod guard;

use std::{collections::BTreeSet, ops::Range, time::Duration};

use landfast_types::{
    Bytes, Cpu, Name, Percent, UnitError, format_duration, parse_bytes, parse_cpu, parse_duration,
};

use crate::{
    catalogue::{GATES_LATER, Key, Kind, closest, gate},
    code::Code,
    diagnostic::{Problem, Sink},
    schedule::{CronError, CronLine},
    spec::{CountBySpec, EnvType, Gate, Probe, Share, When, is_url},
    tree::{Node, Value},
};

/// A value that was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Leaf {
    Text(String),
    Texts(Vec<String>),
    Count(u32),
    Flag(bool),
    Duration(Duration),
    Bytes(Bytes),
    Cpu(Cpu),
    Share(Share),
    Steps(Vec<Percent>),
    Gates(Vec<Gate>),
    When(When),
    Probe(Probe),
    Scalar(Scalar),
    Rate { requests: u32, per_ms: u64 },
    CountBy(CountBySpec),
}

/// The value of a variable, with the type it was written in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    pub(crate) kind: EnvType,
}

/// Largest text that is served as a page.
const PAGE_BYTES_MAX: usize = 64 << 10;
/// Largest value of a header that is given as it stands.
const FIELD_BYTES_MAX: usize = 1 << 10;
/// Most words of a command.
const ARGV_MAX: usize = 256;

/// Reads the value of a key. Everything that is wrong with it is reported; `None` when it cannot be used.
pub(crate) fn read(key: &Key, name: &str, node: &Node, sink: &Sink) -> Option<Leaf> {
    let reader = Reader {
        kind: key.kind,
        example: key.example,
        name,
        node,
        sink,
    };
    match key.kind {
        Kind::Name => reader.name(),
        Kind::ServiceName => reader.name(),
        Kind::ServiceNames => reader.names("service"),
        Kind::StoreNames => reader.names("store"),
        Kind::SecretName => reader.secret_name(),
        Kind::SecretNames => reader.secret_names(),
        Kind::ImageName => reader.image_name(),
        Kind::VolumePlace => reader.volume_place(),
        Kind::ContainerPath => reader.container_path(),
        Kind::ContainerPaths => reader.container_paths(),
        Kind::Capabilities => reader.capabilities(),
        Kind::Version => reader.version(),
        Kind::ArtifactPath => reader.artifact_path(),
        Kind::HostPath => reader.host_path(),
        Kind::HostPaths => reader.host_paths(),
        Kind::Argv => reader.argv(),
        Kind::Port => reader.port(),
        Kind::Count { min, max } => reader.count(min, max),
        Kind::Flag => reader.flag(),
        Kind::Duration { min_ms, max_ms } => reader.duration(min_ms, max_ms),
        Kind::Size { min } => reader.size(min),
        Kind::Cpu => reader.cpu(),
        Kind::Share => reader.share(),
        Kind::Steps => reader.steps(),
        Kind::Word(words) => reader.word(words),
        Kind::Gates => reader.gates(),
        Kind::When => reader.when(),
        Kind::ScheduleUtc => reader.schedule_utc(),
        Kind::BackupPlace => reader.backup_place(),
        Kind::Schedule => reader.schedule("five fields and a time zone such as \"0 3 1 * * UTC\""),
        Kind::Probe => reader.probe(),
        Kind::Host => reader.host(),
        Kind::RoutePath => reader.route_path(),
        Kind::RequestPath => reader.request_path(),
        Kind::Url => reader.url(),
        Kind::Rate => reader.rate(),
        Kind::RequestRate => reader.request_rate(),
        Kind::CountBy => reader.count_by(),
        Kind::Networks => reader.networks(),
        Kind::Line => reader.line(),
        Kind::FieldNames => reader.field_names(),
        Kind::Methods => reader.methods(),
        Kind::Origins => reader.origins(),
        Kind::PasswordHashes => reader.password_hashes(),
        Kind::FieldValue => reader.field_value(),
        Kind::Page => reader.page(),
        Kind::Scalar => reader.scalar(),
        Kind::Table
        | Kind::Tables
        | Kind::Secrets
        | Kind::Registries
        | Kind::Build
        | Kind::BuildArguments
        | Kind::Variables
        | Kind::Volumes
        | Kind::Fields
        | Kind::Settings
        | Kind::Overlays => None,
    }
}

/// Reads a value where a person chooses the key.
pub(crate) fn read_scalar(name: &str, node: &Node, sink: &Sink) -> Option<Scalar> {
    let reader = Reader {
        kind: Kind::Scalar,
        example: "",
        name,
        node,
        sink,
    };
    let Leaf::Scalar(scalar) = reader.scalar()? else {
        return None;
    };
    Some(scalar)
}

/// Says that a value is of the wrong type.
pub(crate) fn wrong_type(name: &str, node: &Node, wanted: &str, help: Option<String>) -> Problem {
    let found = node.value.kind();
    Problem::new(
        Code::WrongType,
        node.span.clone(),
        format!("`{name}` must be {wanted}"),
    )
    .label(format!("this is {found}"))
    .help_if(help)
}

/// Says that a name is not one.
pub(crate) fn bad_name(what: &str, name: &str, span: Range<usize>) -> Option<Problem> {
    let error = Name::new(name).err()?;
    let better = name.to_lowercase().replace(['_', ' ', '.'], "-");
    let problem = Problem::new(
        Code::BadName,
        span,
        format!("this cannot name {what}: {error}"),
    );
    Some(match Name::new(&better) {
        Ok(better) => problem.help(format!("write `{better}`")),
        Err(_) => problem.help("use `a` to `z`, `0` to `9` and `-`, starting with a letter"),
    })
}

struct Reader<'a> {
    kind: Kind,
    example: &'a str,
    name: &'a str,
    node: &'a Node,
    sink: &'a Sink,
}

impl Reader<'_> {
    fn problem(&self, code: Code, message: impl Into<String>) -> Problem {
        Problem::new(code, self.node.span.clone(), message)
    }

    fn refuse<T>(&self, problem: Problem) -> Option<T> {
        self.sink.report(problem);
        None
    }

    fn wrong_type<T>(&self, wanted: &str) -> Option<T> {
        let help = (!self.example.is_empty())
            .then(|| format!("for example {} = {}", self.name, self.example));
        self.refuse(wrong_type(self.name, self.node, wanted, help))
    }

    fn text(&self) -> Option<&str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Integer(_)
            | Value::Float(_)
            | Value::Flag(_)
            | Value::Datetime
            | Value::List(_)
            | Value::Table(_) => self.wrong_type("text in quotes"),
        }
    }

    fn integer(&self, wanted: &str) -> Option<i64> {
        match &self.node.value {
            Value::Integer(Some(number)) => Some(*number),
            Value::Integer(None) => {
                let message = format!("`{}` is too large", self.name);
                self.refuse(self.problem(Code::OutOfRange, message))
            }
            Value::Text(text) if text.parse::<i64>().is_ok() => {
                let help = Some(format!("write it without quotes: {} = {text}", self.name));
                self.refuse(wrong_type(self.name, self.node, wanted, help))
            }
            Value::Text(_)
            | Value::Float(_)
            | Value::Flag(_)
            | Value::Datetime
            | Value::List(_)
            | Value::Table(_) => self.wrong_type(wanted),
        }
    }

    /// Text with a unit; a bare number is told which unit it might have meant.
    fn with_unit(&self, unit: &str, wanted: &str) -> Option<&str> {
        let number = match &self.node.value {
            Value::Integer(Some(number)) => number.to_string(),
            Value::Float(number) => number.clone(),
            Value::Text(text) => {
                let bare = !text.is_empty() && text.parse::<f64>().is_ok() && text != "0";
                if !bare || self.kind == Kind::Cpu {
                    return Some(text);
                }
                text.clone()
            }
            Value::Integer(None)
            | Value::Flag(_)
            | Value::Datetime
            | Value::List(_)
            | Value::Table(_) => return self.wrong_type(wanted),
        };
        let help = format!("write \"{number}{unit}\"");
        if self.kind == Kind::Cpu {
            return self.refuse(wrong_type(self.name, self.node, wanted, Some(help)));
        }
        let message = format!("`{}` has no unit", self.name);
        self.refuse(self.problem(Code::MissingUnit, message).help(help))
    }

    fn bad_unit<T>(&self, error: &UnitError) -> Option<T> {
        let code = match error {
            UnitError::TooLarge(_) => Code::OutOfRange,
            UnitError::Duration(_) | UnitError::Bytes(_) | UnitError::Cpu(_) => Code::BadValue,
        };
        let text = error.to_string();
        match text.split_once("; ") {
            Some((message, help)) => self.refuse(self.problem(code, message).help(help)),
            None => self.refuse(self.problem(code, text)),
        }
    }

    fn name(&self) -> Option<Leaf> {
        let text = self.text()?;
        let what = if self.kind == Kind::Name {
            "an app"
        } else {
            "a service"
        };
        match bad_name(what, text, self.node.span.clone()) {
            Some(problem) => self.refuse(problem),
            None => Some(Leaf::Text(text.to_owned())),
        }
    }

    /// The texts of a list. Elements of another type are reported one by one.
    fn texts(&self, wanted: &str) -> Option<Vec<(String, Range<usize>)>> {
        let Value::List(items) = &self.node.value else {
            let help = match &self.node.value {
                Value::Text(text) => {
                    let words = if self.kind == Kind::Argv {
                        text.split_whitespace().collect::<Vec<_>>()
                    } else {
                        vec![text.as_str()]
                    };
                    Some(format!("write {} = {words:?}", self.name))
                }
                Value::Integer(_)
                | Value::Float(_)
                | Value::Flag(_)
                | Value::Datetime
                | Value::List(_)
                | Value::Table(_) => None,
            };
            return self.refuse(wrong_type(self.name, self.node, wanted, help));
        };
        let mut texts = Vec::new();
        for item in items {
            match &item.value {
                Value::Text(text) => texts.push((text.clone(), item.span.clone())),
                Value::Integer(_)
                | Value::Float(_)
                | Value::Flag(_)
                | Value::Datetime
                | Value::List(_)
                | Value::Table(_) => {
                    let what = format!("{}, each in quotes", wanted);
                    self.sink.report(wrong_type(self.name, item, &what, None));
                }
            }
        }
        (texts.len() == items.len()).then_some(texts)
    }

    fn names(&self, what: &str) -> Option<Leaf> {
        let texts = self.texts(&format!("a list of names of {what}s"))?;
        let mut fine = true;
        for (text, span) in &texts {
            if let Some(problem) = bad_name(&format!("a {what}"), text, span.clone()) {
                self.sink.report(problem);
                fine = false;
            }
        }
        fine.then(|| Leaf::Texts(texts.into_iter().map(|(text, _)| text).collect()))
    }

    fn secret_name(&self) -> Option<Leaf> {
        let text = self.text()?;
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && text.chars().all(is_word)
        {
            return Some(Leaf::Text(text.to_owned()));
        }
        let problem = if is_url(text) {
            // An address holds a password: it is not repeated.
            let message = format!("`{}` is the name of a secret, not an address", self.name);
            let help = "`landfast secret set MAIN_DATABASE_URL`, and name it here";
            self.problem(Code::BadName, message).help(help)
        } else {
            let message = format!("`{}` cannot name a secret", self.name);
            let help = "use A to Z, 0 to 9 and `_`, not starting with a digit";
            self.problem(Code::BadName, message).help(help)
        };
        self.refuse(problem)
    }

    fn version(&self) -> Option<Leaf> {
        let written = match &self.node.value {
            Value::Integer(Some(number)) => Some(number.to_string()),
            Value::Float(number) => Some(number.clone()),
            Value::Text(_)
            | Value::Integer(None)
            | Value::Flag(_)
            | Value::Datetime
            | Value::List(_)
            | Value::Table(_) => None,
        };
        if let Some(number) = written {
            let help = Some(format!("write {} = \"{number}\"", self.name));
            return self.refuse(wrong_type(
                self.name,
                self.node,
                "a version, text in quotes",
                help,
            ));
        }
        let text = self.text()?;
        let is_number = |part: &str| {
            (1..=4).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        if text.split('.').count() <= 3 && text.split('.').all(is_number) {
            return Some(Leaf::Text(text.to_owned()));
        }
        let message = format!("`{text}` is not a version");
        let help = format!("numbers with dots, for example {}", self.example);
        self.refuse(self.problem(Code::BadValue, message).help(help))
    }

    fn path_problem(&self, text: &str) -> Option<Problem> {
        let message = if text.trim().is_empty() {
            format!("`{}` is empty", self.name)
        } else if text.contains(|c: char| c.is_control()) {
            format!("`{}` holds a control character", self.name)
        } else if text.split('/').any(|part| part == "..") {
            format!("`{}` must not hold `..`", self.name)
        } else {
            return None;
        };
        Some(self.problem(Code::BadPath, message))
    }

    fn artifact_path(&self) -> Option<Leaf> {
        let text = self.text()?;
        match self.path_problem(text) {
            Some(problem) => {
                self.refuse(problem.help("name a file or folder, from the folder of this file"))
            }
            None => Some(Leaf::Text(text.to_owned())),
        }
    }

    fn host_path(&self) -> Option<Leaf> {
        let text = self.text()?;
        self.check_host_path(text)
            .then(|| Leaf::Text(text.to_owned()))
    }

    fn host_paths(&self) -> Option<Leaf> {
        let texts = self.texts("a list of absolute paths")?;
        let texts: Vec<_> = texts.into_iter().map(|(text, _)| text).collect();
        let wrong = texts.iter().filter(|text| !self.check_host_path(text));
        (wrong.count() == 0).then_some(Leaf::Texts(texts))
    }

    fn check_host_path(&self, text: &str) -> bool {
        if let Some(problem) = self.path_problem(text) {
            self.sink.report(problem);
            return false;
        }
        if !text.starts_with('/') || text == "/" {
            let message = format!(
                "`{}` must be an absolute path on the server's host",
                self.name
            );
            let help = "it starts with `/`, and is not `/` itself";
            let problem = self.problem(Code::BadPath, message).help(help);
            self.sink.report(problem);
            return false;
        }
        true
    }

    fn argv(&self) -> Option<Leaf> {
        let words = self.texts("a list of words, never a line for a shell")?;
        let message = match words.first() {
            None => format!("`{}` is empty", self.name),
            Some((first, _)) if first.trim().is_empty() => {
                format!("`{}` names no program", self.name)
            }
            Some(_) if words.len() > ARGV_MAX => {
                format!("`{}` has more than {ARGV_MAX} words", self.name)
            }
            Some(_) if words.iter().any(|(word, _)| word.contains('\0')) => {
                format!("`{}` holds a NUL character", self.name)
            }
            Some(_) => {
                return Some(Leaf::Texts(
                    words.into_iter().map(|(word, _)| word).collect(),
                ));
            }
        };
        let help = format!("for example {} = {}", self.name, self.example);
        self.refuse(self.problem(Code::BadValue, message).help(help))
    }

    fn port(&self) -> Option<Leaf> {
        let number = self.integer("a port, a whole number")?;
        match u32::try_from(number) {
            Ok(port @ 1..=65_535) => Some(Leaf::Count(port)),
            _ => {
                let message = format!("`{}` is {number}; ports go from 1 to 65535", self.name);
                let problem = self.problem(Code::OutOfRange, message);
                self.refuse(problem.help(
                    "any port will do: the target chooses the real one and passes it as `PORT`",
                ))
            }
        }
    }

    fn count(&self, min: u32, max: u32) -> Option<Leaf> {
        let number = self.integer("a whole number")?;
        match u32::try_from(number) {
            Ok(count) if (min..=max).contains(&count) => Some(Leaf::Count(count)),
            _ => {
                let message = format!("`{}` is {number}; it goes from {min} to {max}", self.name);
                self.refuse(self.problem(Code::OutOfRange, message))
            }
        }
    }

    fn flag(&self) -> Option<Leaf> {
        match &self.node.value {
            Value::Flag(flag) => Some(Leaf::Flag(*flag)),
            Value::Text(text) if matches!(text.as_str(), "true" | "false") => {
                let help = Some(format!("write it without quotes: {} = {text}", self.name));
                self.refuse(wrong_type(self.name, self.node, "true or false", help))
            }
            Value::Text(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Datetime
            | Value::List(_)
            | Value::Table(_) => self.wrong_type("true or false"),
        }
    }

    fn duration(&self, min_ms: u64, max_ms: u64) -> Option<Leaf> {
        let text = self.with_unit("s", "a duration, text in quotes")?;
        let duration = match parse_duration(text) {
            Ok(duration) => duration,
            Err(error) => return self.bad_unit(&error),
        };
        let (min, max) = (Duration::from_millis(min_ms), Duration::from_millis(max_ms));
        if duration < min || duration > max {
            let bounds = format!(
                "it goes from {} to {}",
                format_duration(min),
                format_duration(max)
            );
            let message = format!("`{}` is {}; {bounds}", self.name, format_duration(duration));
            return self.refuse(self.problem(Code::OutOfRange, message));
        }
        // Less than a millisecond is kept nowhere.
        Some(Leaf::Duration(Duration::from_millis(
            duration.as_millis() as u64
        )))
    }

    fn size(&self, min: u64) -> Option<Leaf> {
        let text = self.with_unit("MiB", "a size, text in quotes")?;
        match parse_bytes(text) {
            Ok(bytes) if bytes.0 >= min => Some(Leaf::Bytes(bytes)),
            Ok(bytes) => {
                let message = format!("`{}` is {bytes}; it is at least {}", self.name, Bytes(min));
                self.refuse(self.problem(Code::OutOfRange, message))
            }
            Err(error) => self.bad_unit(&error),
        }
    }

    fn cpu(&self) -> Option<Leaf> {
        let text = self.with_unit("", "a share of CPU, text in quotes")?;
        match parse_cpu(text) {
            Ok(cpu) => Some(Leaf::Cpu(cpu)),
            Err(error) => self.bad_unit(&error),
        }
    }

    fn share(&self) -> Option<Leaf> {
        if let Value::Text(text) = &self.node.value
            && text.parse::<i64>().is_err()
        {
            return match Share::from_percent_text(text) {
                Some(share) => Some(Leaf::Share(share)),
                None => {
                    let message = format!("`{text}` is not a percentage");
                    let help = "write a count such as 1, or a percentage from \"0%\" to \"100%\"";
                    self.refuse(self.problem(Code::BadValue, message).help(help))
                }
            };
        }
        match self.integer("a count, or a percentage such as \"25%\"")? {
            number @ 0..=500 => Some(Leaf::Share(Share::Count(number as u32))),
            number => {
                let message = format!("`{}` is {number}; it goes from 0 to 500", self.name);
                self.refuse(self.problem(Code::OutOfRange, message))
            }
        }
    }

    fn steps(&self) -> Option<Leaf> {
        let help = "for example [5, 25, 100]";
        let Value::List(items) = &self.node.value else {
            return self.wrong_type("a list of whole percentages");
        };
        let mut steps: Vec<Percent> = Vec::new();
        let mut fine = true;
        for item in items {
            let Value::Integer(number) = &item.value else {
                let wanted = "a list of whole percentages, without quotes";
                self.sink
                    .report(wrong_type(self.name, item, wanted, Some(help.to_owned())));
                fine = false;
                continue;
            };
            let number = number.unwrap_or(i64::MAX);
            let percent = u8::try_from(number).ok().and_then(Percent::new);
            let Some(percent) = percent.filter(|percent| percent.get() > 0) else {
                let message = format!("a step goes from 1 to 100, this is {number}");
                self.sink
                    .report(Problem::new(Code::Steps, item.span.clone(), message).help(help));
                fine = false;
                continue;
            };
            if let Some(last) = steps.last().filter(|last| **last >= percent) {
                let message = format!("steps must ascend, {number} comes after {}", last.get());
                self.sink
                    .report(Problem::new(Code::Steps, item.span.clone(), message).help(help));
                fine = false;
            }
            steps.push(percent);
        }
        if fine && steps.last() != Some(&Percent::HUNDRED) {
            let message = match steps.last() {
                Some(last) => format!("the last step must be 100, this is {}", last.get()),
                None => "there are no steps".to_owned(),
            };
            let span = items
                .last()
                .map_or(&self.node.span, |item| &item.span)
                .clone();
            return self.refuse(Problem::new(Code::Steps, span, message).help(help));
        }
        fine.then_some(Leaf::Steps(steps))
    }

    fn unknown_word(&self, text: &str, span: Range<usize>, words: &[&'static str]) -> Problem {
        let message = format!("`{}` cannot be `{text}`", self.name);
        let folded = text.to_lowercase().replace([' ', '_'], "-");
        let same = words
            .iter()
            .copied()
            .find(|word| word.replace('-', "") == folded.replace('-', ""));
        let help = match same.or_else(|| closest(&folded, words.iter().copied())) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => format!("one of {}", list(words)),
        };
        Problem::new(Code::UnknownWord, span, message).help(help)
    }

    fn word(&self, words: &[&'static str]) -> Option<Leaf> {
        let text = self.text()?;
        if words.contains(&text) {
            return Some(Leaf::Text(text.to_owned()));
        }
        self.refuse(self.unknown_word(text, self.node.span.clone(), words))
    }

    /// A gate that exists; one that comes later, or is unknown, is reported.
    fn gate(&self, text: &str, span: Range<usize>) -> Option<Gate> {
        if let Some(gate) = gate(text) {
            return Some(gate);
        }
        let base = text.split_once(':').map_or(text, |(base, _)| base);
        if GATES_LATER.contains(&base) {
            let message = format!("not yet: the gate `{text}` comes with a later version");
            let help = format!("gates of this version: {}", list(Gate::WORDS));
            return self.refuse(Problem::new(Code::NotYet, span, message).help(help));
        }
        let message = format!("there is no gate `{text}`");
        let help = match closest(text, Gate::WORDS.iter().copied()) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => format!("gates of this version: {}", list(Gate::WORDS)),
        };
        self.refuse(Problem::new(Code::UnknownWord, span, message).help(help))
    }

    fn gates(&self) -> Option<Leaf> {
        let words = self.texts("a list of gates")?;
        let mut seen = BTreeSet::new();
        let mut gates = Vec::new();
        let count = words.len();
        for (word, span) in words {
            let Some(gate) = self.gate(&word, span.clone()) else {
                continue;
            };
            if seen.insert(gate) {
                gates.push(gate);
            } else {
                let message = format!("the gate `{gate}` is there twice");
                self.sink.report(
                    Problem::new(Code::BadValue, span, message).help("name each gate once"),
                );
            }
        }
        (gates.len() == count).then_some(Leaf::Gates(gates))
    }

    fn when(&self) -> Option<Leaf> {
        let text = self.text()?;
        if text == "hand" {
            return Some(Leaf::When(When::Hand));
        }
        if let Some(word) = text.strip_prefix("gate:") {
            let gate = self.gate(word, self.node.span.clone())?;
            if gate != Gate::Smoke {
                let message = format!("the gate `{gate}` runs no job");
                let problem = self.problem(Code::UnknownWord, message);
                return self.refuse(problem.help("write \"gate:smoke\""));
            }
            return Some(Leaf::When(When::Gate { gate }));
        }
        self.schedule(
            "\"gate:smoke\", \"hand\", or five fields and a time zone such as \"0 3 * * * UTC\"",
        )
    }

    fn schedule(&self, forms: &str) -> Option<Leaf> {
        let text = self.text()?;
        let help = match CronLine::new(text) {
            Ok(line) => return Some(Leaf::When(When::Cron { line })),
            Err(CronError::NoZone) => {
                let message = "the cron line has no time zone";
                let help = format!("add one: \"{text} UTC\" or \"{text} Europe/Berlin\"");
                return self.refuse(self.problem(Code::BadCron, message).help(help));
            }
            Err(CronError::Never) => "no day has this date",
            Err(CronError::Shape(_)) => forms,
        };
        let message = format!("`{}` cannot be `{text}`", self.name);
        self.refuse(self.problem(Code::BadCron, message).help(help))
    }

    fn schedule_utc(&self) -> Option<Leaf> {
        let text = self.text()?;
        match CronLine::new(&format!("{text} UTC")) {
            Ok(line) => Some(Leaf::When(When::Cron { line })),
            Err(_) => self.schedule("five fields, and a time zone where it is not UTC"),
        }
    }

    fn backup_place(&self) -> Option<Leaf> {
        let text = self.text()?;
        let Some(help) = crate::backup::place_problem(text) else {
            return Some(Leaf::Text(text.to_owned()));
        };
        let message = format!("`{text}` cannot be where backups lie");
        self.refuse(self.problem(Code::BadValue, message).help(help))
    }

    fn probe(&self) -> Option<Leaf> {
        let text = self.text()?;
        match text {
            "tcp" => return Some(Leaf::Probe(Probe::Tcp)),
            "image" => return Some(Leaf::Probe(Probe::Image)),
            "none" => return Some(Leaf::Probe(Probe::None)),
            _ => {}
        }
        if let Some(path) = text
            .strip_prefix("http:")
            .filter(|path| is_request_path(path))
        {
            return Some(Leaf::Probe(Probe::Http {
                path: path.to_owned(),
            }));
        }
        let problem = self.problem(Code::BadValue, format!("`{text}` is not a probe"));
        let path = text.split_once("://").map_or(text, |(_, rest)| {
            rest.find('/').map_or("/", |index| &rest[index..])
        });
        let help = if is_request_path(path) {
            format!("write \"http:{path}\"")
        } else {
            "\"http:/path\", \"tcp\", \"image\" or \"none\"".to_owned()
        };
        self.refuse(problem.help(help))
    }

    fn host(&self) -> Option<Leaf> {
        let text = self.text()?;
        let host = text.to_lowercase();
        if is_host(&host) {
            return Some(Leaf::Text(host));
        }
        let problem = self.problem(Code::BadHost, format!("`{text}` is not a host"));
        let bare = host
            .split_once("://")
            .map_or(host.as_str(), |(_, rest)| rest);
        let bare = bare.split(['/', ':']).next().unwrap_or_default();
        let help = if is_host(bare) {
            format!("write the host alone: \"{bare}\"")
        } else {
            "\"api.example.com\", \"*.example.com\" or \"*\"".to_owned()
        };
        self.refuse(problem.help(help))
    }

    fn route_path(&self) -> Option<Leaf> {
        let text = self.text()?;
        let foreign = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '?' | '#' | '*');
        let problem = if !text.starts_with('/') {
            self.problem(
                Code::BadPath,
                format!("`{}` must start with `/`", self.name),
            )
            .help(format!("write \"/{}\"", text.trim_end_matches('*')))
        } else if text.ends_with('*') {
            self.problem(
                Code::BadPath,
                format!("`{}` is a prefix already", self.name),
            )
            .help(format!(
                "write \"{}\"",
                trim_slash(text.trim_end_matches('*'))
            ))
        } else if let Some(found) = text.chars().find(|c| foreign(*c)) {
            self.problem(
                Code::BadPath,
                format!("`{}` must not hold {found:?}", self.name),
            )
        } else if text.split('/').any(|part| matches!(part, "." | "..")) || text.contains("//") {
            self.problem(
                Code::BadPath,
                format!("`{}` must not hold `..`, `.` or `//`", self.name),
            )
        } else {
            return Some(Leaf::Text(trim_slash(text).to_owned()));
        };
        self.refuse(problem)
    }

    fn request_path(&self) -> Option<Leaf> {
        let text = self.text()?;
        if is_request_path(text) {
            return Some(Leaf::Text(text.to_owned()));
        }
        let message = format!("`{}` must be a path that starts with `/`", self.name);
        self.refuse(
            self.problem(Code::BadPath, message)
                .help("for example \"/ready\""),
        )
    }

    fn url(&self) -> Option<Leaf> {
        let text = self.text()?;
        if is_url(text) && (text.starts_with("https://") || text.starts_with("http://")) {
            return Some(Leaf::Text(text.to_owned()));
        }
        let message = format!(
            "`{}` must be an address that starts with `https://` or `http://`",
            self.name
        );
        self.refuse(self.problem(Code::BadValue, message))
    }

    fn rate(&self) -> Option<Leaf> {
        let text = self.with_unit("/s", "a rate, text in quotes")?;
        let number = text
            .strip_suffix("/s")
            .and_then(|number| number.trim().parse::<u32>().ok());
        match number {
            Some(rate @ 1..=1_000) => Some(Leaf::Count(rate)),
            Some(rate) => {
                let message = format!("`{}` is {rate}/s; it goes from 1/s to 1000/s", self.name);
                self.refuse(self.problem(Code::OutOfRange, message))
            }
            None => {
                let message = format!("`{text}` is not a rate");
                self.refuse(
                    self.problem(Code::BadValue, message)
                        .help("write requests per second: \"5/s\""),
                )
            }
        }
    }

    fn page(&self) -> Option<Leaf> {
        let text = self.text()?;
        if text.len() > PAGE_BYTES_MAX {
            let message = format!(
                "`{}` has {} bytes; it has at most {PAGE_BYTES_MAX}",
                self.name,
                text.len()
            );
            return self.refuse(self.problem(Code::OutOfRange, message));
        }
        let is_path = !text.contains(char::is_whitespace) && text.ends_with(".html");
        if is_path {
            let message = format!("`{}` is the page itself, not a path", self.name);
            let help = "put the HTML between \"\"\" and \"\"\"";
            return self.refuse(self.problem(Code::BadValue, message).help(help));
        }
        Some(Leaf::Text(text.to_owned()))
    }

    fn field_value(&self) -> Option<Leaf> {
        let text = self.text()?;
        let is_plain = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !is_plain || text.is_empty() || text.trim() != text || text.len() > FIELD_BYTES_MAX {
            let message = format!("`{}` cannot be the value of a header", self.name);
            let help =
                format!("plain ASCII without blanks at its ends, at most {FIELD_BYTES_MAX} bytes");
            return self.refuse(self.problem(Code::BadValue, message).help(help));
        }
        Some(Leaf::Text(text.to_owned()))
    }

    fn scalar(&self) -> Option<Leaf> {
        let (text, kind) = match &self.node.value {
            Value::Text(text) => (text.clone(), EnvType::String),
            Value::Integer(Some(number)) => (number.to_string(), EnvType::Integer),
            Value::Float(number) => (number.clone(), EnvType::Number),
            Value::Flag(flag) => (flag.to_string(), EnvType::Boolean),
            Value::Integer(None) | Value::Datetime | Value::List(_) | Value::Table(_) => {
                return self.refuse(wrong_type(
                    self.name,
                    self.node,
                    "text, a number, true or false",
                    None,
                ));
            }
        };
        if text.contains('\0') {
            let message = format!("`{}` holds a NUL character", self.name);
            return self.refuse(self.problem(Code::BadValue, message));
        }
        Some(Leaf::Scalar(Scalar { text, kind }))
    }
}

/// `"a", "b" or "c"`.
fn list(words: &[&str]) -> String {
    let quoted = words
        .iter()
        .map(|word| format!("\"{word}\""))
        .collect::<Vec<_>>();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.join(""),
    }
}

fn trim_slash(path: &str) -> &str {
    match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    }
}

fn is_request_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.starts_with("//")
        && path.chars().all(|c| c.is_ascii_graphic() && c != '#')
}

fn is_host(host: &str) -> bool {
    if host == "*" {
        return true;
    }
    let domain = host.strip_prefix("*.").unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    domain.len() <= 253 && domain.split('.').all(is_label)
}
