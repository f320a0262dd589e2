//! The app of these tests: an HTTP/1.1 server without a library, linked statically, so that an image is this file alone. It
//! says which release it is, what it was given, and what it may do. Compiled by the test with `rustc`.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

const VERSION: &str = env!("VERSION");

fn main() {
    let words: Vec<String> = env::args().collect();
    match words.get(1).map(String::as_str) {
        Some("check") => check(),
        Some("fail") => {
            println!("failing on purpose");
            std::process::exit(3);
        }
        Some("smoke") => smoke(),
        Some(_) | None => serve(),
    }
}

fn port() -> u16 {
    env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080)
}

fn serve() {
    let host = env::var("HOST").unwrap_or_else(|_| "0.0.0.0".into());
    let listener = TcpListener::bind((host.as_str(), port())).expect("the port is free");
    println!("serving {VERSION}");
    for stream in listener.incoming().flatten() {
        thread::spawn(move || connection(stream));
    }
}

fn connection(stream: TcpStream) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let _nodelay = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if !matches!(reader.read_line(&mut line), Ok(1..)) {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
        let (mut length, mut closes) = (0, false);
        loop {
            let mut field = String::new();
            if !matches!(reader.read_line(&mut field), Ok(1..)) {
                return;
            }
            let field = field.trim().to_ascii_lowercase();
            if field.is_empty() {
                break;
            }
            if let Some(value) = field.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            closes |= field == "connection: close";
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let (status, text) = answer(&path);
        let head = format!(
            "HTTP/1.1 {status}\r\nx-release: {VERSION}\r\ncontent-length: {}\r\n{}\r\n",
            text.len(),
            if closes { "connection: close\r\n" } else { "" }
        );
        if writer.write_all((head + &text).as_bytes()).is_err() || closes {
            return;
        }
    }
}

fn answer(path: &str) -> (&'static str, String) {
    const FINE: &str = "200 OK";
    if path == "/ready" && VERSION.contains("never-ready") {
        return ("503 Service Unavailable", "not yet".into());
    }
    if let Some(name) = path.strip_prefix("/env/") {
        return (FINE, env::var(name).unwrap_or_else(|_| "-".into()));
    }
    if let Some(name) = path.strip_prefix("/file/") {
        let path = env::var(format!("{name}_FILE"));
        let text = path.ok().and_then(|path| fs::read_to_string(path).ok());
        return (FINE, text.unwrap_or_else(|| "-".into()));
    }
    if let Some(ms) = path.split("wait?ms=").nth(1) {
        thread::sleep(Duration::from_millis(ms.parse().unwrap_or(0)));
    }
    if let Some(path) = path.strip_prefix("/write") {
        let written = fs::write(path, VERSION);
        return (FINE, written.map_or_else(|error| error.to_string(), |()| "written".into()));
    }
    if let Some(path) = path.strip_prefix("/read") {
        let read = fs::read_to_string(path);
        return (FINE, read.unwrap_or_else(|error| error.to_string()));
    }
    (FINE, VERSION.into())
}

/// The check of the image: asks the server beside it.
fn check() {
    let mut stream = TcpStream::connect(("127.0.0.1", port())).expect("it listens");
    let request = "GET /ready HTTP/1.1\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    if !text.starts_with("HTTP/1.1 200") {
        println!("{}", text.lines().next().unwrap_or_default());
        std::process::exit(1);
    }
}

/// Asks the preview which release it is.
fn smoke() {
    let url = env::var("LANDFAST_PREVIEW_URL").expect("where the new release is");
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("it answers");
    let request = "GET / HTTP/1.1\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    assert!(text.ends_with(VERSION), "{text}");
    println!("it is {VERSION}");
}
