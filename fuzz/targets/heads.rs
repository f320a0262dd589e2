//! Any bytes as what a client sends: the verdict does not depend on how they are cut, and hyper ends each request
//! that passes where the scanner does.
#![no_main]

#[path = "../../crates/landfast-framing/tests/support/peer.rs"]
mod peer;
#[path = "../../crates/landfast-framing/tests/support/mod.rs"]
mod support;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // The first byte says how the rest is cut.
    let Some((cut, bytes)) = input.split_first() else {
        return;
    };
    if bytes.is_empty() {
        return;
    }
    let whole = support::scan(bytes);
    let cuts = std::iter::repeat_with({
        let mut state = usize::from(*cut);
        move || {
            state = (state * 5 + 3) % 1009;
            1 + state % 29
        }
    });
    assert_eq!(support::in_pieces(bytes, cuts.take(bytes.len())), whole);
    let mut begin = 0;
    for end in whole.ends {
        assert_eq!(peer::one_request(&bytes[begin..]), Some(end - begin));
        begin = end;
    }
});
