//! What runs as a container: which image, where it comes from, and what only containers have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use landfast_types::{Bytes, Cpu, ImageReference};
use serde::{Deserialize, Serialize};

use crate::{
    code::Code, cursor::Cursor, delivery::SecretDelivery, diagnostic::Problem, leaf::Scalar,
    spec::fingerprint, tree::Value,
};

/// A process that runs from an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub source: ImageSource,
    /// In place of the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// What it is promised, beside what it may use at most.
    #[serde(default, skip_serializing_if = "ReserveSpec::is_nothing")]
    pub reserve: ReserveSpec,
    /// Where volumes are in the container, by their names, where the manifest says it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, String>,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ImageSource {
    /// By its name.
    Image { name: ImageReference, pull: Pull },
    /// Made before the deploy, where the manifest is.
    Build(BuildSpec),
}

impl ImageSource {
    /// What a release calls its image by: equal for what is the same image. It is shown to people.
    pub fn key(&self) -> String {
        match self {
            Self::Image { name, .. } => name.to_string(),
            Self::Build(build) if *build == BuildSpec::of(&build.context) => {
                format!("build:{}", build.context)
            }
            Self::Build(build) => {
                let mark = fingerprint(build).to_string();
                format!("build:{}#{}", build.context, &mark[..8])
            }
        }
    }
}

/// When a registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pull {
    /// At each deploy; what is on the host is taken where there is no registry to be asked.
    #[default]
    Newer,
    /// Where the host has none of this name.
    Missing,
    /// At each deploy, and without an answer there is none.
    Always,
    /// Never: the image is on the host.
    Never,
}

impl Pull {
    /// The words in the manifest.
    pub const WORDS: &[&str] = &["newer", "missing", "always", "never"];

    /// The word in the manifest.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Newer => "newer",
            Self::Missing => "missing",
            Self::Always => "always",
            Self::Never => "never",
        }
    }

    /// Reads the word.
    pub fn from_word(word: &str) -> Option<Self> {
        let all = [Self::Newer, Self::Missing, Self::Always, Self::Never];
        all.into_iter().find(|one| one.word() == word)
    }
}

/// How an image is made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct BuildSpec {
    /// The folder, as it is written in the manifest.
    pub context: String,
    /// From the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// The stage that is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// Names of secrets that steps of the build may read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

impl BuildSpec {
    /// The build of a folder about which nothing else is said.
    pub fn of(context: &str) -> Self {
        Self {
            context: context.to_owned(),
            ..Self::default()
        }
    }
}

/// What is kept for an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReserveSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
}

impl ReserveSpec {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Who a registry is asked as.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrySpec {
    pub user_secret: String,
    pub password_secret: String,
}

impl fmt::Debug for RegistrySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {}", self.user_secret, self.password_secret)
    }
}

/// Keys that name what is run; a process has one of them.
pub(crate) const CONTENT: [&str; 3] = ["artifact", "image", "build"];
/// Keys that only containers have.
const CONTAINER_KEYS: [&str; 3] = ["pull", "entrypoint", "reserve"];
const CONTAINER_SANDBOX: [&str; 4] = ["root", "writable", "tmpfs", "capabilities"];
const PROCESS_SANDBOX: [&str; 4] = ["user", "files", "read_only", "read_write"];

/// What a process is made of: an artifact, or a container. Reports what contradicts that.
pub(crate) fn content(
    what: &str,
    name: &str,
    at: &Cursor<'_>,
) -> (Option<String>, Option<ContainerSpec>) {
    let given: Vec<_> = CONTENT.into_iter().filter(|key| at.has(key)).collect();
    let named = format!("{what} `{name}`");
    if let [_, second, ..] = given[..] {
        let all = given.iter().map(|key| format!("`{key}`"));
        let all = all.collect::<Vec<_>>().join(" and ");
        let message = format!("{named} has {all}, and runs from one of them");
        let problem = Problem::new(Code::OneContent, at.key_span(second), message);
        at.report(problem.help("keep one of them; an overlay that names one replaces the others"));
    }
    if given.is_empty() {
        let message = format!("{named} names nothing to run");
        let problem = Problem::new(Code::OneContent, at.at(), message);
        let artifact = "artifact = \"target/release/app\" (a plain process)";
        at.report(problem.help(format!(
            "{artifact}, image = \"nginx:1.27\" or build = \".\" (a container)"
        )));
    }
    let artifact = at.text("artifact");
    let is_container = at.has("image") || at.has("build");
    match (is_container, at.has("artifact")) {
        (true, false) => foreign(&named, at, true),
        (false, true) => foreign(&named, at, false),
        (true, true) | (false, false) => {}
    }
    let mounts = mounts(&named, at, is_container);
    if !is_container {
        return (artifact, None);
    }
    let pull = at.text("pull").and_then(|word| Pull::from_word(&word));
    if let Some(span) = at.has("build").then(|| at.key_span("pull"))
        && at.has("pull")
    {
        let message = "`pull` has no effect on an image that is built here";
        let problem = Problem::new(Code::NoEffect, span, message);
        at.report(problem.help("remove it"));
    }
    let source = match at.has("build") {
        true => build(at).map(ImageSource::Build),
        false => at.text("image").and_then(|text| {
            let name = text.parse().ok()?;
            let pull = pull.unwrap_or_default();
            Some(ImageSource::Image { name, pull })
        }),
    };
    let reserve = at.table("reserve");
    let spec = source.map(|source| ContainerSpec {
        source,
        entrypoint: at.texts("entrypoint"),
        reserve: ReserveSpec {
            cpu: reserve.cpu("cpu"),
            memory: reserve.bytes("memory"),
        },
        mounts,
    });
    (None, spec)
}

/// Keys of the other kind of process.
fn foreign(named: &str, at: &Cursor<'_>, is_container: bool) {
    let sandbox = at.table("sandbox");
    let refuse = |cursor: &Cursor<'_>, place: &str, key: &str| {
        let span = cursor.key_span(key);
        let problem = match is_container {
            true => Problem::new(
                Code::ProcessOnly,
                span,
                format!("`{place}{key}` is for plain processes, and {named} is a container"),
            )
            .help("a container is kept from the host by itself: `sandbox` takes root, writable, tmpfs and capabilities"),
            false => Problem::new(
                Code::ContainerOnly,
                span,
                format!("`{place}{key}` is for containers, and {named} is a plain process"),
            )
            .help("remove it, or write `image` or `build` in the place of `artifact`"),
        };
        cursor.report(problem);
    };
    let (own, inner): (&[&str], &[&str]) = match is_container {
        true => (&[], &PROCESS_SANDBOX),
        false => (&CONTAINER_KEYS, &CONTAINER_SANDBOX),
    };
    own.iter()
        .filter(|key| at.has(key))
        .for_each(|key| refuse(at, "", key));
    inner
        .iter()
        .filter(|key| sandbox.has(key))
        .for_each(|key| refuse(&sandbox, "sandbox.", key));
}

/// Where volumes are in the container, as far as the manifest says so.
fn mounts(named: &str, at: &Cursor<'_>, is_container: bool) -> BTreeMap<String, String> {
    let volumes = at.table("volumes");
    let mut taken = BTreeMap::<String, String>::new();
    let each = volumes.entries().filter_map(|(name, entry)| {
        entry.node.value.as_table()?;
        let inner = volumes.variable(entry);
        let path = inner.text("at");
        if inner.has("at") && !is_container && at.has("artifact") {
            let message =
                format!("`volumes.{name}.at` is for containers, and {named} is a plain process");
            let problem = Problem::new(Code::ContainerOnly, inner.key_span("at"), message);
            at.report(problem.help(format!(
                "it finds the folder in VOLUME_{}",
                name.to_uppercase().replace('-', "_")
            )));
        }
        let path = path?.trim_end_matches('/').to_owned();
        if let Some(problem) = mount_problem(&path, &inner) {
            at.report(problem);
            return None;
        }
        if let Some(other) = taken.insert(path.clone(), name.to_owned()) {
            let message = format!("the volumes `{other}` and `{name}` are both at `{path}`");
            let problem = Problem::new(Code::BadPath, inner.span("at"), message);
            at.report(problem.help("give each a path of its own"));
        }
        Some((name.to_owned(), path))
    });
    each.collect()
}

/// Places in a container that are not a volume's.
fn mount_problem(path: &str, at: &Cursor<'_>) -> Option<Problem> {
    const KEPT: [&str; 5] = ["/proc", "/sys", "/dev", "/run/secrets", "/etc"];
    let is_kept = |kept: &str| match kept {
        // What an app keeps below it is the app's.
        "/etc" => path == kept,
        _ => path == kept || path.starts_with(&format!("{kept}/")),
    };
    let kept = KEPT.into_iter().find(|kept| is_kept(kept))?;
    let message = format!("a volume cannot be at `{path}`: `{kept}` is not the app's");
    let problem = Problem::new(Code::BadPath, at.span("at"), message);
    Some(problem.help("for example at = \"/data\""))
}

fn build(at: &Cursor<'_>) -> Option<BuildSpec> {
    let entry = at.entry("build")?;
    if let Value::Text(text) = &entry.node.value {
        return Some(BuildSpec::of(text));
    }
    let at = at.table("build");
    let args = at.table("args");
    let each = args.entries().filter_map(|(name, entry)| {
        let Scalar { text, .. } = args.scalar(name, entry)?;
        if crate::decode::looks_secret(name, &text) {
            let message =
                format!("`{name}` looks like a secret, and build arguments stay in the image");
            let problem = Problem::new(Code::LikelySecret, entry.key_span.clone(), message);
            at.report(problem.help(format!(
                "`landfast secret set {name}`, and secrets = [\"{name}\"] in `build`"
            )));
        }
        Some((name.to_owned(), text))
    });
    let args = each.collect();
    let context = at.text("context");
    Some(BuildSpec {
        context: context.unwrap_or_else(|| at.default_text("context").to_owned()),
        dockerfile: at.text("dockerfile"),
        target: at.text("target"),
        args,
        secrets: at.texts("secrets").unwrap_or_default(),
        platform: at.text("platform"),
    })
}

/// Warns of secrets that everybody sees who may ask Docker.
pub(crate) fn shown_secrets(
    what: &str,
    name: &str,
    at: &Cursor<'_>,
    delivery: SecretDelivery,
    unvalued: &[&str],
) {
    let problem = match (delivery, unvalued) {
        (SecretDelivery::Files, []) => return,
        (SecretDelivery::Environment, _) => Problem::new(
            Code::SecretsShown,
            at.span("secrets"),
            format!("the secrets of {what} `{name}` are shown by `docker inspect`"),
        ),
        (SecretDelivery::Files, [first, ..]) => Problem::new(
            Code::SecretsShown,
            at.table("env").key_span(first),
            format!(
                "where a secret gives `{}` its value, `docker inspect` shows it",
                unvalued.join("`, `")
            ),
        ),
    };
    at.report(problem.help("as files they are in memory alone, and `NAME_FILE` says where"));
}

/// The registries that are asked with a login.
pub(crate) fn registries(root: &Cursor<'_>) -> Option<BTreeMap<String, RegistrySpec>> {
    let tables = root.tables("registries");
    let read: Vec<_> = tables
        .iter()
        .map(|(host, at)| {
            let (user, password) = (at.text("user_secret"), at.text("password_secret"));
            let spec = RegistrySpec {
                user_secret: user?,
                password_secret: password?,
            };
            Some(((*host).to_owned(), spec))
        })
        .collect();
    read.into_iter().collect()
}

/// The secrets that must be there for an image to come here.
pub(crate) fn registry_secrets(
    registries: &BTreeMap<String, RegistrySpec>,
) -> impl Iterator<Item = &str> {
    let secrets = registries.values();
    secrets.flat_map(|one| [one.user_secret.as_str(), one.password_secret.as_str()])
}

/// What a container may do that it may not by itself, as Linux calls it, without `CAP_`.
pub const CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Each source of an image of an app, once, with the names of what runs from it.
pub(crate) fn sources<'a>(
    used: impl Iterator<Item = (String, &'a ImageSource)>,
) -> BTreeMap<String, (&'a ImageSource, BTreeSet<String>)> {
    let mut sources = BTreeMap::new();
    for (name, source) in used {
        let entry = sources.entry(source.key());
        let (_, users): &mut (&ImageSource, BTreeSet<String>) =
            entry.or_insert_with(|| (source, BTreeSet::new()));
        users.insert(name);
    }
    sources
}
