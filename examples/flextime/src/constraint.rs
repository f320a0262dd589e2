//! Constraints: what they say, and what is allowed in them. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::problem::FieldError;

/// A rule a schedule is held against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Constraint {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub sport: String,
    pub name: String,
    pub version: String,
    pub priority: Priority,
    pub configuration: Value,
    pub metadata: Value,
    pub active: bool,
    pub created_at: jiff::Timestamp,
    pub updated_at: jiff::Timestamp,
}

/// What a client sends to create or replace one.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Draft {
    pub id: Option<String>,
    #[serde(rename = "type")]
    pub kind: String,
    pub sport: String,
    pub name: String,
    #[serde(default = "first_version")]
    pub version: String,
    #[serde(default)]
    pub priority: Priority,
    #[serde(default = "object")]
    pub configuration: Value,
    #[serde(default = "object")]
    pub metadata: Value,
    #[serde(default = "yes")]
    pub active: bool,
}

fn first_version() -> String {
    "1.0.0".to_owned()
}

fn object() -> Value {
    Value::Object(Map::new())
}

const fn yes() -> bool {
    true
}

/// How much a violation weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Priority {
    Critical,
    High,
    #[default]
    Medium,
    Low,
}

impl Priority {
    pub(crate) const fn weight(self) -> f64 {
        match self {
            Self::Critical => 8.0,
            Self::High => 4.0,
            Self::Medium => 2.0,
            Self::Low => 1.0,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Critical, Self::High, Self::Medium, Self::Low]
            .into_iter()
            .find(|p| p.name() == text)
    }
}

/// A constraint's type with its configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Rule {
    /// Days without a game between two games of a team.
    RestDays { days_min: i64 },
    /// Two games in one venue at a time, with minutes to clear it.
    VenueConflict { buffer_minutes: i64 },
    /// Kilometres between consecutive games of a team, and over all of them.
    TravelDistance {
        leg_km_max: f64,
        total_km_max: Option<f64>,
    },
    /// Games of a team on consecutive days.
    BackToBack { consecutive_max: i64 },
}

/// The types there are.
pub(crate) const KINDS: [&str; 4] = [
    "rest-days",
    "venue-conflict",
    "travel-distance",
    "back-to-back",
];

impl Rule {
    /// Reads the configuration of a type; names every problem in it.
    pub(crate) fn read(kind: &str, configuration: &Value) -> Result<Self, Vec<FieldError>> {
        let Value::Object(fields) = configuration else {
            return Err(vec![FieldError::new("/configuration", "must be an object")]);
        };
        let mut reader = Configuration {
            fields,
            known: Vec::new(),
            errors: Vec::new(),
        };
        let rule = match kind {
            "rest-days" => Self::RestDays {
                days_min: reader.whole("min_days", 1, 0..=60),
            },
            "venue-conflict" => Self::VenueConflict {
                buffer_minutes: reader.whole("buffer_minutes", 0, 0..=1440),
            },
            "travel-distance" => Self::TravelDistance {
                leg_km_max: reader.number("max_km", 21_000.0).unwrap_or(21_000.0),
                total_km_max: reader.number("max_total_km", 1e7),
            },
            "back-to-back" => Self::BackToBack {
                consecutive_max: reader.whole("max_consecutive", 2, 1..=60),
            },
            _ => {
                let detail = format!("must be one of {}", KINDS.join(", "));
                return Err(vec![FieldError::new("/type", detail)]);
            }
        };
        reader.refuse_unknown();
        match reader.errors.is_empty() {
            true => Ok(rule),
            false => Err(reader.errors),
        }
    }
}

struct Configuration<'a> {
    fields: &'a Map<String, Value>,
    known: Vec<&'static str>,
    errors: Vec<FieldError>,
}

impl Configuration<'_> {
    fn whole(
        &mut self,
        name: &'static str,
        default: i64,
        range: std::ops::RangeInclusive<i64>,
    ) -> i64 {
        self.known.push(name);
        match self.fields.get(name).map(Value::as_i64) {
            None => default,
            Some(Some(value)) if range.contains(&value) => value,
            Some(_) => {
                let detail = format!(
                    "must be a whole number from {} to {}",
                    range.start(),
                    range.end()
                );
                self.errors
                    .push(FieldError::new(format!("/configuration/{name}"), detail));
                default
            }
        }
    }

    fn number(&mut self, name: &'static str, max: f64) -> Option<f64> {
        self.known.push(name);
        let value = self.fields.get(name)?;
        let number = value.as_f64().filter(|number| (0.0..=max).contains(number));
        if number.is_none() {
            let detail = format!("must be a number from 0 to {max}");
            self.errors
                .push(FieldError::new(format!("/configuration/{name}"), detail));
        }
        number
    }

    fn refuse_unknown(&mut self) {
        for name in self
            .fields
            .keys()
            .filter(|name| !self.known.contains(&name.as_str()))
        {
            let detail = format!("is not known here; there is {}", self.known.join(", "));
            self.errors
                .push(FieldError::new(format!("/configuration/{name}"), detail));
        }
    }
}

impl Draft {
    /// Names everything that is not allowed.
    pub(crate) fn problems(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut text = |pointer: &str, value: &str, length_max: usize| {
            if value.trim().is_empty() || value.chars().count() > length_max {
                errors.push(FieldError::new(
                    pointer,
                    format!("must have 1 to {length_max} characters"),
                ));
            }
        };
        text("/sport", &self.sport, 50);
        text("/name", &self.name, 255);
        text("/version", &self.version, 20);
        if let Some(id) = &self.id
            && !is_id(id)
        {
            errors.push(FieldError::new(
                "/id",
                "must have 1 to 255 of a-z, A-Z, 0-9, `-`, `_`, `.`, and not be `performance`",
            ));
        }
        if !self.metadata.is_object() {
            errors.push(FieldError::new("/metadata", "must be an object"));
        }
        if let Err(more) = Rule::read(&self.kind, &self.configuration) {
            errors.extend(more);
        }
        errors
    }

    /// The constraint this draft makes.
    pub(crate) fn into_constraint(
        self,
        id: String,
        created_at: jiff::Timestamp,
        now: jiff::Timestamp,
    ) -> Constraint {
        Constraint {
            id,
            kind: self.kind,
            sport: self.sport,
            name: self.name,
            version: self.version,
            priority: self.priority,
            configuration: self.configuration,
            metadata: self.metadata,
            active: self.active,
            created_at,
            updated_at: now,
        }
    }
}

/// Whether a text may be an id. `performance` is a path of its own.
fn is_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=255).contains(&text.len()) && text.chars().all(allowed) && text != "performance"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn draft(value: Value) -> Draft {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn names_every_problem_of_a_draft() {
        let bad = draft(json!({
            "id": "performance", "type": "rest-days", "sport": "", "name": "x", "version": "1",
            "configuration": {"min_days": -1, "max_days": 3}, "metadata": 7,
        }));
        let pointers: Vec<String> = bad
            .problems()
            .into_iter()
            .map(|error| error.pointer)
            .collect();
        let expected = [
            "/sport",
            "/id",
            "/metadata",
            "/configuration/min_days",
            "/configuration/max_days",
        ];
        assert_eq!(pointers, expected);
    }

    #[test]
    fn an_unknown_type_is_told_which_there_are() {
        let errors = Rule::read("luck", &json!({})).unwrap_err();
        assert!(errors[0].detail.contains("travel-distance"), "{errors:?}");
    }

    #[test]
    fn defaults_make_a_small_draft_whole() {
        let draft =
            draft(json!({"type": "back-to-back", "sport": "basketball", "name": "two in a row"}));
        assert!(draft.problems().is_empty());
        assert!(draft.active);
        assert_eq!(
            Rule::read(&draft.kind, &draft.configuration),
            Ok(Rule::BackToBack { consecutive_max: 2 })
        );
    }
}
