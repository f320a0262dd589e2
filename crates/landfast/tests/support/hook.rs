//! A webhook that remembers what it is told.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use serde_json::Value;

/// Takes whatever is posted to it.
pub struct Hook {
    port: u16,
    bodies: Arc<Mutex<Vec<Value>>>,
}

impl Hook {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let bodies = Arc::<Mutex<Vec<Value>>>::default();
        let taken = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut reader = BufReader::new(stream.unwrap());
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    let line = line.trim().to_ascii_lowercase();
                    if let Some(bytes) = line.strip_prefix("content-length:") {
                        length = bytes.trim().parse().unwrap();
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                taken
                    .lock()
                    .unwrap()
                    .extend(serde_json::from_slice::<Value>(&body));
                let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                reader.get_mut().write_all(answer).unwrap();
            }
        });
        Self { port, bodies }
    }

    pub fn line(&self) -> String {
        format!("[deploy]\nwebhook = \"http://127.0.0.1:{}/\"\n", self.port)
    }

    /// What was told in a state.
    pub fn told(&self, state: &str) -> Vec<String> {
        let bodies = self.bodies.lock().unwrap();
        let of_state = bodies.iter().filter(|body| body["state"] == state);
        of_state.map(|body| body["text"].to_string()).collect()
    }
}
