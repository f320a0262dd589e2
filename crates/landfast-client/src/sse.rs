//! Server-sent events (WHATWG HTML, 9.2.6), read from bytes as they come. Pure.

/// One event of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SseEvent {
    /// The last id the stream gave, which holds for later events too.
    pub id: String,
    /// `message` where the stream gave none.
    pub event: String,
    pub data: String,
}

/// Reads events from bytes as they come, in whatever pieces.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The line that has not ended.
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed right after it ends no second line.
    after_return: bool,
    /// The first line was seen: only before it may a byte order mark stand.
    begun: bool,
    id: String,
    event: String,
    data: Option<String>,
}

impl SseParser {
    /// Takes the next bytes and returns the events they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_return = std::mem::take(&mut self.after_return);
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.line(&line));
                }
                _ => self.line.push(byte),
            }
        }
        events
    }

    /// How many bytes of an unfinished event are held.
    pub fn held_bytes(&self) -> usize {
        self.line.len() + self.data.as_ref().map_or(0, String::len)
    }

    fn line(&mut self, line: &[u8]) -> Option<SseEvent> {
        let line = if std::mem::replace(&mut self.begun, true) {
            line
        } else {
            line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line)
        };
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            let data = self.data.take()?;
            let event = if event.is_empty() {
                "message".to_owned()
            } else {
                event
            };
            return Some(SseEvent {
                id: self.id.clone(),
                event,
                data,
            });
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "event" => self.event = value.to_owned(),
            "id" if !value.contains('\0') => self.id = value.to_owned(),
            // A comment (an empty field name), `retry`, which we choose ourselves, or a field of another time.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, event: &str, data: &str) -> SseEvent {
        SseEvent {
            id: id.into(),
            event: event.into(),
            data: data.into(),
        }
    }

    const STREAM: &str = "\u{feff}: hello\n\nid: 7\nevent: moved\ndata: a\ndata:b\n\ndata\n\nid: 8\r\ndata:  c\r\n\r\nevent: none\n\nretry: 10\ndata: é\r\r";

    #[test]
    fn reads_a_stream_however_it_is_cut() {
        let expected = [
            event("7", "moved", "a\nb"),
            event("7", "message", ""),
            event("8", "message", " c"),
            event("8", "message", "é"),
        ];
        for size in [1, 2, 3, 7, 1_000] {
            let mut parser = SseParser::default();
            let events = STREAM
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| parser.feed(piece));
            assert_eq!(events.collect::<Vec<_>>(), expected, "in pieces of {size}");
            assert_eq!(parser.held_bytes(), 0);
        }
    }

    #[test]
    fn holds_an_event_until_its_empty_line() {
        let mut parser = SseParser::default();
        assert_eq!(parser.feed(b"data: x\n"), []);
        assert_eq!(parser.held_bytes(), 1);
        assert_eq!(parser.feed(b"\n"), [event("", "message", "x")]);
    }
}
