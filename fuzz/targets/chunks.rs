//! Any bytes as a chunked body: what passes ends where hyper ends it, however it is cut.
#![no_main]

#[path = "../../crates/landfast-framing/tests/support/peer.rs"]
mod peer;
#[path = "../../crates/landfast-framing/tests/support/mod.rs"]
mod support;

const HEAD: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let bytes = [HEAD, body].concat();
    let whole = support::scan(&bytes);
    let cuts = [7, 1, 3].into_iter().cycle().take(bytes.len());
    assert_eq!(support::in_pieces(&bytes, cuts), whole);
    if let Some(end) = whole.ends.first() {
        assert_eq!(peer::one_request(&bytes), Some(*end));
    }
});
