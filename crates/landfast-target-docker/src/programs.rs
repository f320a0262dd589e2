//! What a container holds, looked up before it runs: whether a program is there, and which number a user's name means.

use std::{
    io::Read as _,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bollard::{
    models::ContainerCreateBody,
    query_parameters::{
        ContainerArchiveInfoOptionsBuilder, CreateContainerOptionsBuilder,
        DownloadFromContainerOptionsBuilder,
    },
};
use futures_util::StreamExt as _;
use landfast_types::ImageId;

use crate::{core::Core, daemon::DaemonError, images::Image, name};

/// Where programs are when nobody says, as daemons have it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PASSWD_BYTES_MAX: usize = 1 << 20;

/// Whether a program can be run in a container: a path as it is, a bare word along `PATH`.
pub(crate) async fn is_there(
    core: &Core,
    container: &str,
    image: &Arc<Image>,
    program: &str,
    path: Option<&str>,
) -> Result<bool, DaemonError> {
    for place in places(
        program,
        path.or(image.path.as_deref()),
        &image.working_folder,
    ) {
        if image.is_known_to_hold(&place) || stat(core, container, &place).await? {
            image.holds(&place);
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds programs and files of an image by a container of it that never runs.
pub(crate) async fn find(
    core: &Core,
    id: ImageId,
    image: &Arc<Image>,
    wanted: &[String],
) -> Result<Vec<String>, DaemonError> {
    let path = image.path.as_deref();
    let all = |wanted: &String| places(wanted, path, &image.working_folder);
    let known = |wanted: &String| match all(wanted).as_slice() {
        [place] if image.is_known_to_hold(place) => Some(place.clone()),
        _ => None,
    };
    // What an image was seen to hold, it holds.
    if let Some(known) = wanted.iter().map(known).collect() {
        return Ok(known);
    }
    let look = Look::begin(core, id).await?;
    let looked = async {
        let mut found = Vec::new();
        for wanted in wanted {
            for place in all(wanted) {
                if image.is_known_to_hold(&place) || stat(core, &look.name, &place).await? {
                    image.holds(&place);
                    found.push(place);
                    break;
                }
            }
        }
        Ok(found)
    };
    let found = looked.await;
    look.end(core).await?;
    found
}

/// The number of a name in an image, by a container of it that never runs. Root's where the image does not tell; `None` when it does not
/// know the name.
pub(crate) async fn number_of(
    core: &Core,
    id: ImageId,
    user: &str,
) -> Result<Option<u32>, DaemonError> {
    let look = Look::begin(core, id).await?;
    let passwd = passwd_of(core, &look.name).await;
    look.end(core).await?;
    Ok(match passwd? {
        Passwd::Text(text) => number_in(&text, user),
        Passwd::Missing => None,
        Passwd::Strange => Some(0),
    })
}

/// A container that never runs. One look at a time, since two would share it.
struct Look<'a> {
    name: String,
    _alone: tokio::sync::MutexGuard<'a, ()>,
}

impl<'a> Look<'a> {
    async fn begin(core: &'a Core, id: ImageId) -> Result<Self, DaemonError> {
        let alone = core.looking.lock().await;
        let name = name::look(&core.host, &id);
        let created = core.daemon.call(|client| {
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            let body = ContainerCreateBody {
                image: Some(id.to_string()),
                entrypoint: Some(vec!["/".to_owned()]),
                // Podman looks up the image's user already here, and may not know it.
                user: Some("0".to_owned()),
                labels: Some(name::own_label(&core.host)),
                network_disabled: Some(true),
                ..Default::default()
            };
            async move { client.create_container(Some(options), body).await }
        });
        match created.await {
            // One that was cut short.
            Err(error) if error.is_conflict() => {}
            told => drop(told?),
        }
        Ok(Self {
            name,
            _alone: alone,
        })
    }

    async fn end(self, core: &Core) -> Result<(), DaemonError> {
        core.remove(&self.name).await
    }
}

/// Where a program may be.
fn places(program: &str, path: Option<&str>, working_folder: &str) -> Vec<String> {
    let text = |path: &Path| plain(path).to_string_lossy().into_owned();
    let folder = match working_folder {
        "" => Path::new("/"),
        folder => Path::new(folder),
    };
    if program.contains('/') {
        return vec![text(&folder.join(program))];
    }
    let folders = path
        .unwrap_or(PATH)
        .split(':')
        .filter(|folder| !folder.is_empty());
    folders
        .map(|each| text(&folder.join(each).join(program)))
        .collect()
}

/// A path without `.` and `..`, whatever links it leads through.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::Normal(name) => plain.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    plain
}

async fn stat(core: &Core, container: &str, path: &str) -> Result<bool, DaemonError> {
    let asked = core.daemon.call(|client| {
        let options = ContainerArchiveInfoOptionsBuilder::default()
            .path(path)
            .build();
        let container = container.to_owned();
        async move {
            client
                .get_container_archive_info(&container, Some(options))
                .await
        }
    });
    match asked.await {
        Ok(_) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The number of an image's user. `None` when its name is nowhere.
pub(crate) async fn user_of(
    core: &Core,
    container: &str,
    image: &Arc<Image>,
) -> Result<Option<u32>, DaemonError> {
    let user = image.facts.user.split(':').next().unwrap_or("");
    if image.facts.is_root() {
        return Ok(Some(0));
    }
    if let Ok(number) = user.parse() {
        return Ok(Some(number));
    }
    Ok(match passwd_of(core, container).await? {
        Passwd::Text(text) => number_in(&text, user),
        Passwd::Missing | Passwd::Strange => None,
    })
}

/// Where an image names its users.
enum Passwd {
    Text(String),
    Missing,
    /// No file, or no text, or too large for one.
    Strange,
}

async fn passwd_of(core: &Core, container: &str) -> Result<Passwd, DaemonError> {
    // The whole of it in one wait: locks are held meanwhile.
    let read = core.daemon.call(|client| {
        let options = DownloadFromContainerOptionsBuilder::default()
            .path("/etc/passwd")
            .build();
        let mut stream = client.download_from_container(container, Some(options));
        async move {
            let mut bytes = Vec::new();
            while let Some(piece) = stream.next().await {
                let piece = piece?;
                if bytes.len() + piece.len() > PASSWD_BYTES_MAX {
                    return Ok(None);
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(Some(bytes))
        }
    });
    match read.await {
        Ok(bytes) => {
            let text = bytes.as_deref().and_then(passwd_in);
            Ok(text.map_or(Passwd::Strange, Passwd::Text))
        }
        Err(error) if error.is_missing() => Ok(Passwd::Missing),
        Err(error) => Err(error),
    }
}

/// A link leads somewhere else, and has no text.
fn passwd_in(archive: &[u8]) -> Option<String> {
    let mut archive = tar::Archive::new(archive);
    let mut entry = archive.entries().ok()?.next()?.ok()?;
    if !entry.header().entry_type().is_file() {
        return None;
    }
    let mut text = String::new();
    entry.read_to_string(&mut text).ok()?;
    Some(text)
}

fn number_in(passwd: &str, user: &str) -> Option<u32> {
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(user))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_where_the_kernel_or_a_path_would() {
        assert_eq!(places("/bin/app", None, "/x"), ["/bin/app"]);
        assert_eq!(places("./app", None, "/srv"), ["/srv/app"]);
        assert_eq!(places("../app", None, "/srv/a"), ["/srv/app"]);
        assert_eq!(places("./app", None, ""), ["/app"]);
        assert_eq!(places("app", Some("/a::/b"), ""), ["/a/app", "/b/app"]);
        assert_eq!(places("app", None, "").len(), 6);
    }

    #[test]
    fn reads_numbers_of_users() {
        let passwd = "root:x:0:0::/:/bin/sh\nnginx:x:101:102::/:/bin/false\n";
        assert_eq!(number_in(passwd, "nginx"), Some(101));
        assert_eq!(number_in(passwd, "ngin"), None);
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(passwd.len() as u64);
        header.set_mode(0o644);
        let mut archive = tar::Builder::new(Vec::new());
        archive
            .append_data(&mut header, "passwd", passwd.as_bytes())
            .unwrap();
        assert_eq!(
            passwd_in(&archive.into_inner().unwrap()).as_deref(),
            Some(passwd)
        );
    }
}
