//! Mounts of a service, short and long.

use crate::ledger::At;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) kind: MountKind,
    /// The name of the volume or the path on the host.
    pub(super) source: Option<String>,
    pub(super) target: String,
    pub(super) read_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MountKind {
    Volume,
    Bind,
    Tmpfs,
    Other,
}

/// `source:target:mode`, `target`; knows the drives of Windows.
pub(super) fn short(text: &str) -> Option<Mount> {
    let mut parts = Vec::<String>::new();
    let mut rest = text;
    loop {
        // A single letter before a backslash or slash is a drive.
        let drive = rest.len() > 2
            && rest.as_bytes()[0].is_ascii_alphabetic()
            && rest.as_bytes()[1] == b':'
            && match rest.as_bytes()[2] {
                b'\\' => true,
                // `a:/data` is a volume with a short name, unless a target follows.
                b'/' => parts.is_empty() && (rest[3..].contains(":/") || rest[3..].contains(":\\")),
                _ => false,
            };
        let from = if drive { 2 } else { 0 };
        match rest[from..].find(':') {
            Some(index) => {
                parts.push(rest[..from + index].to_owned());
                rest = &rest[from + index + 1..];
            }
            None => {
                parts.push(rest.to_owned());
                break;
            }
        }
    }
    let (source, target, mode) = match &parts[..] {
        [target] => (None, target.clone(), ""),
        [source, target] => (Some(source.clone()), target.clone(), ""),
        [source, target, mode] => (Some(source.clone()), target.clone(), mode.as_str()),
        _ => return None,
    };
    if target.is_empty() || source.as_ref().is_some_and(String::is_empty) {
        return None;
    }
    let is_path = |source: &String| is_host_path(source);
    let kind = if source.as_ref().is_some_and(is_path) {
        MountKind::Bind
    } else {
        MountKind::Volume
    };
    Some(Mount {
        kind,
        source,
        target,
        read_only: mode.split(',').any(|word| word == "ro"),
    })
}

/// Whether a source is a path rather than the name of a volume.
pub(super) fn is_host_path(source: &str) -> bool {
    let bytes = source.as_bytes();
    source.starts_with(['.', '/', '~', '\\'])
        || (bytes.len() > 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':')
}

/// A mount of either form; `None`: it is neither.
pub(super) fn read(at: &At<'_>) -> Option<Mount> {
    if !at.node.is_map() {
        return short(&at.text()?);
    }
    let text = |key: &str| at.get(key).and_then(|at| at.text());
    let kind = match text("type").as_deref() {
        Some("volume") => MountKind::Volume,
        Some("bind") => MountKind::Bind,
        Some("tmpfs") => MountKind::Tmpfs,
        None if text("source").is_some_and(|source| is_host_path(&source)) => MountKind::Bind,
        None => MountKind::Volume,
        Some(_) => MountKind::Other,
    };
    Some(Mount {
        kind,
        source: text("source").or_else(|| text("src")),
        target: text("target").or_else(|| text("destination"))?,
        read_only: text("read_only").is_some_and(|word| word == "true"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_mounts() {
        let check = |text: &str, kind, source: Option<&str>, target: &str, read_only| {
            let wanted = Mount {
                kind,
                source: source.map(str::to_owned),
                target: target.to_owned(),
                read_only,
            };
            assert_eq!(short(text), Some(wanted), "{text}");
        };
        check("/data", MountKind::Volume, None, "/data", false);
        check("a:/data", MountKind::Volume, Some("a"), "/data", false);
        check(
            "./a:/data:ro,z",
            MountKind::Bind,
            Some("./a"),
            "/data",
            true,
        );
        check("~/a:/b", MountKind::Bind, Some("~/a"), "/b", false);
        check(
            "C:\\a b:/data:rw",
            MountKind::Bind,
            Some("C:\\a b"),
            "/data",
            false,
        );
        check("c:/a:/data", MountKind::Bind, Some("c:/a"), "/data", false);
        check(
            "C:\\a:D:\\b:ro",
            MountKind::Bind,
            Some("C:\\a"),
            "D:\\b",
            true,
        );
        assert_eq!(short("a:b:c:d"), None);
        assert_eq!(short(":"), None);
        assert_eq!(short(""), None);
    }
}
