//! Where one server-sent event ends and the next may begin: after an empty line. Lines end with LF, CR or
//! CR LF (HTML standard, 9.2.5).

/// Follows a `text/event-stream` body byte by byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventBoundary {
    /// Nothing was read since the last line end.
    line_is_empty: bool,
    /// The last byte was CR, so that an LF now belongs to the same line end.
    after_cr: bool,
    /// The last line was empty, and nothing came after it.
    between: bool,
}

impl Default for EventBoundary {
    fn default() -> Self {
        Self {
            line_is_empty: true,
            after_cr: false,
            between: true,
        }
    }
}

impl EventBoundary {
    /// Whether the stream may end here without cutting an event.
    pub fn is_between_events(self) -> bool {
        self.between
    }

    /// Takes a piece of the body in.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.step(*byte);
        }
    }

    /// Takes bytes in up to the first place between two events after at least one byte; answers how many, or
    /// `None` when the piece holds no such place (it is taken in whole then).
    pub fn feed_to_boundary(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, byte) in bytes.iter().enumerate() {
            self.step(*byte);
            // An LF that follows belongs to the same line end: it goes along.
            let pair = *byte == b'\r' && bytes.get(index + 1) == Some(&b'\n');
            if self.between && !pair {
                return Some(index + 1);
            }
        }
        None
    }

    fn step(&mut self, byte: u8) {
        match byte {
            b'\n' if self.after_cr => self.after_cr = false,
            b'\r' | b'\n' => {
                self.between = self.line_is_empty;
                self.line_is_empty = true;
                self.after_cr = byte == b'\r';
            }
            _ => {
                *self = Self {
                    line_is_empty: false,
                    after_cr: false,
                    between: false,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ends_after_an_empty_line_only() {
        for (text, between) in [
            ("", true),
            ("data: 1", false),
            ("data: 1\n", false),
            ("data: 1\n\n", true),
            ("data: 1\r\n", false),
            ("data: 1\r\n\r\n", true),
            ("data: 1\r\r", true),
            ("data: 1\n\ndata", false),
            ("data: 1\ndata: 2\n", false),
        ] {
            let mut boundary = EventBoundary::default();
            boundary.feed(text.as_bytes());
            assert_eq!(boundary.is_between_events(), between, "{text:?}");
        }
    }

    #[test]
    fn stops_at_the_first_place_between_two() {
        let mut boundary = EventBoundary::default();
        boundary.feed(b"data: 1");
        assert_eq!(boundary.feed_to_boundary(b"2\r\n\r\ndata: 3\n\n"), Some(5));
        let mut boundary = EventBoundary::default();
        assert_eq!(boundary.feed_to_boundary(b"data: 1\nid: 2\n"), None);
        assert_eq!(boundary.feed_to_boundary(b"\nrest"), Some(1));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[ad:\r\n]{0,40}", cut in 0_usize..40) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let mut whole = EventBoundary::default();
            whole.feed(bytes);
            let mut pieces = EventBoundary::default();
            pieces.feed(&bytes[..cut]);
            pieces.feed(&bytes[cut..]);
            prop_assert_eq!(whole, pieces);
        }
    }
}
