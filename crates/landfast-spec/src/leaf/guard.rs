//! Values of the keys that say who may come, and how often.

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

/// A name of a header or a cookie (RFC 9110, 5.6.2).
pub(super) fn is_token(name: &str) -> bool {
    let is_sign = |byte: u8| b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || is_sign(byte))
}
