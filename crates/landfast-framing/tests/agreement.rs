//! Random and broken requests: the verdict does not depend on how they are cut, and hyper agrees on every part of
//! every request that passes.

#[path = "support/peer.rs"]
mod peer;
mod support;

use proptest::prelude::*;
use support::{dissect, ends, in_pieces, scan};

fn request() -> impl Strategy<Value = String> {
    let method = prop_oneof![4 => "GET", 4 => "POST", 1 => "[A-Z@]{1,4}"];
    let target = prop_oneof![
        6 => "/[a-z%2e./;?=]{0,12}",
        1 => "http://[ab]/[a-z]{0,3}",
        1 => "[ -~]{0,6}",
    ];
    let field = prop_oneof![
        6 => "[a-zA-Z-]{1,12}: ?[ -~\\t]{0,20}\r\n",
        1 => "[Ee]xpect: 100-continue\r\n",
        1 => "connection: (close|keep-alive|upgrade)\r\n",
        1 => "upgrade: websocket\r\n",
        1 => "host: [ab]\r\n",
        1 => "[ -~]{0,10}\r?\n",
    ];
    let body = prop_oneof![
        3 => Just(String::from("\r\n")),
        2 => "[ -~]{0,30}".prop_map(|body| format!("content-length: {}\r\n\r\n{body}", body.len())),
        1 => "content-length: [0-9+, ]{1,3}\r\n\r\n[ -~]{0,30}",
        3 => prop::collection::vec(chunk(), 0..4).prop_map(|chunks| {
            format!("transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunks.concat())
        }),
        1 => "x-[a-z]{1,3}: ?[a-z]{0,3}\r\n".prop_map(|trailer| {
            format!("transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{trailer}\r\n")
        }),
        1 => "transfer-encoding: (chunked|gzip, chunked|xchunked)\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    ];
    let version = prop_oneof![8 => Just("HTTP/1.1"), 1 => Just("HTTP/1.0"), 1 => Just("HTTP/1.2")];
    let fields = prop::collection::vec(field, 0..4);
    (method, target, version, fields, body).prop_map(|(method, target, version, fields, body)| {
        format!(
            "{method} {target} {version}\r\nhost: a\r\n{}{body}",
            fields.concat()
        )
    })
}

fn chunk() -> impl Strategy<Value = String> {
    let extension = prop_oneof![4 => Just(String::new()), 1 => ";[a-z]{1,3}(=[a-z\"]{1,4})?", 1 => "[ -~\\n]{1,3}"];
    ("[ -~]{1,20}", extension, "0{0,2}").prop_map(|(data, extension, zeros)| {
        format!("{zeros}{:x}{extension}\r\n{data}\r\n", data.len())
    })
}

/// One change somewhere: a byte put in, taken out or replaced.
fn change() -> impl Strategy<Value = (prop::sample::Index, u8, u8)> {
    let byte = prop_oneof![
        Just(b'\r'),
        Just(b'\n'),
        Just(b' '),
        Just(b':'),
        Just(b'0'),
        any::<u8>()
    ];
    (any::<prop::sample::Index>(), 0..3_u8, byte)
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let requests = prop::collection::vec(request(), 1..4);
    let changes = prop::collection::vec(change(), 0..3);
    (requests, changes, any::<bool>()).prop_map(|(requests, changes, is_changed)| {
        let mut bytes = requests.concat().into_bytes();
        for (place, kind, byte) in changes.into_iter().filter(|_| is_changed) {
            let place = place.index(bytes.len());
            match kind {
                0 => bytes.insert(place, byte),
                1 if bytes.len() > 1 => drop(bytes.remove(place)),
                _ => bytes[place] = byte,
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(2_000)
    })]

    #[test]
    fn no_cut_of_random_bytes_changes_the_verdict(
        bytes in stream(),
        cuts in prop::collection::vec(1..40_usize, 1..40),
    ) {
        let whole = scan(&bytes);
        let cuts = cuts.into_iter().cycle();
        prop_assert_eq!(in_pieces(&bytes, cuts), whole);
    }

    #[test]
    fn hyper_reads_each_request_that_passes_as_the_scanner_does(bytes in stream()) {
        let mut begin = 0;
        for end in ends(&bytes) {
            let text = String::from_utf8_lossy(&bytes[begin..]);
            let read = peer::one_request(&bytes[begin..]);
            let Some(peer::OneRequest { length, parts }) = read else {
                return Err(TestCaseError::fail(format!("hyper refuses {text:?}")));
            };
            prop_assert_eq!(length, end - begin, "{:?}", &text);
            // An absolute target is the one thing that has two forms.
            let ours = dissect(&bytes[begin..]).expect("it passes");
            let skipped = usize::from(!ours[0].contains(" /"));
            prop_assert_eq!(&ours[skipped..], &parts[skipped..], "{:?}", &text);
            begin = end;
        }
    }
}

#[test]
fn hyper_takes_what_the_scanner_takes_of_a_plain_request() {
    let bytes = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhelloGET /";
    let length = |bytes| peer::one_request(bytes).map(|read| read.length);
    assert_eq!(length(bytes), Some(bytes.len() - 5));
    assert_eq!(length(b"GET / HTTP/1.1\r\nhost a\r\n\r\n"), None);
    assert_eq!(ends(bytes), [bytes.len() - 5]);
}
