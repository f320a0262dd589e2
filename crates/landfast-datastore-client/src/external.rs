//! Stores of somebody else: what the login that was given to us may do there.

use landfast_spec::Engine;
use landfast_types::Secret;
use mysql_async::prelude::Queryable as _;

use crate::{
    StoreError,
    address::{MysqlAddress, PostgresAddress},
    tls::Protection,
    within,
};

/// What a login may do, and how it gets there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abilities {
    /// As the server tells it.
    pub version: String,
    /// It may stream the log: otherwise backups are dumps.
    pub replication: bool,
    /// It may make logins: otherwise releases are told apart by their application's name.
    pub create_role: bool,
    /// It may make tables, which migrations and their history need.
    pub create_table: bool,
    /// Of the way to the server.
    pub protection: Protection,
    /// That way does not leave this host.
    pub is_local: bool,
    /// The application's name that the address gives every session, whatever its release.
    pub application_name: Option<String>,
}

/// Asks a store of somebody else. `None` for a Redis or a bucket, which are not asked.
///
/// # Errors
/// [`StoreError`].
pub async fn probe(engine: Engine, url: &Secret<String>) -> Result<Option<Abilities>, StoreError> {
    within(async {
        match engine {
            Engine::Postgres => postgres(url).await.map(Some),
            Engine::Mariadb | Engine::Mysql => mysql(url).await.map(Some),
            Engine::Redis | Engine::S3 => Ok(None),
        }
    })
    .await
}

async fn postgres(url: &Secret<String>) -> Result<Abilities, StoreError> {
    const ASK: &str = "\
        SELECT current_setting('server_version'), rolreplication OR rolsuper, rolcreaterole OR rolsuper,
               has_database_privilege(current_database(), 'CREATE')
                   AND coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)
        FROM pg_roles WHERE rolname = current_user";
    let mut address = PostgresAddress::parse(url)?;
    let application_name = address.application_name().map(str::to_owned);
    address.set_application_name("landfast doctor");
    let connection = address.connect().await?;
    let asked = connection.client.query_one(ASK, &[]).await;
    let row = asked.map_err(|source| StoreError::Postgres {
        doing: "ask what the login may",
        source,
    })?;
    Ok(Abilities {
        version: row.get(0),
        replication: row.get(1),
        create_role: row.get(2),
        create_table: row.get(3),
        protection: address.protection(),
        is_local: address.is_local(),
        application_name,
    })
}

async fn mysql(url: &Secret<String>) -> Result<Abilities, StoreError> {
    let failed = |source| StoreError::Mariadb {
        doing: "ask what the login may",
        source,
    };
    let address = MysqlAddress::parse(url)?;
    let mut connection = address.connect().await?;
    let version: Option<String> = connection
        .query_first("SELECT VERSION()")
        .await
        .map_err(failed)?;
    let database: Option<Option<String>> = connection
        .query_first("SELECT DATABASE()")
        .await
        .map_err(failed)?;
    let grants: Vec<String> = connection.query("SHOW GRANTS").await.map_err(failed)?;
    let database = database.flatten().unwrap_or_default();
    Ok(Abilities {
        version: version.unwrap_or_default(),
        replication: may(&grants, None, &["REPLICATION SLAVE", "REPLICATION REPLICA"]),
        create_role: may(&grants, None, &["CREATE USER"]),
        create_table: may(&grants, Some(&database), &["CREATE"]),
        protection: address.protection(),
        is_local: address.is_local(),
        application_name: None,
    })
}

/// Whether one of these privileges is granted everywhere or, where it is named, in a database. In a grant `_` and `%` of a
/// name may stand behind a backslash.
fn may(grants: &[String], database: Option<&str>, privileges: &[&str]) -> bool {
    let holds = |grant: &String| {
        let grant = grant.replace('\\', "");
        let (what, place) = grant.strip_prefix("GRANT ")?.split_once(" ON ")?;
        let is_here = place.starts_with("*.* ")
            || database.is_some_and(|database| place.starts_with(&format!("`{database}`.* ")));
        let mut each = what.split(',').map(str::trim);
        Some(is_here && each.any(|one| one == "ALL PRIVILEGES" || privileges.contains(&one)))
    };
    grants.iter().any(|grant| holds(grant) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_read_with_their_place() {
        let grants = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let all = grants(&[
            "GRANT ALL PRIVILEGES ON *.* TO `a`@`%` IDENTIFIED BY PASSWORD '*X' WITH GRANT OPTION",
        ]);
        assert!(may(&all, None, &["CREATE USER"]));
        let app = grants(&[
            "GRANT USAGE ON *.* TO `a`@`%`",
            "GRANT SELECT, CREATE, CREATE VIEW ON `the\\_app`.* TO `a`@`%`",
        ]);
        assert!(may(&app, Some("the_app"), &["CREATE"]));
        assert!(!may(&app, Some("other"), &["CREATE"]));
        assert!(!may(&app, None, &["CREATE USER"]));
        let views = grants(&["GRANT CREATE VIEW ON *.* TO `a`@`%`"]);
        assert!(!may(&views, Some("app"), &["CREATE"]));
        let slave = grants(&["GRANT RELOAD, REPLICATION SLAVE ON *.* TO `a`@`%`"]);
        assert!(may(
            &slave,
            None,
            &["REPLICATION SLAVE", "REPLICATION REPLICA"]
        ));
    }
}
