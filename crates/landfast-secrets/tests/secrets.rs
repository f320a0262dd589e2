//! Envelopes, key files and versions, with real keys.

#![cfg(test)]

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use landfast_secrets::{
    Context, KeyError, KeySource, Origin, RewrapError, Sealed, UnsealError, VERSIONS_KEPT, Vault,
    VersionedSecret, VersionsError,
};
use landfast_types::{AppName, EnvironmentName, Scope, Secret, Timestamp};
use tempfile::TempDir;

const VALUE: &str = "correct horse battery staple é";

fn scope(app: &str, environment: &str) -> Scope {
    let (app, environment) = (
        AppName::new(app).unwrap(),
        EnvironmentName::new(environment).unwrap(),
    );
    Scope { app, environment }
}

fn vault() -> (TempDir, PathBuf, Vault) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secrets.key");
    let vault = Vault::create_key(&path).unwrap();
    (folder, path, vault)
}

fn secret() -> Secret<String> {
    Secret::new(VALUE.to_owned())
}

#[test]
fn opens_what_it_sealed_also_after_a_restart() {
    let (_folder, path, vault) = vault();
    let scope = scope("shop", "production");
    let context = Context {
        scope: &scope,
        name: "TOKEN",
        version: 1,
    };
    let sealed = vault.seal(&context, &secret()).unwrap();
    let stored = serde_json::to_string(&sealed).unwrap();
    assert_eq!(vault.unseal(&context, &sealed).unwrap(), secret());
    let later = Vault::open_key(&path).unwrap();
    let sealed: Sealed = serde_json::from_str(&stored).unwrap();
    assert_eq!(later.unseal(&context, &sealed).unwrap().reveal(), VALUE);
    assert_eq!(later.key_id(), sealed.key_id());
    let empty = vault.seal(&context, &Secret::new(String::new())).unwrap();
    assert_eq!(vault.unseal(&context, &empty).unwrap().reveal(), "");
}

#[test]
fn seals_the_same_value_differently_each_time() {
    let (_folder, _, vault) = vault();
    let scope = scope("shop", "production");
    let context = Context {
        scope: &scope,
        name: "TOKEN",
        version: 1,
    };
    let sealed: BTreeSet<String> = (0..50)
        .map(|_| serde_json::to_string(&vault.seal(&context, &secret()).unwrap()).unwrap())
        .collect();
    assert_eq!(sealed.len(), 50);
}

#[test]
fn refuses_an_envelope_with_any_byte_changed() {
    let (_folder, _, vault) = vault();
    let scope = scope("shop", "production");
    let context = Context {
        scope: &scope,
        name: "TOKEN",
        version: 1,
    };
    let sound = serde_json::to_vec(&vault.seal(&context, &secret()).unwrap()).unwrap();
    let mut tried = 0;
    for place in 0..sound.len() {
        for flip in [0x01, 0x02, 0x20, 0x80] {
            let mut bytes = sound.clone();
            bytes[place] ^= flip;
            tried += 1;
            let Ok(sealed) = serde_json::from_slice::<Sealed>(&bytes) else {
                continue;
            };
            let opened = vault.unseal(&context, &sealed);
            assert!(opened.is_err(), "byte {place} ^ {flip:#x} went unseen");
        }
    }
    // Shorter envelopes, down to nothing.
    let sealed: serde_json::Value = serde_json::from_slice(&sound).unwrap();
    for field in ["data_key", "value"] {
        let text = sealed[field].as_str().unwrap();
        for length in (0..text.len()).step_by(2) {
            let mut cut = sealed.clone();
            cut[field] = text[..length].into();
            let cut: Sealed = serde_json::from_value(cut).unwrap();
            let refused = vault.unseal(&context, &cut);
            assert!(
                matches!(refused, Err(UnsealError::Refused { .. })),
                "{field} cut to {length}"
            );
            tried += 1;
        }
    }
    println!("{tried} changed envelopes refused");
}

#[test]
fn opens_nothing_in_another_place() {
    let (_folder, _, vault) = vault();
    let home = scope("shop", "production");
    let context = Context {
        scope: &home,
        name: "TOKEN",
        version: 3,
    };
    let sealed = vault.seal(&context, &secret()).unwrap();
    let others = [
        scope("shop", "staging"),
        scope("other", "production"),
        scope("sho", "pproduction"),
    ];
    for scope in &others {
        let refused = vault.unseal(&Context { scope, ..context }, &sealed);
        assert!(
            matches!(refused, Err(UnsealError::Refused { .. })),
            "{scope}"
        );
    }
    for (name, version) in [("TOKEM", 3), ("TOKEN", 2), ("TOKEN", 4), ("", 3)] {
        let refused = vault.unseal(
            &Context {
                name,
                version,
                ..context
            },
            &sealed,
        );
        assert!(
            matches!(refused, Err(UnsealError::Refused { .. })),
            "{name} {version}"
        );
    }
}

#[test]
fn does_not_mix_the_parts_of_two_envelopes() {
    let (_folder, _, vault) = vault();
    let scope = scope("shop", "production");
    let context = Context {
        scope: &scope,
        name: "TOKEN",
        version: 1,
    };
    let json = |value: &str| {
        let sealed = vault
            .seal(&context, &Secret::new(value.to_owned()))
            .unwrap();
        serde_json::to_value(sealed).unwrap()
    };
    let (mut first, second) = (json("one"), json("two"));
    first["value"] = second["value"].clone();
    let mixed: Sealed = serde_json::from_value(first).unwrap();
    assert!(vault.unseal(&context, &mixed).is_err());
}

#[test]
fn names_both_keys_when_the_wrong_one_is_held() {
    let (_a, _, vault) = vault();
    let (_b, _, other) = self::vault();
    let scope = scope("shop", "production");
    let context = Context {
        scope: &scope,
        name: "TOKEN",
        version: 1,
    };
    let sealed = vault.seal(&context, &secret()).unwrap();
    let error = other.unseal(&context, &sealed).unwrap_err();
    let (needed, held) = (vault.key_id(), other.key_id());
    assert_eq!(
        error,
        UnsealError::OtherKey {
            name: "TOKEN".into(),
            needed,
            held
        }
    );
    let text = error.to_string();
    assert!(
        text.contains(&needed.to_string()) && text.contains(&held.to_string()),
        "{text}"
    );
}

#[test]
fn moves_an_envelope_to_a_new_key_without_opening_it() {
    let (_a, _, old) = vault();
    let (_b, _, new) = vault();
    let scope = scope("shop", "production");
    let context = Context {
        scope: &scope,
        name: "TOKEN",
        version: 1,
    };
    let sealed = old.seal(&context, &secret()).unwrap();
    let moved = new.rewrap(&old, &context, &sealed).unwrap();
    assert_eq!(new.unseal(&context, &moved).unwrap().reveal(), VALUE);
    assert!(old.unseal(&context, &moved).is_err());
    let value = |sealed| serde_json::to_value(sealed).unwrap()["value"].clone();
    assert_eq!(
        value(&sealed),
        value(&moved),
        "the value was encrypted anew"
    );
    let refused = new.rewrap(
        &old,
        &Context {
            version: 2,
            ..context
        },
        &sealed,
    );
    assert!(matches!(
        refused,
        Err(RewrapError::Unseal(UnsealError::Refused { .. }))
    ));
}

#[test]
fn prints_neither_value_nor_key() {
    let (_folder, path, vault) = vault();
    let file = fs::read_to_string(&path).unwrap();
    let key = file.lines().last().unwrap().strip_prefix("key ").unwrap();
    assert_eq!(key.len(), 64);
    let scope = scope("shop", "production");
    let context = Context {
        scope: &scope,
        name: "TOKEN",
        version: 1,
    };
    let sealed = vault.seal(&context, &secret()).unwrap();
    let opened = vault.unseal(&context, &sealed).unwrap();
    let error = vault
        .unseal(
            &Context {
                version: 2,
                ..context
            },
            &sealed,
        )
        .unwrap_err();
    let mut versions = VersionedSecret::default();
    versions
        .add(
            Timestamp::EPOCH,
            1,
            sealed.clone(),
            Origin::Set,
            &BTreeSet::new(),
        )
        .unwrap();
    let printed = format!(
        "{vault:?} {sealed:?} {opened:?} {opened} {error} {error:?} {versions:?} {}",
        serde_json::to_string(&versions).unwrap()
    );
    assert!(
        !printed.contains("horse") && !printed.contains(key),
        "{printed}"
    );
    assert!(
        !printed.contains(
            &VALUE
                .bytes()
                .map(|b| format!("{b:02x}"))
                .collect::<String>()
        )
    );
}

#[test]
fn keeps_the_key_file_to_its_owner() {
    let (folder, path, vault) = vault();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "an unfinished file stayed"
    );
    for mode in [0o640, 0o604, 0o660, 0o610, 0o602] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = Vault::open_key(&path).unwrap_err();
        assert!(
            matches!(error, KeyError::Exposed { mode: found, .. } if found == mode),
            "{error}"
        );
        assert!(error.hint().contains("chmod 600"));
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    assert_eq!(Vault::open_key(&path).unwrap().key_id(), vault.key_id());
}

#[test]
fn never_replaces_a_key() {
    let (_folder, path, vault) = vault();
    let before = fs::read(&path).unwrap();
    assert!(matches!(
        Vault::create_key(&path),
        Err(KeyError::Exists { .. })
    ));
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(
        Vault::open_or_create_key(&path).unwrap().key_id(),
        vault.key_id()
    );
    let other = path.with_file_name("other.key");
    assert!(matches!(
        Vault::open_key(&other),
        Err(KeyError::Missing { .. })
    ));
    assert_ne!(
        Vault::open_or_create_key(&other).unwrap().key_id(),
        vault.key_id()
    );
    let nowhere = path.with_file_name("no").join("folder.key");
    assert!(matches!(
        Vault::create_key(&nowhere),
        Err(KeyError::Io { .. })
    ));
}

#[test]
fn many_that_start_at_once_agree_on_one_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secrets.key");
    let ids: BTreeSet<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| Vault::open_or_create_key(&path).unwrap().key_id()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "an unfinished file stayed"
    );
}

#[test]
fn refuses_a_damaged_key_file() {
    let (_folder, path, _) = vault();
    let sound = fs::read(&path).unwrap();
    for place in 0..sound.len() - 1 {
        let mut bytes = sound.clone();
        bytes[place] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let refused = Vault::open_key(&path);
        assert!(
            matches!(refused, Err(KeyError::Damaged { .. })),
            "byte {place}: {refused:?}"
        );
    }
    for length in [0, 10, sound.len() - 2] {
        fs::write(&path, &sound[..length]).unwrap();
        assert!(matches!(
            Vault::open_or_create_key(&path),
            Err(KeyError::Damaged { .. })
        ));
    }
    fs::write(&path, [0xff; 40]).unwrap();
    assert!(matches!(
        Vault::open_key(&path),
        Err(KeyError::Damaged { .. })
    ));
}

/// A secret with `count` versions, each sealed under its own number.
fn versions(vault: &Vault, count: u64, pinned: &BTreeSet<u64>) -> VersionedSecret {
    let scope = scope("shop", "production");
    let mut secret = VersionedSecret::default();
    for version in 1..=count {
        assert_eq!(secret.next(), version);
        let context = Context {
            scope: &scope,
            name: "TOKEN",
            version,
        };
        let sealed = vault
            .seal(&context, &Secret::new(format!("value {version}")))
            .unwrap();
        let now = Timestamp::from_millis(i64::try_from(version).unwrap());
        secret
            .add(now, version, sealed, Origin::Set, pinned)
            .unwrap();
    }
    secret
}

#[test]
fn keeps_thirty_versions_and_those_a_release_pins() {
    let (_folder, _, vault) = vault();
    let secret = versions(&vault, 40, &BTreeSet::from([3]));
    let kept: Vec<u64> = secret.versions().keys().copied().collect();
    let newest = 40 - VERSIONS_KEPT as u64 + 1..=40;
    assert!(
        newest
            .clone()
            .skip(1)
            .all(|version| kept.contains(&version)),
        "{kept:?}"
    );
    assert!(kept.contains(&3), "a pinned version was dropped: {kept:?}");
    assert!(!kept.contains(&4) && !kept.contains(&2), "{kept:?}");
    assert!(kept.len() <= VERSIONS_KEPT + 1);
}

#[test]
fn gives_the_newest_for_a_revoked_version_and_says_so() {
    let (_folder, _, vault) = vault();
    let mut secret = versions(&vault, 3, &BTreeSet::new());
    let now = Timestamp::from_millis(99);
    assert_eq!(secret.resolve(2).unwrap().instead_of, None);
    secret.revoke(now, 2).unwrap();
    secret.revoke(now, 2).unwrap();
    let resolved = secret.resolve(2).unwrap();
    assert_eq!((resolved.version, resolved.instead_of), (3, Some(2)));
    assert!(
        !serde_json::to_string(&secret.versions()[&2])
            .unwrap()
            .contains("value"),
        "forgotten"
    );
    secret.revoke(now, 3).unwrap();
    assert_eq!(secret.current().unwrap().0, 1);
    assert_eq!(secret.resolve(3).unwrap().version, 1);
    // The last one stays: nothing could serve in its place.
    assert_eq!(secret.revoke(now, 1), Err(VersionsError::LastLive(1)));
    assert_eq!(secret.resolve(2).unwrap().version, 1);
    assert_eq!(secret.revoke(now, 9), Err(VersionsError::Unknown(9)));
    assert_eq!(secret.next(), 4, "a number came back");
}

#[test]
fn refuses_a_version_that_someone_else_set_first() {
    let (_folder, _, vault) = vault();
    let mut secret = versions(&vault, 2, &BTreeSet::new());
    let sealed = secret.current().unwrap().1.clone();
    let refused = secret.add(Timestamp::EPOCH, 2, sealed, Origin::Set, &BTreeSet::new());
    assert_eq!(refused, Err(VersionsError::NotNext { given: 2, next: 3 }));
}

#[test]
fn stores_and_reads_back_a_versioned_secret() {
    let (_folder, _, vault) = vault();
    let mut secret = versions(&vault, 3, &BTreeSet::new());
    secret.revoke(Timestamp::from_millis(9), 1).unwrap();
    let stored = serde_json::to_vec(&secret).unwrap();
    assert_eq!(
        serde_json::from_slice::<VersionedSecret>(&stored).unwrap(),
        secret
    );

    let (_b, _, new) = self::vault();
    let scope = scope("shop", "production");
    for (version, sealed) in secret.envelopes_mut() {
        let context = Context {
            scope: &scope,
            name: "TOKEN",
            version,
        };
        *sealed = new.rewrap(&vault, &context, sealed).unwrap();
    }
    let (version, sealed) = secret.current().unwrap();
    let context = Context {
        scope: &scope,
        name: "TOKEN",
        version,
    };
    assert_eq!(new.unseal(&context, sealed).unwrap().reveal(), "value 3");
}

#[test]
fn rolls_back_to_the_newest_before_the_current_one_that_was_not_revoked() {
    let (_folder, _, vault) = vault();
    let mut secret = versions(&vault, 4, &BTreeSet::new());
    let target = |secret: &VersionedSecret, to| {
        let target = secret.rollback_target(to);
        target.map(|(version, _)| version)
    };
    assert_eq!(target(&secret, None), Ok(3));
    assert_eq!(target(&secret, Some(1)), Ok(1));
    assert_eq!(target(&secret, Some(9)), Err(VersionsError::Unknown(9)));
    secret.revoke(Timestamp::from_millis(99), 3).unwrap();
    assert_eq!(target(&secret, None), Ok(2));
    assert_eq!(target(&secret, Some(3)), Err(VersionsError::Revoked(3)));
    let one = versions(&vault, 1, &BTreeSet::new());
    assert_eq!(target(&one, None), Err(VersionsError::NoEarlier(1)));
}

#[test]
fn reads_versions_of_before_there_were_origins() {
    let (_folder, _, vault) = vault();
    let secret = versions(&vault, 2, &BTreeSet::new());
    let text = serde_json::to_string(&secret).unwrap();
    assert!(
        !text.contains("origin"),
        "the usual one is left out: {text}"
    );
    let read: VersionedSecret = serde_json::from_str(&text).unwrap();
    assert_eq!(read.versions()[&1].origin(), &Origin::Set);
    let newer = text.replacen("\"at\"", "\"origin\":{\"kind\":\"moon\"},\"at\"", 1);
    let read: VersionedSecret = serde_json::from_str(&newer).unwrap();
    assert_eq!(read.versions()[&1].origin(), &Origin::Unknown);
}

#[test]
fn tells_a_wrong_key_from_a_damaged_one() {
    let (_a, path, vault) = vault();
    let (_b, other_path, other) = self::vault();
    let scope = scope("shop", "production");
    let context = Context {
        scope: &scope,
        name: "TOKEN",
        version: 1,
    };
    let sealed = vault.seal(&context, &secret()).unwrap();
    let wrong = other.unseal(&context, &sealed).unwrap_err();
    assert!(wrong.to_string().starts_with("wrong key: "), "{wrong}");
    let copy = vault.export();
    assert_eq!(copy.reveal(), &fs::read_to_string(&path).unwrap());
    vault.check_copy(&copy).unwrap();
    let padded = Secret::new(format!("\r\n{}\n\n", copy.reveal()));
    vault.check_copy(&padded).unwrap();
    let of_other = Secret::new(fs::read_to_string(other_path).unwrap());
    let refused = vault.check_copy(&of_other).unwrap_err();
    assert!(refused.to_string().starts_with("wrong key: "), "{refused}");
    for broken in [
        "",
        &copy.reveal()[..40],
        &copy.reveal().replace("key 1", "key 2"),
    ] {
        let refused = vault.check_copy(&Secret::new(broken.to_owned()));
        assert!(matches!(refused, Err(KeyError::CopyDamaged)), "{broken}");
    }
}

#[test]
fn a_credential_may_be_readable_by_its_group_and_a_key_file_may_not() {
    let (folder, path, vault) = vault();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
    let refused = Vault::open(&KeySource::File(path.clone()));
    assert!(matches!(refused, Err(KeyError::Exposed { .. })));
    let credential = KeySource::Credential(path.clone());
    assert_eq!(Vault::open(&credential).unwrap().key_id(), vault.key_id());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let refused = Vault::open(&credential);
    assert!(matches!(refused, Err(KeyError::Exposed { .. })));
    drop(folder);
}
