//! The check of a Dockerfile asks the path as it is.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails where it unwraps, and runs the check itself"
)]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::Command,
    thread,
};

use landfast_convert::{ProjectFacts, ProjectKind, dockerfile};

#[test]
fn a_percent_sign_in_the_path_is_asked_as_it_is() {
    let cargo = "[package]\nname = \"shop\"\nversion = \"1.0.0\"\n";
    let facts = ProjectFacts {
        files: BTreeMap::from([("Cargo.toml".to_owned(), cargo.to_owned())]),
        ready: Some("/a%20b?c=%s%d".to_owned()),
        ..ProjectFacts::default()
    };
    let files = dockerfile(&facts, Some(ProjectKind::Rust)).unwrap();
    let check = files.dockerfile.lines().find_map(|line| {
        line.strip_prefix("HEALTHCHECK ")
            .and_then(|line| line.split_once(" CMD "))
    });
    let words: Vec<String> = serde_json::from_str(check.unwrap().1).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let lines = lines
            .map(Result::unwrap)
            .take_while(|line| !line.is_empty());
        let lines = lines.collect::<Vec<_>>();
        (&stream).write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
        lines
    });
    let mut command = Command::new(&words[0]);
    let status = command
        .args(&words[1..])
        .env("PORT", port.to_string())
        .status();
    assert_eq!(
        asked.join().unwrap(),
        ["GET /a%20b?c=%s%d HTTP/1.0", "Host: localhost"]
    );
    assert!(status.unwrap().success());
}
