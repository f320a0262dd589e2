//! What is measured of a store, and how statements are shown without the values in them.

use std::time::Duration;

use landfast_spec::Engine;

/// How a store is at one moment. What an engine does not tell is zero or empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Measures {
    pub connections: u64,
    pub connections_max: u64,
    /// Connections that do something just now.
    pub active: u64,
    /// Connections that hold a transaction open and do nothing.
    pub idle_in_transaction: u64,
    /// What its data takes, in bytes: on disk, or in memory for Redis.
    pub size_bytes: u64,
    /// The most it may take, in bytes; zero where nothing bounds it.
    pub size_bytes_max: u64,
    /// Statements that run for longer than [`SLOW_FROM`], longest first.
    pub slow: Vec<Statement>,
    /// Statements that wait for a lock, longest first.
    pub waiting: Vec<Waiting>,
    /// Since the server started: reads that memory answered, and those it did not.
    pub hits: u64,
    pub misses: u64,
    /// Since the server started.
    pub commits: u64,
    pub rollbacks: u64,
    pub deadlocks: u64,
    /// Keys thrown away because memory was used up.
    pub evicted: u64,
    pub replicas: Vec<Replica>,
    /// The statements that took most time in all, where the server keeps count.
    pub costly: Vec<Costly>,
}

/// A statement slower than this is told of (`requirements.md`, D7).
pub const SLOW_FROM: Duration = Duration::from_millis(200);
/// So many of each kind are told.
pub const TOLD_MAX: usize = 10;

/// A statement that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub login: String,
    pub millis: u64,
    /// Without the values in it.
    pub text: String,
}

/// A statement that waits for a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub login: String,
    pub millis: u64,
    pub text: String,
    /// The logins of those that hold it up.
    pub behind: Vec<String>,
}

/// A copy that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub name: String,
    pub state: String,
    /// How far it is behind, in bytes of the log.
    pub lag_bytes: u64,
}

/// A kind of statement, over the life of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Costly {
    pub text: String,
    pub calls: u64,
    pub mean_micros: u64,
}

const TEXT_CHARS_MAX: usize = 300;

/// A statement on one line, without comments, and with `?` in the place of numbers and texts: what people look for is its form, and the
/// values may be anybody's. Where the session's settings decide how a text ends (`'C:\'`), all that follows is hidden.
///
/// Texts are read as the [PostgreSQL](https://www.postgresql.org/docs/current/sql-syntax-lexical.html) and
/// [MariaDB](https://mariadb.com/docs/server/reference/sql-structure/sql-language-structure/string-literals) manuals have them.
pub fn without_values(statement: &str, engine: Engine) -> String {
    let is_postgres = engine == Engine::Postgres;
    let mut shown = Shown::default();
    let mut chars = statement.chars().peekable();
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        match c {
            '\'' | '"' if c == '\'' || !is_postgres => {
                let escapes = is_postgres && shown.ends_with_escape_mark();
                if !skip_text(&mut chars, c, escapes) {
                    shown.push('?');
                    return shown.cut();
                }
                shown.push('?');
            }
            // A name is shown as it is; a quote in it begins no text.
            '"' | '`' if c == '"' || !is_postgres => {
                shown.push(c);
                for inner in chars.by_ref() {
                    shown.push(inner);
                    if inner == c {
                        break;
                    }
                }
            }
            '-' if next == Some('-') && begins_comment(&chars, is_postgres) => {
                skip_line(&mut chars);
                shown.push(' ');
            }
            '#' if !is_postgres => {
                skip_line(&mut chars);
                shown.push(' ');
            }
            '/' if next == Some('*') => {
                skip_comment(&mut chars, is_postgres);
                shown.push(' ');
            }
            '$' if is_postgres
                && !is_word(shown.last)
                && next.is_some_and(|next| !next.is_ascii_digit()) =>
            {
                skip_dollar_quoted(&mut chars);
                shown.push('?');
            }
            digit if digit.is_ascii_digit() && !is_word(shown.last) && shown.last != '$' => {
                while chars
                    .next_if(|next| next.is_ascii_alphanumeric() || *next == '.')
                    .is_some()
                {}
                shown.push('?');
            }
            other => shown.push(other),
        }
        if shown.count > TEXT_CHARS_MAX {
            break;
        }
    }
    shown.text.trim().to_owned()
}

/// What is shown so far.
struct Shown {
    text: String,
    count: usize,
    last: char,
}

impl Default for Shown {
    fn default() -> Self {
        Self {
            text: String::new(),
            count: 0,
            last: ' ',
        }
    }
}

impl Shown {
    fn push(&mut self, c: char) {
        let c = if c.is_whitespace() { ' ' } else { c };
        if self.count > TEXT_CHARS_MAX || (c == ' ' && self.last == ' ') {
            return;
        }
        self.text.push(if self.count == TEXT_CHARS_MAX {
            '…'
        } else {
            c
        });
        self.count += 1;
        self.last = c;
    }

    fn cut(mut self) -> String {
        self.text.push('…');
        self.text
    }

    /// Whether it ends with the `E` of `E'…'`.
    fn ends_with_escape_mark(&self) -> bool {
        let mut before = self.text.chars().rev();
        let is_mark = before.next().is_some_and(|c| c.eq_ignore_ascii_case(&'e'));
        is_mark && !before.next().is_some_and(is_word)
    }
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Skips a text whose first quote was read; a doubled quote in it is one. False where nobody can tell how it ends.
fn skip_text(chars: &mut Chars<'_>, quote: char, escapes: bool) -> bool {
    while let Some(c) = chars.next() {
        if c == '\\' {
            let next = chars.peek().copied();
            if next == Some(quote) && !escapes {
                // An escape by default in MariaDB, none in PostgreSQL, and the other way round by a setting of the session.
                return false;
            }
            if next == Some(quote) || next == Some('\\') {
                chars.next();
            }
        } else if c == quote && chars.next_if_eq(&quote).is_none() {
            return true;
        }
    }
    // What never ends hides all that follows.
    true
}

/// Whether `--`, whose first `-` was read, begins a comment: in MariaDB only with a blank behind it.
fn begins_comment(chars: &Chars<'_>, is_postgres: bool) -> bool {
    let after = chars.clone().nth(1);
    is_postgres || after.is_none_or(|after| after.is_whitespace() || after.is_control())
}

fn skip_line(chars: &mut Chars<'_>) {
    let _rest = chars.by_ref().find(|c| *c == '\n');
}

/// Skips `/* … */`, whose `/` was read. In PostgreSQL one may hold others.
fn skip_comment(chars: &mut Chars<'_>, nests: bool) {
    chars.next();
    let mut depth = 1;
    while let Some(c) = chars.next() {
        if c == '*' && chars.next_if_eq(&'/').is_some() {
            depth -= 1;
            if depth == 0 {
                return;
            }
        } else if nests && c == '/' && chars.next_if_eq(&'*').is_some() {
            depth += 1;
        }
    }
}

/// Skips `$tag$ … $tag$`, whose first `$` was read.
fn skip_dollar_quoted(chars: &mut Chars<'_>) {
    let mut tag = String::from("$");
    while let Some(c) = chars.next_if(|c| is_word(*c)) {
        tag.push(c);
    }
    if chars.next_if_eq(&'$').is_none() {
        return;
    }
    tag.push('$');
    let mut end = String::new();
    for c in chars.by_ref() {
        end.push(c);
        if end.ends_with(&tag) {
            return;
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_shown_without_their_values() {
        use Engine::{Mariadb, Postgres};
        for (engine, statement, shown) in [
            (
                Postgres,
                "SELECT * FROM t1\n  WHERE a = 'x''y' AND b=12.5e3",
                "SELECT * FROM t1 WHERE a = ? AND b=?",
            ),
            (Postgres, r"SELECT $1, E'it\'s', 5", "SELECT $1, E?, ?"),
            (
                Postgres,
                "DO $x$ secret 'in' here $x$ LANGUAGE plpgsql",
                "DO ? LANGUAGE plpgsql",
            ),
            (
                Postgres,
                "ALTER ROLE a PASSWORD 'never ends",
                "ALTER ROLE a PASSWORD ?",
            ),
            (
                Postgres,
                r#"SELECT "it's" WHERE token = 'hunter2' AND b = 'x'"#,
                r#"SELECT "it's" WHERE token = ? AND b = ?"#,
            ),
            (
                Postgres,
                "SELECT 1 -- it's me\n/* and /* it's */ you */ WHERE token = 'hunter2'",
                "SELECT ? WHERE token = ?",
            ),
            // How it ends depends on a setting of the session, and so does what is a value.
            (
                Postgres,
                r"SELECT a = 'C:\' AND token = 'hunter2'",
                "SELECT a = ?…",
            ),
            (Mariadb, r"SELECT 'it\'s', token = 'hunter2'", "SELECT ?…"),
            (Mariadb, r"SELECT 'a\\', 'b'", "SELECT ?, ?"),
            (
                Mariadb,
                r#"SELECT `it's` FROM t WHERE token = "hunter2" AND n = "a""b""#,
                "SELECT `it's` FROM t WHERE token = ? AND n = ?",
            ),
            (
                Mariadb,
                "SELECT 5--1 # it's me\n, 'x' -- it's me\nFROM t",
                "SELECT ?--? , ? FROM t",
            ),
        ] {
            assert_eq!(without_values(statement, engine), shown, "{statement}");
        }
        let long = without_values(&"ä".repeat(1_000), Postgres);
        assert_eq!(long.chars().count(), TEXT_CHARS_MAX + 1);
    }
}
