//! The other reading of a path. A route that guards `/admin` guards nothing when `//admin`, `/x/../admin` or
//! `/%61dmin` leads to another route here and to `/admin` in the application, so whoever looks up a route looks
//! up both readings, and refuses a request when they lead apart.

/// How often an encoded `%` is followed: applications that decode twice exist.
const DECODE_MAX: usize = 3;

/// The path as a lenient application may read it (percent-encoding undone, `\` and `;…` as Windows and Java servers
/// take them, empty and dot segments resolved), where that differs from the path as written.
pub fn other_reading(path: &str) -> Option<String> {
    let is_suspicious =
        path.contains(['%', ';', '\\']) || path.contains("//") || path.contains("/.");
    if !is_suspicious {
        return None;
    }
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..DECODE_MAX {
        let decoded = decode(&bytes);
        if decoded == bytes {
            break;
        }
        bytes = decoded;
    }
    let text = String::from_utf8_lossy(&bytes).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        let segment = segment.split(';').next().unwrap_or_default();
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let read = format!("/{}", segments.join("/"));
    (read != path).then_some(read)
}

fn decode(bytes: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(byte) = bytes.get(index) {
        let pair = (digit(bytes.get(index + 1)), digit(bytes.get(index + 2)));
        if let (b'%', (Some(high), Some(low))) = (byte, pair) {
            decoded.push((high * 16 + low) as u8);
            index += 3;
        } else {
            decoded.push(*byte);
            index += 1;
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_a_lenient_application_does() {
        for (path, expected) in [
            ("/admin", None),
            ("/a.b/c", None),
            ("//admin", Some("/admin")),
            ("/x/../admin", Some("/admin")),
            ("/./admin/.", Some("/admin")),
            ("/%61dmin", Some("/admin")),
            ("/%2561dmin", Some("/admin")),
            ("/x%2f..%2fadmin", Some("/admin")),
            ("/x/..\\admin", Some("/admin")),
            ("/admin;v=1/users", Some("/admin/users")),
            ("/../../admin", Some("/admin")),
            ("/100%", None),
            ("/%zz", None),
            ("/caf%C3%A9", Some("/café")),
            ("/%", None),
        ] {
            assert_eq!(other_reading(path).as_deref(), expected, "{path}");
        }
    }
}
