//! A place in a statement's tokens, with the few moves the reader makes.

use crate::{
    Engine, ObjectName,
    lexer::{Token, TokenKind},
};

#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    text: &'a str,
    tokens: &'a [Token],
    engine: Engine,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a str, tokens: &'a [Token], engine: Engine) -> Self {
        Self {
            text,
            tokens,
            engine,
            at: 0,
        }
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn done(&self) -> bool {
        self.at >= self.tokens.len()
    }

    pub(crate) fn peek_text(&self) -> &'a str {
        self.tokens
            .get(self.at)
            .map_or("", |token| &self.text[token.range.clone()])
    }

    pub(crate) fn skip(&mut self) {
        self.at += 1;
    }

    fn word_at(&self, at: usize) -> Option<String> {
        let token = self.tokens.get(at)?;
        (token.kind == TokenKind::Word).then(|| self.text[token.range.clone()].to_ascii_lowercase())
    }

    /// The word here, in lower case, if it is an unquoted one.
    pub(crate) fn word(&self) -> String {
        self.word_at(self.at).unwrap_or_default()
    }

    /// Whether the words here are these, without moving.
    pub(crate) fn at_words(&self, words: &str) -> bool {
        words
            .split(' ')
            .enumerate()
            .all(|(index, word)| self.word_at(self.at + index).as_deref() == Some(word))
    }

    /// Moves over these words if they are here.
    pub(crate) fn eat(&mut self, words: &str) -> bool {
        let here = self.at_words(words);
        if here {
            self.at += words.split(' ').count();
        }
        here
    }

    pub(crate) fn eat_any(&mut self, choices: &[&str]) -> bool {
        choices.iter().any(|choice| self.eat(choice))
    }

    pub(crate) fn at_symbol(&self, symbol: &str) -> bool {
        self.tokens
            .get(self.at)
            .is_some_and(|token| token.kind == TokenKind::Symbol)
            && self.peek_text() == symbol
    }

    pub(crate) fn eat_symbol(&mut self, symbol: &str) -> bool {
        let here = self.at_symbol(symbol);
        if here {
            self.at += 1;
        }
        here
    }

    /// A name: quoted, or a word folded as the engine folds it.
    pub(crate) fn name(&mut self) -> Option<String> {
        let token = self.tokens.get(self.at)?;
        let text = &self.text[token.range.clone()];
        let name = match token.kind {
            TokenKind::Word => text.to_lowercase(),
            TokenKind::Name => {
                let quote = &text[..1];
                let inner = text[1..text.len() - 1].replace(&quote.repeat(2), quote);
                // MariaDB compares names of columns without regard to case, quoted or not.
                if self.engine == Engine::Mariadb {
                    inner.to_lowercase()
                } else {
                    inner
                }
            }
            TokenKind::Text | TokenKind::Number | TokenKind::Symbol => return None,
        };
        self.at += 1;
        Some(name)
    }

    /// `name`, `schema.name` or `database.schema.name`.
    pub(crate) fn object(&mut self) -> Option<ObjectName> {
        let mut parts = vec![self.name()?];
        while self.at_symbol(".") {
            self.at += 1;
            parts.push(self.name()?);
        }
        let name = parts.pop()?;
        Some(ObjectName {
            schema: parts.pop(),
            name,
        })
    }

    /// `a, b, c`, with what may stand behind each in PostgreSQL (`*`, `CASCADE` ends it).
    pub(crate) fn objects(&mut self) -> Vec<ObjectName> {
        let mut objects = Vec::new();
        while let Some(object) = self.object() {
            objects.push(object);
            self.eat_symbol("*");
            if self.at_symbol("(") {
                self.parentheses();
            }
            if !self.eat_symbol(",") {
                break;
            }
        }
        objects
    }

    /// Moves over a balanced pair of parentheses; gives what is inside.
    pub(crate) fn parentheses(&mut self) -> Option<Self> {
        if !self.at_symbol("(") {
            return None;
        }
        let start = self.at + 1;
        let mut depth = 0_usize;
        while let Some(token) = self.tokens.get(self.at) {
            let text = &self.text[token.range.clone()];
            if token.kind == TokenKind::Symbol && text == "(" {
                depth += 1;
            } else if token.kind == TokenKind::Symbol && text == ")" {
                depth -= 1;
                if depth == 0 {
                    self.at += 1;
                    return Some(self.slice(start, self.at - 1));
                }
            }
            self.at += 1;
        }
        Some(self.slice(start, self.at))
    }

    fn slice(&self, start: usize, end: usize) -> Self {
        Self {
            tokens: &self.tokens[start..end],
            at: 0,
            ..self.clone()
        }
    }

    /// The rest, cut at commas that stand in no parentheses.
    pub(crate) fn split_commas(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut start = self.at;
        let mut depth = 0_usize;
        for index in self.at..self.tokens.len() {
            let token = &self.tokens[index];
            if token.kind != TokenKind::Symbol {
                continue;
            }
            match &self.text[token.range.clone()] {
                "(" => depth += 1,
                ")" => depth = depth.saturating_sub(1),
                "," if depth == 0 => {
                    parts.push(self.slice(start, index));
                    start = index + 1;
                }
                _ => {}
            }
        }
        parts.push(self.slice(start, self.tokens.len()));
        parts
    }

    /// Whether these words stand anywhere in the rest, in no parentheses.
    pub(crate) fn contains(&self, words: &str) -> bool {
        let mut depth = 0_usize;
        let mut probe = self.clone();
        while !probe.done() {
            if probe.at_symbol("(") {
                depth += 1;
            } else if probe.at_symbol(")") {
                depth = depth.saturating_sub(1);
            } else if depth == 0 && probe.at_words(words) {
                return true;
            }
            probe.skip();
        }
        false
    }

    /// Moves to just behind these words, wherever they stand in the rest outside parentheses.
    pub(crate) fn seek(&mut self, words: &str) -> bool {
        let mut depth = 0_usize;
        let mut probe = self.clone();
        while !probe.done() {
            if probe.at_symbol("(") {
                depth += 1;
            } else if probe.at_symbol(")") {
                depth = depth.saturating_sub(1);
            } else if depth == 0 && probe.eat(words) {
                self.at = probe.at;
                return true;
            }
            probe.skip();
        }
        false
    }

    /// The text from here to the end of the tokens.
    pub(crate) fn rest(&self) -> &'a str {
        match (self.tokens.get(self.at), self.tokens.last()) {
            (Some(first), Some(last)) => &self.text[first.range.start..last.range.end],
            _ => "",
        }
    }

    /// A string literal's content, without its quotes.
    pub(crate) fn literal(&mut self) -> Option<String> {
        let token = self.tokens.get(self.at)?;
        if token.kind != TokenKind::Text {
            return None;
        }
        let text = &self.text[token.range.clone()];
        self.at += 1;
        Some(text.trim_matches(['\'', '"']).to_owned())
    }
}
