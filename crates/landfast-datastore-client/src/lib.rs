//! Speaks to data stores as Landfast: whether one answers, its database and logins, settings that change while it runs,
//! what is measured, and what a login that was given to us may do.
//!
//! It decides nothing, keeps nothing, and starts or stops no server. Passwords go to PostgreSQL as verifiers, to MariaDB and
//! Redis as hashes; no error of this crate holds one.

mod address;
mod external;
mod mariadb;
mod postgres;
mod redis;
mod tls;

use std::{path::PathBuf, time::Duration};

use landfast_datastore::{Login, Measures, Wanted};
use landfast_spec::Engine;
use landfast_types::Secret;

pub use crate::{
    address::{MysqlAddress, PostgresAddress, PostgresConnection},
    external::{Abilities, probe},
    redis::access_list,
    tls::Protection,
};

/// Nothing on the same host takes longer to answer, unless it is stuck.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What sessions that read a database of PostgreSQL for its copy are called: [`Session::drop_beside`] ends them.
pub const COPYING: &str = "landfast rehearsal";

/// Where a managed store is, and how it is reached as its administrator.
#[derive(Debug, Clone)]
pub struct Access {
    pub engine: Engine,
    /// The socket.
    pub socket: PathBuf,
    pub port: u16,
    pub login: String,
    pub password: Secret<String>,
    /// The app's database.
    pub database: String,
    /// Who owns what is in it.
    pub owner: String,
}

/// Why a store did not do what it was asked. Never holds a password.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("it does not answer")]
    Silent,
    #[error("failed to {doing}")]
    Postgres {
        doing: &'static str,
        source: tokio_postgres::Error,
    },
    #[error("failed to {doing}")]
    Mariadb {
        doing: &'static str,
        source: mysql_async::Error,
    },
    #[error("failed to {doing}: {reason}")]
    Redis { doing: &'static str, reason: String },
    #[error("`{0}` is not an address of a store that can be asked")]
    Address(&'static str),
    #[error("in the address, {0}")]
    Parameter(&'static str),
    #[error("{reason}")]
    Untrusted { reason: String },
    #[error("the authority of the server's certificate cannot be known: {reason}")]
    Authority { reason: String },
    #[error("a {0} is not asked")]
    NotAsked(Engine),
}

/// A connection as the administrator of a managed store.
pub struct Session(Inner);

enum Inner {
    Postgres(postgres::Session),
    Mariadb(mariadb::Session),
    Redis(redis::Session),
}

impl Session {
    /// Connects. That it works is the proof that the server answers.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connect(access: &Access) -> Result<Self, StoreError> {
        let connect = async {
            Ok(match access.engine {
                Engine::Postgres => Inner::Postgres(postgres::Session::connect(access).await?),
                Engine::Mariadb => Inner::Mariadb(mariadb::Session::connect(access).await?),
                Engine::Redis => Inner::Redis(redis::Session::connect(access).await?),
                Engine::Mysql | Engine::S3 => return Err(StoreError::NotAsked(access.engine)),
            })
        };
        within(connect).await.map(Self)
    }

    /// Makes the database and its owner, unless they are there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn prepare(&mut self) -> Result<(), StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.prepare().await,
                Inner::Mariadb(session) => session.prepare().await,
                Inner::Redis(_) => Ok(()),
            }
        })
        .await
    }

    /// Makes a login with what the owner may, or gives it this password.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ensure_login(
        &mut self,
        login: &str,
        password: &Secret<String>,
    ) -> Result<(), StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.ensure_login(login, password).await,
                Inner::Mariadb(session) => session.ensure_login(login, password).await,
                Inner::Redis(session) => session.ensure_login(login, password).await,
            }
        })
        .await
    }

    /// Gives the login of this connection another password. The connection stays.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn change_own_password(
        &mut self,
        login: &str,
        password: &Secret<String>,
    ) -> Result<(), StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.change_own_password(login, password).await,
                Inner::Mariadb(session) => session.change_own_password(login, password).await,
                Inner::Redis(session) => session.change_own_password(login, password).await,
            }
        })
        .await
    }

    /// Logs in to the app's database as whom `access` names, and asks something.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn try_login(access: &Access) -> Result<(), StoreError> {
        within(async {
            match access.engine {
                Engine::Postgres => postgres::Session::try_login(access).await,
                Engine::Mariadb => mariadb::Session::try_login(access).await,
                Engine::Redis => redis::Session::connect(access).await.map(drop),
                Engine::Mysql | Engine::S3 => Err(StoreError::NotAsked(access.engine)),
            }
        })
        .await
    }

    /// How many connections are open as a login.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sessions_of(&mut self, login: &str) -> Result<u64, StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.sessions_of(login).await,
                Inner::Mariadb(session) => session.sessions_of(login).await,
                Inner::Redis(session) => session.sessions_of(login).await,
            }
        })
        .await
    }

    /// Makes an empty database beside the store's own, in the place of one that is left of an earlier time. A login may do there
    /// what the owner may. In PostgreSQL, where no session reaches another database, the login is one that is there; in
    /// MariaDB it is made with this password, and reaches nothing else.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn make_beside(
        &mut self,
        name: &str,
        login: Login,
        password: &Secret<String>,
    ) -> Result<(), StoreError> {
        let name_of_login = login.to_string();
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.make_beside(name, &name_of_login).await,
                Inner::Mariadb(session) => {
                    let made = session.make_beside(name, &name_of_login, password);
                    made.await
                }
                Inner::Redis(_) => Err(StoreError::NotAsked(Engine::Redis)),
            }
        })
        .await
    }

    /// Whether the server works on a copy just now: for whoever reads the store's database for one, or writes into one. One that waits for
    /// a lock or for its client does not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn copies_advance(&mut self) -> Result<bool, StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.copies_advance().await,
                Inner::Mariadb(session) => session.copies_advance().await,
                Inner::Redis(_) => Ok(false),
            }
        })
        .await
    }

    /// Drops such a database, with everybody who is connected to it or copies into it and, in MariaDB,
    /// [`Login::Rehearsal`]. One that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn drop_beside(&mut self, name: &str) -> Result<(), StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.drop_beside(name).await,
                Inner::Mariadb(session) => session.drop_beside(name).await,
                Inner::Redis(_) => Ok(()),
            }
        })
        .await
    }

    /// Ends what a login has open and removes it. What it made is the owner's. One that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn drop_login(&mut self, login: &str) -> Result<(), StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.drop_login(login).await,
                Inner::Mariadb(session) => session.drop_login(login).await,
                Inner::Redis(session) => session.drop_login(login).await,
            }
        })
        .await
    }

    /// Has the server go by a configuration that needs no restart. PostgreSQL reads its file again; the others are told
    /// each setting. Gives the settings that wait for a restart all the same.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn apply(
        &mut self,
        wanted: &Wanted,
        settings: &[String],
    ) -> Result<Vec<String>, StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.reload().await,
                Inner::Mariadb(session) => session.set(wanted, settings).await,
                Inner::Redis(session) => session.set(wanted, settings).await,
            }
        })
        .await
    }

    /// Has a PostgreSQL read its configuration again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reload(&mut self) -> Result<(), StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.reload().await.map(drop),
                Inner::Mariadb(_) => Err(StoreError::NotAsked(Engine::Mariadb)),
                Inner::Redis(_) => Err(StoreError::NotAsked(Engine::Redis)),
            }
        })
        .await
    }

    /// Whether a PostgreSQL goes by files that say whether its app may write, and whether anybody is let in.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn goes_by(
        &mut self,
        is_read_only: bool,
        is_closed: bool,
    ) -> Result<bool, StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.goes_by(is_read_only, is_closed).await,
                Inner::Mariadb(_) => Err(StoreError::NotAsked(Engine::Mariadb)),
                Inner::Redis(_) => Err(StoreError::NotAsked(Engine::Redis)),
            }
        })
        .await
    }

    /// Ends the sessions of a PostgreSQL's other logins: those whose transaction has written, or all. Gives how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_others(&mut self, is_everybody: bool) -> Result<u64, StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.end_others(is_everybody).await,
                Inner::Mariadb(_) => Err(StoreError::NotAsked(Engine::Mariadb)),
                Inner::Redis(_) => Err(StoreError::NotAsked(Engine::Redis)),
            }
        })
        .await
    }

    /// How many bytes of its log a PostgreSQL keeps for a replication slot.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn kept_for(&mut self, slot: &str) -> Result<u64, StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.kept_for(slot).await,
                Inner::Mariadb(_) => Err(StoreError::NotAsked(Engine::Mariadb)),
                Inner::Redis(_) => Err(StoreError::NotAsked(Engine::Redis)),
            }
        })
        .await
    }

    /// Measures it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn measure(&mut self) -> Result<Measures, StoreError> {
        within(async {
            match &mut self.0 {
                Inner::Postgres(session) => session.measure().await,
                Inner::Mariadb(session) => session.measure().await,
                Inner::Redis(session) => session.measure().await,
            }
        })
        .await
    }
}

async fn within<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let done = tokio::time::timeout(ANSWER_MAX, work).await;
    done.unwrap_or(Err(StoreError::Silent))
}
