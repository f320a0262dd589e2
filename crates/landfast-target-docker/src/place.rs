//! Where this server is, seen from its daemon: on the daemon's own host, or in one of its containers.
//!
//! What a container is to mount, the daemon looks up on its own host. A server that is itself a container knows folders
//! by other paths, so each is said as the host knows it; one that the host does not share with the server cannot be
//! mounted at all, and is refused by its name. Pure but for the one question which container this is.

use std::path::{Path, PathBuf};

use bollard::models::MountPoint;

use crate::{
    core::{Core, blocking},
    daemon::DaemonError,
    options::Unfit,
};

const MOUNTS: &str = "/proc/self/mountinfo";
/// What every engine puts into a container from a folder that is named after it.
const OWN_FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
const ID_LEN: usize = 64;

/// How paths of this server are called where the daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The same: nothing is between the two.
    Host,
    /// This is a container of the daemon, and these are its mounts, the longest paths first.
    Container(Vec<Shared>),
}

/// Something that is mounted in this container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shared {
    here: PathBuf,
    /// Memory of this container alone has no place there, and hides what is below it.
    on_host: Option<PathBuf>,
}

impl Place {
    /// `memory`: the folders that are memory and are told apart from the mounts.
    fn of(mounts: Vec<MountPoint>, memory: impl IntoIterator<Item = String>) -> Self {
        let shared = mounts.into_iter().filter_map(|mount| {
            let is_memory = mount.typ.as_deref() == Some("tmpfs");
            let source = mount.source.filter(|source| !source.is_empty());
            Some(Shared {
                here: mount.destination?.into(),
                on_host: source.filter(|_| !is_memory).map(PathBuf::from),
            })
        });
        let memory = memory.into_iter().map(|here| Shared {
            here: here.into(),
            on_host: None,
        });
        let mut shared: Vec<_> = shared.chain(memory).collect();
        shared.sort_by_key(|shared| std::cmp::Reverse(shared.here.components().count()));
        Self::Container(shared)
    }

    /// The path by which the daemon mounts what is at this one.
    ///
    /// # Errors
    /// When its host has no such path.
    pub(crate) fn on_host(&self, path: &Path) -> Result<PathBuf, Unfit> {
        let Self::Container(shared) = self else {
            return Ok(path.to_owned());
        };
        let found = shared.iter().find_map(|shared| {
            let below = path.strip_prefix(&shared.here).ok()?;
            Some((shared.on_host.as_ref(), below))
        });
        let on_host = found.and_then(|(on_host, below)| {
            // A file is mounted under its own name, without anything below it.
            let is_whole = below.as_os_str().is_empty();
            on_host.map(|on_host| match is_whole {
                true => on_host.clone(),
                false => on_host.join(below),
            })
        });
        on_host.ok_or_else(|| {
            let path = path.display();
            Unfit(format!(
                "`{path}` is a path of the container that this server runs in, and nothing of the host: mount it there, for example `- {path}:{path}` among its `volumes`"
            ))
        })
    }
}

/// The container this process is in, by where its own files come from.
fn own_container(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        // `id parent device root mount-point …`, proc(5).
        let mut fields = line.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let mut parts = OWN_FILES.contains(&at).then(|| root.split('/'))?;
        parts.find(|part| part.len() == ID_LEN && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
    })
}

impl Core {
    /// Where this server is, found out once: neither moves while it runs.
    pub(crate) async fn place(&self) -> Result<Place, DaemonError> {
        let place = self.place.get_or_try_init(|| self.find_place()).await;
        place.cloned()
    }

    async fn find_place(&self) -> Result<Place, DaemonError> {
        let read = blocking(|| std::fs::read_to_string(MOUNTS)).await;
        let mounts = read.map_err(|error| DaemonError::Away(format!("`{MOUNTS}`: {error}")))?;
        let Some(own) = own_container(&mounts) else {
            return Ok(Place::Host);
        };
        // A daemon that does not know it is taken to have the same paths, as one in the same container has. One of
        // another host need not, and nothing tells the two apart: what it does not find there, it refuses itself.
        let found = self.inspect(own).await?;
        Ok(found.map_or(Place::Host, |found| {
            let options = found.host_config.unwrap_or_default();
            let memory = options.tmpfs.unwrap_or_default().into_keys();
            let place = Place::of(found.mounts.unwrap_or_default(), memory);
            tracing::info!(
                container = own,
                ?place,
                "this server is a container of its daemon"
            );
            place
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f5e6d7c8b9a0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796";

    #[test]
    fn knows_its_container_by_what_the_engine_put_there() {
        let line =
            |root: &str, at: &str| format!("901 880 254:0 {root} {at} rw - ext4 /dev/vda rw\n");
        let docker = format!("/var/lib/docker/containers/{ID}/hostname");
        let podman = format!("/containers/overlay-containers/{ID}/userdata/hosts");
        assert_eq!(own_container(&line(&docker, "/etc/hostname")), Some(ID));
        assert_eq!(own_container(&line(&podman, "/etc/hosts")), Some(ID));
        // A volume may be called anything.
        assert_eq!(own_container(&line(&docker, "/data")), None);
        assert_eq!(own_container(&line("/", "/etc/hostname")), None);
        assert_eq!(own_container(&line("/etc/hostname", "/etc/hostname")), None);
        assert_eq!(own_container("not a line"), None);
    }

    #[test]
    fn says_paths_as_the_daemon_knows_them() {
        let mount = |source: &str, at: &str| MountPoint {
            source: Some(source.to_owned()),
            destination: Some(at.to_owned()),
            ..Default::default()
        };
        let mounts = vec![
            mount("/docker/volumes/state/_data", "/var/lib/landfast"),
            mount("/srv/shop", "/var/lib/landfast/volumes/shop"),
            mount("/srv/app.conf", "/etc/app.conf"),
            mount("", "/var/lib/landfast/volumes/memory"),
            MountPoint {
                typ: Some("tmpfs".to_owned()),
                ..mount("tmpfs", "/srv/app")
            },
        ];
        let place = Place::of(mounts, ["/var/lib/landfast/tmp".to_owned()]);
        let on_host = |path: &str| {
            place
                .on_host(Path::new(path))
                .map(|path| path.display().to_string())
        };
        let ok = |path: &str| Ok(path.to_owned());
        assert_eq!(
            on_host("/var/lib/landfast/a/b"),
            ok("/docker/volumes/state/_data/a/b")
        );
        assert_eq!(
            on_host("/var/lib/landfast"),
            ok("/docker/volumes/state/_data")
        );
        assert_eq!(
            on_host("/var/lib/landfast/volumes/shop/x"),
            ok("/srv/shop/x")
        );
        assert_eq!(on_host("/etc/app.conf"), ok("/srv/app.conf"));
        for path in [
            "/var/lib/landfast-other",
            "/srv/shop",
            "/srv/app/x",
            // Memory hides what the folder around it shares.
            "/var/lib/landfast/volumes/memory",
            "/var/lib/landfast/volumes/memory/x",
            "/var/lib/landfast/tmp/x",
        ] {
            let Unfit(reason) = on_host(path).unwrap_err();
            assert!(reason.contains(&format!("`- {path}:{path}`")), "{reason}");
        }
        assert_eq!(Place::Host.on_host(Path::new("/x")), Ok("/x".into()));
    }
}
