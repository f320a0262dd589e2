//! Any lines as the bodies of a journal's records: each is refused or is an event that is written the same again.
#![no_main]

use landfast_rollout::Event;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(event) = serde_json::from_slice::<Event>(line) else {
            continue;
        };
        let written = serde_json::to_vec(&event).expect("json");
        let again: Event = serde_json::from_slice(&written).expect("reads back");
        assert_eq!(again, event);
    }
});
