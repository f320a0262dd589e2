//! Values of the keys that say who may come, and how often.

use std::ops::Range;

use landfast_types::{Network, NetworkError};

use super::{Leaf, Reader};
use crate::{code::Code, diagnostic::Problem, spec::CountBySpec};

/// Units of a rate, with their milliseconds.
const RATE_UNITS: [(&str, u64); 3] = [("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
/// More a second than any host serves.
const RATE_MAX: u32 = 1_000_000;
/// Longest list of networks.
const NETWORKS_MAX: usize = 1_000;

impl Reader<'_> {
    pub(super) fn request_rate(&self) -> Option<Leaf> {
        let text = self.with_unit("/s", "a rate, text in quotes")?;
        let parts = text.split_once('/');
        let read = parts.and_then(|(number, unit)| {
            let number = number.trim().parse::<u32>().ok()?;
            let unit = unit.trim();
            let (_, per_ms) = RATE_UNITS.into_iter().find(|(known, _)| *known == unit)?;
            Some((number, per_ms))
        });
        match read {
            Some((requests @ 1..=RATE_MAX, per_ms)) => Some(Leaf::Rate { requests, per_ms }),
            Some((requests, _)) => {
                let message = format!(
                    "`{}` is {requests}; it goes from 1 to {RATE_MAX}",
                    self.name
                );
                self.refuse(self.problem(Code::OutOfRange, message))
            }
            None => {
                let message = format!("`{text}` is not a rate");
                let help =
                    "write requests per second, minute or hour: \"100/s\", \"300/m\" or \"1000/h\"";
                self.refuse(self.problem(Code::BadValue, message).help(help))
            }
        }
    }

    pub(super) fn count_by(&self) -> Option<Leaf> {
        let text = self.text()?;
        let by = match text.split_once(':') {
            None if text == "client" => Some(CountBySpec::Client),
            None if text == "route" => Some(CountBySpec::Route),
            Some(("header", name)) if is_token(name) => Some(CountBySpec::Header {
                name: name.to_ascii_lowercase(),
            }),
            Some(("cookie", name)) if is_token(name) => Some(CountBySpec::Cookie {
                name: name.to_owned(),
            }),
            Some(_) | None => None,
        };
        if let Some(by) = by {
            return Some(Leaf::CountBy(by));
        }
        let message = format!("`{}` cannot be `{text}`", self.name);
        let help = "\"client\", \"route\", \"header:X-Api-Key\" or \"cookie:session\"";
        self.refuse(self.problem(Code::UnknownWord, message).help(help))
    }

    pub(super) fn networks(&self) -> Option<Leaf> {
        let texts = self.texts("a list of networks")?;
        if texts.is_empty() || texts.len() > NETWORKS_MAX {
            let message = format!(
                "`{}` has {} networks; it has 1 to {NETWORKS_MAX}",
                self.name,
                texts.len()
            );
            let help = "leave the key out to let everybody in";
            return self.refuse(self.problem(Code::OutOfRange, message).help(help));
        }
        let (mut networks, count) = (Vec::new(), texts.len());
        for (text, span) in texts {
            let error = match text.parse::<Network>() {
                Ok(network) => {
                    networks.push(network.to_string());
                    continue;
                }
                Err(error) => error,
            };
            let text = error.to_string();
            let (message, help) = text.split_once("; ").unwrap_or((&text, ""));
            let help = match &error {
                NetworkError::HostBits { network, .. } => {
                    Some(format!("write \"{network}\", or the address alone"))
                }
                NetworkError::Form(_) => Some(help.to_owned()),
                NetworkError::Prefix { .. } => None,
            };
            let problem = Problem::new(Code::BadValue, span, message);
            self.sink.report(problem.help_if(help));
        }
        (networks.len() == count).then_some(Leaf::Texts(networks))
    }
}

/// Fields whose meaning ends at the next hop, that frame a message, or that only Landfast may set.
const FIELDS_OURS: [&str; 20] = [
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "true-client-ip",
    "upgrade",
    "via",
    "x-original-url",
    "x-real-ip",
    "x-request-id",
    "x-rewrite-url",
];
const FIELD_FAMILIES_OURS: [&str; 2] = ["x-forwarded-", "x-original-forwarded-"];
/// The dearest hashes that are checked: a tenth of a second or so, not minutes.
const BCRYPT_COST: std::ops::RangeInclusive<u32> = 4..=14;
const ARGON2_KIB_MAX: u32 = 128 << 10;
const ARGON2_PASSES_MAX: u32 = 16;

impl Reader<'_> {
    /// Text on one line, as the value of a header.
    pub(super) fn line(&self) -> Option<Leaf> {
        let text = self.text()?;
        if is_field_value(text) {
            return Some(Leaf::Text(text.to_owned()));
        }
        let message = format!("`{}` cannot stand in a header", self.name);
        let help = "one line of printable ASCII, without blanks around it";
        self.refuse(self.problem(Code::BadValue, message).help(help))
    }

    pub(super) fn field_names(&self) -> Option<Leaf> {
        let texts = self.texts("a list of names of headers")?;
        let mut fine = true;
        for (text, span) in &texts {
            if let Some(problem) = field_problem(text, span.clone(), false) {
                self.sink.report(problem);
                fine = false;
            }
        }
        let names = texts.into_iter().map(|(text, _)| text.to_ascii_lowercase());
        fine.then(|| Leaf::Texts(names.collect()))
    }

    pub(super) fn methods(&self) -> Option<Leaf> {
        self.each("a list of methods", |text| {
            let is_method = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase());
            let help = format!("write \"{}\"", text.to_ascii_uppercase());
            is_method.then_some(()).ok_or(("a method", help))
        })
    }

    pub(super) fn origins(&self) -> Option<Leaf> {
        self.each("a list of origins", |text| {
            let help = "\"https://app.example.com\", \"https://*.example.com\" or \"*\"";
            let fine = is_origin(text).then_some(());
            fine.ok_or(("an origin", help.to_owned()))
        })
    }

    pub(super) fn password_hashes(&self) -> Option<Leaf> {
        self.each("a list of users", |text| match user_problem(text) {
            None => Ok(()),
            Some(help) => Err(("`name:hash` with a bcrypt or Argon2 hash", help)),
        })
    }

    /// A list of texts of one form. What is wrong is not repeated: it may be a password.
    fn each(
        &self,
        wanted: &str,
        check: impl Fn(&str) -> Result<(), (&'static str, String)>,
    ) -> Option<Leaf> {
        let texts = self.texts(wanted)?;
        if texts.is_empty() {
            let message = format!("`{}` is empty", self.name);
            return self.refuse(self.problem(Code::BadValue, message));
        }
        let mut fine = true;
        for (text, span) in &texts {
            if let Err((what, help)) = check(text) {
                let message = format!("this is not {what}");
                let problem = Problem::new(Code::BadValue, span.clone(), message);
                self.sink.report(problem.help(help));
                fine = false;
            }
        }
        fine.then(|| Leaf::Texts(texts.into_iter().map(|(text, _)| text).collect()))
    }
}

/// What is wrong with the name of a header that a rule is to touch.
pub(crate) fn field_problem(name: &str, span: Range<usize>, is_set: bool) -> Option<Problem> {
    let lower = name.to_ascii_lowercase();
    let is_ours = FIELDS_OURS.contains(&lower.as_str())
        || FIELD_FAMILIES_OURS
            .iter()
            .any(|family| lower.starts_with(family));
    let (message, help) = if lower == "*" && !is_set {
        return None;
    } else if !is_token(name) {
        (
            format!("`{name}` is not the name of a header"),
            "letters, digits and `-`",
        )
    } else if is_ours {
        let help = "it frames the message, ends at the next hop, or says who asked";
        (format!("`{name}` is Landfast's own"), help)
    } else if name.contains('_') {
        let help =
            "write it with `-`: programs that take headers for variables cannot tell the two apart";
        (format!("`{name}` has a `_`"), help)
    } else {
        return None;
    };
    Some(Problem::new(Code::BadValue, span, message).help(help))
}

/// A value of a header (RFC 9110, 5.5), in ASCII.
pub(crate) fn is_field_value(text: &str) -> bool {
    text.trim() == text && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

/// Scheme, host and perhaps a port, as browsers send it (RFC 6454, 6.2); the first label may be a star.
fn is_origin(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let Some(("https" | "http", rest)) = text.split_once("://") else {
        return false;
    };
    let (host, port) = rest
        .split_once(':')
        .map_or((rest, None), |(host, port)| (host, Some(port)));
    host != "*" && super::is_host(host) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Why a user cannot be let in by this line; never shows any of it.
fn user_problem(text: &str) -> Option<String> {
    let make = "make one with `htpasswd -nB NAME`".to_owned();
    let Some((name, hash)) = text.split_once(':') else {
        return Some(make);
    };
    if name.is_empty() || !is_field_value(name) || !is_field_value(hash) {
        return Some(make);
    }
    let parts: Vec<&str> = hash.split('$').collect();
    match parts.as_slice() {
        ["", "2a" | "2b" | "2y", cost, rest] if rest.len() == 53 => {
            let fits = cost.parse().is_ok_and(|cost| BCRYPT_COST.contains(&cost));
            let (min, max) = (BCRYPT_COST.start(), BCRYPT_COST.end());
            (!fits).then(|| format!("its cost goes from {min} to {max}"))
        }
        ["", "argon2id" | "argon2i", "v=19", costs, _, _] => {
            let cost = |name: &str| {
                let mut costs = costs.split(',').filter_map(|cost| cost.split_once('='));
                let found = costs.find(|(known, _)| *known == name);
                found.and_then(|(_, cost)| cost.parse::<u32>().ok())
            };
            let fits = cost("m").is_some_and(|kib| kib <= ARGON2_KIB_MAX)
                && cost("t").is_some_and(|passes| (1..=ARGON2_PASSES_MAX).contains(&passes))
                && cost("p").is_some_and(|lanes| (1..=16).contains(&lanes));
            (!fits).then(|| {
                format!("it may take {ARGON2_KIB_MAX} KiB, {ARGON2_PASSES_MAX} passes and 16 lanes")
            })
        }
        _ => Some(make),
    }
}

/// A name of a header or a cookie (RFC 9110, 5.6.2).
pub(super) fn is_token(name: &str) -> bool {
    let is_sign = |byte: u8| b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || is_sign(byte))
}
