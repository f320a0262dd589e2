//! Follows the frames of one direction of a WebSocket (RFC 6455, 5.2) without touching them, to know where one
//! message ends and the next may begin. Extensions that mark frames (RSV bits) pass untouched.

/// The longest frame header: two bytes, an eight-byte length, a mask.
const HEADER_LEN_MAX: usize = 14;

const OPCODE_CLOSE: u8 = 0x8;

/// A service restarts; come back (RFC 6455 registry).
pub const CLOSE_SERVICE_RESTART: u16 = 1012;

/// Where a direction stands.
#[derive(Debug, Clone, Default)]
pub struct Frames {
    header: [u8; HEADER_LEN_MAX],
    header_len: usize,
    payload_left: u64,
    in_payload: bool,
    /// A fragmented message has begun and not ended.
    in_message: bool,
    closed: bool,
}

impl Frames {
    /// Whether a new message could begin here: no frame and no fragmented message is unfinished.
    pub fn is_between_messages(&self) -> bool {
        !self.in_payload && self.header_len == 0 && !self.in_message
    }

    /// Whether a whole Close frame has passed. Nothing may follow it.
    pub fn has_closed(&self) -> bool {
        self.closed && !self.in_payload
    }

    /// Takes a piece of the stream in.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.advance(rest);
            rest = &rest[taken..];
        }
    }

    /// Takes bytes in up to the first place between two messages (or the end of a Close frame) after at least
    /// one byte; answers how many, or `None` when the piece holds no such place (it is taken in whole then).
    pub fn feed_to_boundary(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            at += self.advance(&bytes[at..]);
            if self.is_between_messages() || self.has_closed() {
                return Some(at);
            }
        }
        None
    }

    /// Takes at least one byte: a piece of a header, or of a payload.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        if self.in_payload {
            let here = usize::try_from(self.payload_left)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            self.payload_left -= here as u64;
            self.in_payload = self.payload_left > 0;
            return here;
        }
        self.header[self.header_len] = bytes[0];
        self.header_len += 1;
        if self.header_len >= 2 && self.header_len == self.header_size() {
            self.begin_payload();
        }
        1
    }

    fn header_size(&self) -> usize {
        let mask = if self.header[1] & 0x80 != 0 { 4 } else { 0 };
        let length = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + mask
    }

    fn begin_payload(&mut self) {
        self.payload_left = match self.header[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            127 => {
                let length = self.header[2..10].try_into().expect("eight bytes");
                u64::from_be_bytes(length)
            }
            short => u64::from(short),
        };
        let (is_final, opcode) = (self.header[0] & 0x80 != 0, self.header[0] & 0x0f);
        if opcode == OPCODE_CLOSE {
            self.closed = true;
        } else if opcode < OPCODE_CLOSE {
            // Data: a first frame opens a message unless it is the whole of it, a final continuation ends one.
            self.in_message = !is_final;
        }
        self.in_payload = self.payload_left > 0;
        self.header_len = 0;
    }
}

/// A Close frame as a server sends it (unmasked) or, with a mask, as a client does.
pub fn close_frame(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let reason = &reason.as_bytes()[..reason.len().min(123)];
    let length = u8::try_from(reason.len() + 2).expect("at most 125");
    let mut frame = vec![0x80 | OPCODE_CLOSE, length];
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason);
    if let Some(mask) = mask {
        frame[1] |= 0x80;
        frame.extend_from_slice(&mask);
        for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= key;
        }
    }
    frame.extend_from_slice(&payload);
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, payload: usize, masked: bool) -> Vec<u8> {
        let mut bytes = vec![first];
        let bit = if masked { 0x80 } else { 0 };
        if payload < 126 {
            bytes.push(bit | u8::try_from(payload).expect("short"));
        } else if let Ok(length) = u16::try_from(payload) {
            bytes.push(bit | 126);
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.push(bit | 127);
            bytes.extend((payload as u64).to_be_bytes());
        }
        if masked {
            bytes.extend([1, 2, 3, 4]);
        }
        bytes.extend(std::iter::repeat_n(0x81, payload));
        bytes
    }

    #[test]
    fn a_fragmented_message_ends_with_its_final_frame_and_pings_between_do_not_count() {
        let mut frames = Frames::default();
        frames.feed(&frame(0x01, 5, true));
        assert!(!frames.is_between_messages());
        frames.feed(&frame(0x89, 2, true));
        assert!(!frames.is_between_messages());
        frames.feed(&frame(0x00, 0, true));
        assert!(!frames.is_between_messages());
        frames.feed(&frame(0x80, 70_000, true));
        assert!(frames.is_between_messages());
        assert!(!frames.has_closed());
        frames.feed(&close_frame(1000, "bye", None));
        assert!(frames.has_closed());
    }

    #[test]
    fn stops_at_the_first_place_between_two_messages() {
        let mut bytes = frame(0x01, 3, false);
        bytes.extend(frame(0x80, 4, false));
        let first = bytes.len();
        bytes.extend(frame(0x81, 9, false));
        assert_eq!(Frames::default().feed_to_boundary(&bytes), Some(first));
        assert_eq!(
            Frames::default().feed_to_boundary(&bytes[..first - 1]),
            None
        );
    }

    #[test]
    fn a_masked_close_reads_back() {
        let mask = [9, 8, 7, 6];
        let bytes = close_frame(CLOSE_SERVICE_RESTART, "restart", Some(mask));
        assert_eq!(bytes[..2], [0x88, 0x80 | 9]);
        let payload: Vec<u8> = bytes[6..]
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key)
            .collect();
        assert_eq!(payload[..2], 1012_u16.to_be_bytes());
        assert_eq!(&payload[2..], b"restart");
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            messages in prop::collection::vec((0_usize..300, any::<bool>(), any::<bool>()), 1..6),
            cuts in prop::collection::vec(1_usize..40, 1..60),
        ) {
            let mut bytes = Vec::new();
            let mut ends = vec![];
            for (length, masked, split) in messages {
                if split {
                    bytes.extend(frame(0x02, length, masked));
                    bytes.extend(frame(0x8a, 3, masked));
                    bytes.extend(frame(0x80, length, masked));
                } else {
                    bytes.extend(frame(0x82, length, masked));
                }
                ends.push(bytes.len());
            }
            let mut frames = Frames::default();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(bytes.len());
                frames.feed(&bytes[at..end]);
                at = end;
                prop_assert_eq!(frames.is_between_messages(), ends.contains(&at), "at {}", at);
                if at == bytes.len() { break; }
            }
        }
    }
}
