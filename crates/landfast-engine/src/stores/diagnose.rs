//! What a doctor says of the stores of a manifest: programs that are missing, and what logins that were given may do.

use landfast_datastore_client::{Abilities, Protection, probe};
use landfast_doctor::{Finding, Level};
use landfast_spec::{AppSpec, Engine, ImageSource, Place, StoreSpec};
use landfast_target::Pull;
use landfast_types::{Secret, StoreName};

use super::host::{self, Room, room};
use crate::{actions::chain, shared::Shared};

const CHECK: &str = "stores";

/// Looks at each store; changes nothing.
pub async fn diagnose(shared: &Shared, spec: &AppSpec) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, store) in &spec.stores {
        let (level, measured, advice) = match &store.place {
            Place::Managed { version, image, .. } => {
                let room = room(shared, &spec.scope(), name);
                let programs = match image {
                    None => programs(store.engine, version),
                    Some(image) => contained(shared, image).await,
                };
                managed(programs, room)
            }
            Place::External { url_secret } => external(shared, spec, store, url_secret).await,
            Place::Bucket { .. } => continue,
        };
        findings.push(finding(name, level, &measured, advice));
    }
    findings
}

fn finding(name: &StoreName, level: Level, measured: &str, advice: Option<String>) -> Finding {
    Finding {
        check: CHECK,
        level,
        measured: format!("store `{name}`: {measured}"),
        advice,
    }
}

type Found = (Level, String, Option<String>);

fn programs(engine: Engine, version: &str) -> Found {
    match host::programs_missing(engine, version) {
        Some((reason, hint)) => (Level::Fail, reason, Some(hint)),
        None => {
            let measured = format!("the programs of {} {version} are there", engine.label());
            (Level::Ok, measured, None)
        }
    }
}

/// One whose server is a container of an image.
async fn contained(shared: &Shared, image: &ImageSource) -> Found {
    let ImageSource::Image { name, .. } = image else {
        let reason = "its image is built, which is not for stores".to_owned();
        return (Level::Fail, reason, None);
    };
    let Some(images) = shared.target.images() else {
        let reason = "its server is a container, and this server uses no Docker".to_owned();
        let hint = "install Docker on the server's host, or name another with `landfast server run --docker`";
        return (Level::Fail, reason, Some(hint.to_owned()));
    };
    match images.resolve(name, Pull::Never, None, None).await {
        Ok(found) => {
            let id = found.image.id.short();
            let measured = format!("its image `{name}` is on the host, {id}");
            (Level::Ok, measured, None)
        }
        Err(error) => {
            let advice = format!("the next deploy brings it; `docker pull {name}` does so now");
            (Level::Warn, chain(&error), Some(advice))
        }
    }
}

fn managed(programs: Found, room: Option<Room>) -> Found {
    if programs.0 != Level::Ok {
        return programs;
    }
    if let Some(room) = room.filter(Room::is_short) {
        let Room {
            free,
            total,
            folder,
        } = &room;
        let measured = format!(
            "{}, and {free} of {total} are free where its data lies (`{}`)",
            programs.1,
            folder.display()
        );
        let advice = "make room there or give that folder a larger disk: a database whose disk is full refuses every change";
        return (Level::Warn, measured, Some(advice.to_owned()));
    }
    programs
}

async fn external(shared: &Shared, spec: &AppSpec, store: &StoreSpec, secret: &str) -> Found {
    let url = match newest(shared, spec, secret) {
        Ok(url) => url,
        Err(reason) => {
            return (
                Level::Fail,
                reason,
                Some(format!("`landfast secret set {secret}`")),
            );
        }
    };
    match probe(store.engine, &url).await {
        Ok(Some(abilities)) => able(store.engine, store, &abilities),
        Ok(None) => (Level::Ok, "external; it was not asked".to_owned(), None),
        Err(error) => {
            let advice = format!(
                "check the address in the secret `{secret}`, and that this host may reach it"
            );
            (Level::Fail, chain(&error), Some(advice))
        }
    }
}

fn newest(shared: &Shared, spec: &AppSpec, name: &str) -> Result<Secret<String>, String> {
    let scope = spec.scope();
    let current = shared.secrets.current(&shared.journal, &scope);
    let current = current.map_err(|error| chain(&error))?;
    let version = current
        .get(name)
        .ok_or_else(|| format!("there is no secret `{name}`"))?;
    let value = shared
        .secrets
        .reveal(&shared.journal, &scope, name, *version);
    Ok(value.map_err(|error| chain(&error))?.value)
}

fn able(engine: Engine, store: &StoreSpec, abilities: &Abilities) -> Found {
    let mut lacks = Vec::new();
    let mut advice = Vec::new();
    if store.migrations.is_some() && !abilities.create_table {
        lacks.push("may make no tables, so no migration can run".to_owned());
        advice.push(match engine {
            Engine::Postgres => "grant it CREATE on the database and its schema",
            Engine::Mariadb | Engine::Mysql | Engine::Redis | Engine::S3 => {
                "grant it CREATE, ALTER, DROP and INDEX on the database"
            }
        });
    }
    if !abilities.replication {
        lacks.push("may not stream the log, so backups are dumps and what may be lost is the time between two".to_owned());
        advice.push("give it REPLICATION (MySQL: REPLICATION SLAVE) where minutes matter");
    }
    match (engine, &abilities.application_name) {
        (Engine::Postgres, None) => {}
        (Engine::Postgres, Some(name)) => {
            lacks.push(format!(
                "calls every session `{name}`, so a contract migration cannot see that an older release is connected"
            ));
            advice
                .push("take `application_name` out of the address: each release is given its own");
        }
        _ => {
            lacks.push(
                "is the same for every release, so a contract migration cannot see that an older one is connected"
                    .to_owned(),
            );
            advice.push(
                "before such a migration look at the list of processes, or use a managed store",
            );
        }
    }
    let unchecked = match abilities.protection {
        Protection::Off => {
            Some("is sent without TLS: whoever is on the way reads it, and all data")
        }
        Protection::Preferred => Some(
            "goes to whoever answers, without TLS where that one offers none: its certificate is not checked",
        ),
        Protection::Encrypted => {
            Some("goes to whoever answers: the server's certificate is not checked")
        }
        Protection::Authority | Protection::Full => None,
    };
    if let Some(unchecked) = unchecked.filter(|_| !abilities.is_local) {
        lacks.push(unchecked.to_owned());
        advice.push(match engine {
            Engine::Postgres => "write `sslmode=verify-full` and, for an authority of your own, `sslrootcert=/path/ca.pem`",
            Engine::Mariadb | Engine::Mysql | Engine::Redis | Engine::S3 => "write `ssl-mode=VERIFY_IDENTITY` and, for an authority of your own, `ssl-ca=/path/ca.pem`",
        });
    }
    let (version, protection) = (&abilities.version, abilities.protection);
    let server = format!("{} {version}, reached {protection}", engine.label());
    if lacks.is_empty() {
        return (Level::Ok, server, None);
    }
    let is_fatal = store.migrations.is_some() && !abilities.create_table;
    let level = if is_fatal { Level::Fail } else { Level::Warn };
    let measured = format!("{server}; its login {}", lacks.join("; it "));
    (level, measured, Some(advice.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abilities() -> Abilities {
        Abilities {
            version: "15.8".to_owned(),
            replication: true,
            create_role: false,
            create_table: true,
            protection: Protection::Full,
            is_local: false,
            application_name: None,
        }
    }

    fn told(engine: Engine, migrations: Option<&str>, abilities: &Abilities) -> Found {
        let place = Place::External {
            url_secret: "URL".to_owned(),
        };
        let store = StoreSpec {
            engine,
            place,
            migrations: migrations.map(str::to_owned),
            rotate: None,
            rehearsal: None,
            backup: None,
            pool: None,
        };
        able(engine, &store, abilities)
    }

    #[test]
    fn what_a_login_lacks_is_told_with_what_it_costs() {
        let (level, measured, advice) = told(Engine::Postgres, Some("m"), &abilities());
        assert_eq!((level, advice), (Level::Ok, None));
        assert_eq!(
            measured,
            "PostgreSQL 15.8, reached with TLS, its certificate checked"
        );

        let lacking = Abilities {
            replication: false,
            create_table: false,
            protection: Protection::Encrypted,
            application_name: Some("shop".to_owned()),
            ..abilities()
        };
        let (level, measured, advice) = told(Engine::Postgres, Some("m"), &lacking);
        assert_eq!(level, Level::Fail);
        for part in ["no tables", "dumps", "`shop`", "not checked"] {
            assert!(measured.contains(part), "{measured}");
        }
        assert!(advice.is_some_and(|advice| advice.contains("sslmode=verify-full")));
        for protection in [Protection::Off, Protection::Preferred] {
            let exposed = Abilities {
                protection,
                ..abilities()
            };
            let (level, measured, _) = told(Engine::Postgres, None, &exposed);
            assert_eq!(level, Level::Warn, "{measured}");
            assert!(measured.contains("without TLS"), "{measured}");
            let local = Abilities {
                is_local: true,
                ..exposed
            };
            assert_eq!(told(Engine::Postgres, None, &local).0, Level::Ok);
        }
        assert_eq!(told(Engine::Postgres, None, &lacking).0, Level::Warn);
        assert_eq!(told(Engine::Mysql, None, &abilities()).0, Level::Warn);
    }
}
