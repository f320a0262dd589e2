//! Volumes and temporary folders of a service.

use std::collections::BTreeMap;

use crate::{
    compose::{
        Converter,
        volumes::{self, Mount, MountKind},
    },
    draft::{Table, Toml},
    ledger::At,
    slug,
};

/// Places of the host that an app has no business in.
const HOST_PLACES: &[&str] = &[
    "/",
    "/proc",
    "/sys",
    "/dev",
    "/etc",
    "/run",
    "/var/run",
    "/boot",
    "/root",
    "/home",
    "/var",
    "/usr",
    "/bin",
    "/lib",
    "/var/log",
    "/var/lib/docker",
    "/sbin",
    "/cgroup",
];

/// Places in a container that the manifest leaves to the system.
const KEPT: &[&str] = &["/proc", "/sys", "/dev", "/run/secrets"];

/// Whether a volume can be there in a container.
pub(crate) fn is_mount_target(target: &str) -> bool {
    let target = target.trim_end_matches('/');
    let is_kept = |kept: &&str| target == *kept || target.starts_with(&format!("{kept}/"));
    target.starts_with('/')
        && target != "/etc"
        && !target.contains([':', ','])
        && !target.contains(char::is_control)
        && !target.split('/').any(|part| part == "." || part == "..")
        && !KEPT.iter().any(is_kept)
}

impl Converter<'_> {
    /// Names of volumes that services use or the file declares.
    pub(super) fn name_volumes(&mut self, root: &At<'_>) {
        for (name, _) in root.get("volumes").iter().flat_map(At::fields) {
            self.volume_name(name);
        }
    }

    fn volume_name(&mut self, source: &str) -> String {
        if let Some(name) = self.volumes.get(source) {
            return name.clone();
        }
        let name = crate::free_name(source, &self.volumes);
        self.volumes.insert(source.to_owned(), name.clone());
        name
    }

    pub(super) fn mounts(&mut self, own: &str, at: &At<'_>, table: &mut Table) {
        let mut mounted = BTreeMap::<String, Toml>::new();
        let mut tmpfs = Vec::new();
        let mut targets = Vec::new();
        for item in at.get("volumes").iter().flat_map(At::items) {
            let Some(mount) = volumes::read(&item) else {
                self.ledger.wrong(&item, "a volume such as `data:/data`");
                continue;
            };
            if mount.kind == MountKind::Tmpfs {
                tmpfs.push((mount.target.clone(), item));
                continue;
            }
            match self.place(own, &mount) {
                Ok((name, from)) => {
                    let target = mount.target.trim_end_matches('/').to_owned();
                    if mounted.contains_key(&name) || targets.contains(&target) {
                        self.ledger.not_carried(
                            &item,
                            "a volume is at one place of a container",
                            "name another volume, or a folder of this one",
                        );
                        continue;
                    }
                    targets.push(target);
                    let fields = [("from", from), ("at", mount.target.clone())];
                    let fields = fields.map(|(key, text)| (key.to_owned(), Toml::Text(text)));
                    mounted.insert(name.clone(), Toml::Inline(fields.to_vec()));
                    self.mount_keys(&item, &mount, &name);
                }
                Err((reason, instead)) => self.ledger.not_carried(&item, reason, instead),
            }
        }
        for (text, item) in at.get("tmpfs").iter().flat_map(At::texts) {
            let (path, options) = text.split_once(':').unwrap_or((&text, ""));
            if !options.is_empty() {
                let mut pseudo = item.clone();
                pseudo.path.push_str(":options");
                self.ledger.not_carried(
                    &pseudo,
                    "a folder in memory counts to the service's memory, and has no options",
                    "limit `resources.memory`",
                );
            }
            tmpfs.push((path.to_owned(), item));
        }
        let mut paths = Vec::new();
        for (path, item) in tmpfs {
            let clean = path.trim_end_matches('/').to_owned();
            let fits = path.starts_with('/')
                && !clean.is_empty()
                && !clean.contains(char::is_control)
                && !clean.split('/').any(|part| part == "..")
                && !KEPT.contains(&clean.as_str());
            if clean == "/tmp" {
                self.ledger.replaced(&item, "`/tmp` is in memory by itself");
            } else if fits {
                if !paths.contains(&clean) {
                    paths.push(clean);
                }
                self.tmpfs_keys(&item);
            } else {
                self.ledger.wrong(&item, "an absolute path");
            }
        }
        if !mounted.is_empty() {
            table.set("volumes", Toml::Inline(mounted.into_iter().collect()));
        }
        if !paths.is_empty() {
            table.set_in("sandbox", "tmpfs", Toml::texts(paths));
        }
    }

    /// The volume's name and where its folder is; or why not.
    fn place(&mut self, own: &str, mount: &Mount) -> Result<(String, String), (String, String)> {
        let target = mount.target.trim_end_matches('/');
        if !is_mount_target(target) {
            return Err((
                format!("`{}` is no place for a volume", mount.target),
                "mount it elsewhere".to_owned(),
            ));
        }
        match (mount.kind, &mount.source) {
            (MountKind::Volume, Some(source)) => {
                Ok((self.volume_name(source), "managed".to_owned()))
            }
            (MountKind::Volume, None) => {
                let name = slug(&format!("{own}{}", target.replace('/', "-")))
                    .unwrap_or_else(|| own.to_owned());
                Ok((self.volume_name(&name), "managed".to_owned()))
            }
            (MountKind::Bind, Some(source)) => self.bind(own, source, target),
            (MountKind::Bind | MountKind::Tmpfs | MountKind::Other, _) => Err((
                "a manifest knows volumes and folders of the host".to_owned(),
                "put what it holds into the image or a volume".to_owned(),
            )),
        }
    }

    fn bind(
        &mut self,
        own: &str,
        source: &str,
        target: &str,
    ) -> Result<(String, String), (String, String)> {
        let clean = source.trim_end_matches('/');
        if clean.ends_with("docker.sock") {
            return Err((
                "whoever has Docker's socket is root on the host".to_owned(),
                "do without it: Landfast finds instances, routes and logs by itself".to_owned(),
            ));
        }
        if source.contains(".localtime") || clean == "/etc/localtime" || clean == "/etc/timezone" {
            return Err((
                "the host's time zone is not the app's".to_owned(),
                "env = { TZ = \"Europe/Berlin\" }".to_owned(),
            ));
        }
        let below = |place: &str| {
            clean == place
                || (place.len() > 1
                    && clean.starts_with(&format!("{place}/"))
                    && !matches!(place, "/var" | "/home" | "/usr"))
        };
        if source.starts_with('/')
            && (clean.is_empty() || HOST_PLACES.iter().any(|place| below(place)))
        {
            return Err((
                format!("`{source}` lays bare the host"),
                "run what looks at the host on the host itself".to_owned(),
            ));
        }
        if !source.starts_with('/') || clean.split('/').any(|part| part == "..") {
            return Err((
                format!(
                    "`{source}` is a path of the machine that docker-compose ran on, beside the file"
                ),
                format!(
                    "COPY it into the image, or put it on the server and write volumes = {{ NAME = {{ from = \"/…\", at = \"{target}\" }} }}"
                ),
            ));
        }
        let name = slug(&format!("{own}{}", target.replace(['/', '.'], "-")))
            .unwrap_or_else(|| own.to_owned());
        let name = self.volume_name(&format!("{name}={clean}"));
        Ok((name, clean.to_owned()))
    }

    fn mount_keys(&mut self, item: &At<'_>, mount: &Mount, name: &str) {
        let to = format!("volumes.{name}");
        let read_only = (
            "a volume of the manifest is writable",
            "the app leaves it alone",
        );
        if !item.node.is_map() {
            self.ledger.carried(item, to);
            let text = item.text().unwrap_or_default();
            let mode = text
                .rsplit(':')
                .next()
                .filter(|mode| !mode.contains('/') && text.matches(':').count() > 1);
            for word in mode.into_iter().flat_map(|mode| mode.split(',')) {
                let mut pseudo = item.clone();
                pseudo.path.push_str(&format!(":{word}"));
                match word {
                    "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {
                        self.ledger.replaced(&pseudo, "as it is anyway")
                    }
                    "ro" => self.ledger.not_carried(&pseudo, read_only.0, read_only.1),
                    _ => self.ledger.not_carried(
                        &pseudo,
                        "a volume has no such option",
                        "nothing is to be done",
                    ),
                }
            }
            return;
        }
        for (key, value) in item.fields() {
            match key {
                "type" | "source" | "src" | "target" | "destination" => {
                    self.ledger.carried(&value, to.as_str())
                }
                "read_only" if !mount.read_only => self.ledger.carried(&value, to.as_str()),
                "read_only" => self.ledger.not_carried(&value, read_only.0, read_only.1),
                "consistency" => self.ledger.replaced(&value, "as it is anyway"),
                _ => self.ledger.not_carried(
                    &value,
                    "a volume has no such option",
                    "nothing is to be done",
                ),
            }
        }
    }

    fn tmpfs_keys(&mut self, item: &At<'_>) {
        let to = "sandbox.tmpfs";
        if !item.node.is_map() {
            self.ledger.carried(item, to);
            return;
        }
        for (key, value) in item.fields() {
            match key {
                "type" | "target" => self.ledger.carried(&value, to),
                _ => self.ledger.not_carried(
                    &value,
                    "a folder in memory counts to the service's memory, and has no options",
                    "limit `resources.memory`",
                ),
            }
        }
    }
}
