//! What a statement of PostgreSQL changes beyond the database it is run in: a copy on the same server does not keep it from the
//! others.
//!
//! It is read from the words: those a statement begins with and, where it is a `DO` block or makes a function, those anywhere in its
//! body and in the strings there. Text that is put together from smaller pieces is not seen.

use crate::{
    Engine, Statement,
    lexer::{Lexer, TokenKind},
};

/// Strings in strings are read so far.
const DEPTH_MAX: u32 = 4;

/// What it changes for the whole server, as it is written: `ALTER DATABASE shop`. `None` where that is nothing, and on
/// MariaDB, whose server itself refuses it to a rehearsal.
pub fn beyond_its_database(statement: &Statement, engine: Engine) -> Option<String> {
    match engine {
        Engine::Postgres => found(&statement.text, DEPTH_MAX, false),
        Engine::Mariadb => None,
    }
}

fn found(text: &str, depth: u32, is_body: bool) -> Option<String> {
    let mut lexer = Lexer::new(text, Engine::Postgres, 0);
    let mut words: Vec<&str> = Vec::new();
    let mut texts: Vec<&str> = Vec::new();
    // What cannot be read to its end is read as far as that.
    while let Ok(Some(token)) = lexer.next_token() {
        let own = &text[token.range.clone()];
        match token.kind {
            TokenKind::Text => texts.push(own),
            TokenKind::Word | TokenKind::Name | TokenKind::Number | TokenKind::Symbol => {
                words.push(own)
            }
        }
    }
    let is = |at: usize, known: &[&str]| {
        let word: Option<&&str> = words.get(at);
        word.is_some_and(|word| known.iter().any(|known| word.eq_ignore_ascii_case(known)))
    };
    let makes = (1..words.len().min(5)).any(|at| is(at, &["function", "procedure"]));
    let runs_texts = is_body || is(0, &["do"]) || is(0, &["create"]) && makes;
    let places = if is_body { words.len() } else { 1 };
    let own = (0..places).find_map(|at| begins(words.get(at..)?));
    own.or_else(|| {
        let inner = |text: &&str| found(unquoted(text), depth.checked_sub(1)?, true);
        texts.iter().filter(|_| runs_texts).find_map(inner)
    })
}

/// Where these words begin something for the whole server.
fn begins(words: &[&str]) -> Option<String> {
    let lower = |at: usize| words.get(at).map(|word| word.to_ascii_lowercase());
    let (first, second, third) = (lower(0)?, lower(1)?, lower(2)?);
    let is_shared =
        |word: &str| ["database", "role", "user", "group", "tablespace"].contains(&word);
    let length = match (first.as_str(), second.as_str(), third.as_str()) {
        // Its own: `format('ALTER DATABASE %I …', current_database())`.
        ("alter", "database", "%") => return None,
        // In the database it is run in.
        (_, "user", "mapping") => return None,
        ("alter" | "drop" | "create", shared, _) if is_shared(shared) => 3,
        ("alter", "system", _) | ("reassign" | "drop", "owned", _) => 2,
        ("comment", "on", shared) if is_shared(shared) => 4,
        ("grant" | "revoke", ..) => {
            let end = words.iter().position(|word| *word == ";");
            let words = &words[..end.unwrap_or(words.len())];
            let on = words
                .iter()
                .position(|word| word.eq_ignore_ascii_case("on"))?;
            let shared = words.get(on + 1)?.to_ascii_lowercase();
            let name = words.get(on + 2).filter(|_| is_shared(&shared))?;
            return Some(format!(
                "{} ON {} {name}",
                first.to_uppercase(),
                shared.to_uppercase()
            ));
        }
        _ => return None,
    };
    Some(
        words
            .iter()
            .take(length)
            .copied()
            .collect::<Vec<_>>()
            .join(" "),
    )
}

/// What stands between the quotes of a string.
fn unquoted(text: &str) -> &str {
    let text = text.trim_start_matches(['e', 'E']);
    let quote = match text.strip_prefix('$') {
        Some(rest) => rest.find('$').map_or(1, |end| end + 2),
        None => 1,
    };
    text.get(quote..text.len().saturating_sub(quote))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Script;

    fn check(text: &str, expected: Option<&str>) {
        let script = Script::parse(text.as_bytes(), Engine::Postgres).unwrap();
        let mut statements = script.statements.iter();
        let found = statements.find_map(|it| beyond_its_database(it, Engine::Postgres));
        assert_eq!(found.as_deref(), expected, "{text}");
    }

    #[test]
    fn names_what_is_changed_for_the_whole_server() {
        for (text, expected) in [
            (
                "ALTER DATABASE shop SET work_mem = '8MB';",
                "ALTER DATABASE shop",
            ),
            (
                "alter  database \"shop\" rename to other;",
                "alter database \"shop\"",
            ),
            (
                "SELECT 1; ALTER ROLE operator SET work_mem = '8MB';",
                "ALTER ROLE operator",
            ),
            ("ALTER USER ALL RESET ALL;", "ALTER USER ALL"),
            ("DROP DATABASE shop WITH (FORCE);", "DROP DATABASE shop"),
            (
                "COMMENT ON DATABASE shop IS 'x';",
                "COMMENT ON DATABASE shop",
            ),
            (
                "GRANT CONNECT, TEMP ON DATABASE shop TO public;",
                "GRANT ON DATABASE shop",
            ),
            ("ALTER SYSTEM SET work_mem = 1;", "ALTER SYSTEM"),
            ("REASSIGN OWNED BY a TO b;", "REASSIGN OWNED"),
            (
                "DO $x$ BEGIN EXECUTE 'ALTER DATABASE shop SET a.b = 1'; END $x$;",
                "ALTER DATABASE shop",
            ),
            (
                "CREATE OR REPLACE FUNCTION f() RETURNS void LANGUAGE sql AS 'ALTER ROLE shop_owner SET a.b = 1';",
                "ALTER ROLE shop_owner",
            ),
            (
                "DO $$ BEGIN ALTER ROLE shop_owner SET a.b = 1; END $$;",
                "ALTER ROLE shop_owner",
            ),
        ] {
            check(text, Some(expected));
        }
    }

    #[test]
    fn leaves_what_stays_in_the_database() {
        for text in [
            "ALTER TABLE database ADD COLUMN role int;",
            "CREATE TABLE users (role text, database text);",
            "ALTER USER MAPPING FOR public SERVER far OPTIONS (SET user 'x');",
            "GRANT SELECT ON items TO shop_owner;",
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO shop_owner; INSERT INTO on_database VALUES (1);",
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 1', current_database()); END $$;",
            "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO shop_owner;",
            "DROP ROUTINE f; COMMENT ON TABLE a IS 'as ALTER ROLE';",
            "INSERT INTO help VALUES ('alter database shop does it');",
            "-- ALTER DATABASE shop SET a = 1\nSELECT 1;",
        ] {
            check(text, None);
        }
    }
}
