//! Any bytes as the routes on disk: what reads back is written the same again, compiles, and finds routes without
//! a panic.
#![no_main]

use landfast_routing::{snapshot::Snapshot, table::Table};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(snapshot) = serde_json::from_slice::<Snapshot>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&snapshot).expect("json");
    let again: Snapshot = serde_json::from_slice(&written).expect("reads back");
    assert_eq!(again, snapshot);
    let (table, problems) = Table::compile(&snapshot);
    assert!(problems.iter().all(|problem| !problem.is_empty()));
    for route in &snapshot.routes {
        let _found = table.find(&route.host, &route.path);
    }
    for (host, path) in [("a.example:80", "/a/b"), ("", ""), ("[::1]", "*"), ("A.", "//")] {
        let _found = table.find(host, path);
    }
});
