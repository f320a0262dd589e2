//! What a manifest says of backups.

use std::time::Duration;

use landfast_spec::{AppSpec, RepositorySpec, parse};
use landfast_types::{Bytes, EnvironmentName};

fn read(store: &str) -> (Option<AppSpec>, String) {
    let text = format!(
        "app = \"shop\"\n[services.api]\nartifact = \"api\"\ncommand = [\"./api\"]\n\
         uses = [\"main\"]\n[stores.main]\nengine = \"postgres\"\n{store}"
    );
    let production = EnvironmentName::new("production").expect("a name");
    let parsed = parse("landfast.toml", &text, &production);
    let said = parsed.diagnostics.iter();
    let said = said.map(|one| format!("{} {}: {}", one.line, one.code, one.message));
    (parsed.spec, said.collect::<Vec<_>>().join("\n"))
}

fn said(store: &str) -> String {
    read(store).1
}

#[test]
fn a_folder_is_enough_and_everything_else_has_its_default() {
    let (spec, said) = read("backup = { to = \"/backup/shop\" }");
    let spec = spec.unwrap_or_else(|| panic!("{said}"));
    let store = spec.stores.values().next().expect("a store");
    let backup = store.backup.as_ref().expect("backups");
    let path = "/backup/shop".to_owned();
    assert_eq!(backup.to, RepositorySpec::Folder { path });
    assert_eq!(backup.full.as_str(), "0 3 * * * UTC");
    assert_eq!(backup.incremental, None);
    assert_eq!(backup.keep, Duration::from_secs(30 * 86_400));
    assert_eq!(backup.ship, Duration::from_secs(5));
    assert_eq!(backup.busy_rate, Bytes(24 << 20));
    assert_eq!(backup.wal_limit, Bytes(4 << 30));
    assert_eq!(backup.on_wal_limit, landfast_spec::OnWalLimit::Break);
    assert!(backup.drill.checks.is_empty() && backup.secrets().is_empty());
}

#[test]
fn a_bucket_has_its_secrets_and_a_line_without_a_zone_counts_in_utc() {
    let (spec, said) = read(
        "[stores.main.backup]\nto = \"s3://kept/shop/a/\"\nendpoint = \"http://127.0.0.1:9000\"\n\
         full = \"0 4 * * *\"\nincremental = \"0 * * * * Europe/Berlin\"\n\
         [stores.main.backup.drill.checks.rows]\nsql = \"SELECT 1\"\nexpect = \"1\"\n",
    );
    let spec = spec.unwrap_or_else(|| panic!("{said}"));
    let backup = spec
        .stores
        .values()
        .next()
        .and_then(|store| store.backup.as_ref());
    let backup = backup.expect("backups");
    assert_eq!(backup.to.to_string(), "s3://kept/shop/a");
    assert_eq!(backup.full.as_str(), "0 4 * * * UTC");
    assert_eq!(backup.secrets(), ["BACKUP_ACCESS_KEY", "BACKUP_SECRET_KEY"]);
    assert!(matches!(
        &backup.to,
        RepositorySpec::Bucket {
            path_style: true,
            ..
        }
    ));
    assert_eq!(backup.drill.checks["rows"].expect, "1");
    assert!(spec.is_for_landfast("BACKUP_SECRET_KEY") && !spec.is_for_landfast("OTHER"));
}

#[test]
fn what_cannot_be_kept_is_refused_with_its_line() {
    for (store, expected) in [
        ("backup = {}", "`to` is missing"),
        (
            "backup = { to = \"backups\" }",
            "cannot be where backups lie",
        ),
        (
            "backup = { to = \"/a/../b\" }",
            "cannot be where backups lie",
        ),
        (
            "backup = { to = \"s3://UP/x\" }",
            "cannot be where backups lie",
        ),
        (
            "backup = { to = \"s3://kept/a b\" }",
            "cannot be where backups lie",
        ),
        (
            "backup = { to = \"/b\", full = \"often\" }",
            "cannot be `often`",
        ),
        (
            "backup = { to = \"/b\", keep = \"1d\", keep_wal = \"2d\" }",
            "longer than `keep`",
        ),
        (
            "settings = { max_slot_wal_keep_size = \"1GB\" }\nbackup = { to = \"/b\", on_wal_limit = \"stop-writes\" }",
            "follows from `wal_limit`",
        ),
        ("backup = { to = \"/b\", region = \"eu\" }", "has no effect"),
        (
            "backup = { to = \"/b\", wal_limit = \"1MiB\" }",
            "wal_limit",
        ),
        (
            "[stores.main.backup]\nto = \"/b\"\n[stores.main.backup.drill.checks.rows]\nsql = \"SELECT 1\"",
            "`expect` is missing",
        ),
    ] {
        let said = said(store);
        assert!(said.contains(expected), "{store}: {said}");
    }
    let other = said("[stores.cache]\nengine = \"redis\"\nbackup = { to = \"/b\" }");
    assert!(other.contains("not yet: `cache` is Redis"), "{other}");
    let (spec, told) = read("external = { url_secret = \"URL\" }\nbackup = { to = \"/b\" }");
    assert!(
        spec.is_some_and(|spec| spec.backups().count() == 1),
        "{told}"
    );
    let (spec, told) = read("backup = { to = \"/b\", on_wal_limit = \"stop-writes\" }");
    let spec = spec.unwrap_or_else(|| panic!("{told}"));
    let (_, backup) = spec.backups().next().expect("backups");
    assert_eq!(backup.on_wal_limit, landfast_spec::OnWalLimit::StopWrites);
    for key in [
        "busy_rate = \"8MiB\"",
        "ship = \"1s\"",
        "keep_wal = \"1d\"",
        "wal_limit = \"1GiB\"",
        "on_wal_limit = \"stop-writes\"",
    ] {
        let text =
            format!("external = {{ url_secret = \"URL\" }}\nbackup = {{ to = \"/b\", {key} }}");
        let told = said(&text);
        assert!(told.contains("it is dumped"), "{key}: {told}");
    }
}

const TWO: &str = "[services.web]\nartifact = \"web\"\ncommand = [\"./web\"]\n\
    volumes = { uploads = \"/data/uploads\", cache = \"managed\" }\n[jobs.tidy]\nartifact = \"web\"\n\
    command = [\"./tidy\"]\nvolumes = { cache = \"/elsewhere\" }\n";

#[test]
fn a_volume_is_backed_up_by_its_name() {
    let (spec, told) = read(&format!(
        "{TWO}[volumes.uploads.backup]\nto = \"/b\"\nwhen = \"0 * * * *\"\n"
    ));
    let spec = spec.unwrap_or_else(|| panic!("{told}"));
    let (name, volume) = spec.volumes.first_key_value().expect("a volume");
    assert_eq!(name.as_str(), "uploads");
    let path = "/data/uploads".to_owned();
    assert_eq!(volume.place, landfast_spec::Volume::Path { path });
    let when = volume.backup.incremental.as_ref().expect("a line");
    assert_eq!(when.as_str(), "0 * * * * UTC");
    assert_eq!(volume.backup.full.as_str(), "0 2 * * 7 UTC");
    assert_eq!(volume.backup.keep, Duration::from_secs(30 * 86_400));
    for (text, expected) in [
        (
            "[volumes.other.backup]\nto = \"/b\"\n",
            "no service or job has a volume `other`",
        ),
        (
            "[volumes.cache.backup]\nto = \"/b\"\n",
            "`cache` has several places",
        ),
        (
            "[volumes.uploads.backup]\nto = \"b\"\n",
            "cannot be where backups lie",
        ),
        (
            "[volumes.uploads.backup]\nto = \"/b\"\nship = \"1s\"\n",
            "ship",
        ),
        (
            "[volumes.uploads.backup]\nto = \"/b\"\n[stores.uploads]\nengine = \"redis\"\n",
            "a store `uploads` as well",
        ),
    ] {
        let told = said(&format!("{TWO}{text}"));
        assert!(told.contains(expected), "{text}: {told}");
    }
}
