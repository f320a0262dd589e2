//! Rooms and reservations in MariaDB. Every answer is waited for no longer than [`ANSWER_MAX`].

use std::time::Duration;

use mysql_async::{
    Conn, Opts, OptsBuilder, Pool, PoolConstraints, PoolOpts, TxOpts, prelude::Queryable as _,
};

use crate::model::{Change, Draft, Reservation, Room, Stay};

/// A healthy database answers within milliseconds.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// A host that is gone without a word is noticed.
const KEEPALIVE: Duration = Duration::from_secs(10);

const BOOKED: &str = "booked";
const CANCELLED: &str = "cancelled";

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatabaseError {
    #[error("no answer within {} s", ANSWER_MAX.as_secs())]
    Silent,
    #[error(transparent)]
    Failed(#[from] mysql_async::Error),
    #[error("no such room")]
    RoomUnknown,
    #[error("no such reservation")]
    ReservationUnknown,
    #[error("the room is taken in these nights")]
    Taken,
}

/// What asking for a room came to.
pub(crate) enum Booked {
    Now(Reservation),
    /// He has it already.
    Before(u64),
}

/// The pool of connections.
pub(crate) struct Database {
    pool: Pool,
    /// Written into the history of a reservation.
    release: String,
}

type RoomRow = (String, String, u32);
type ReservationRow = (u64, String, String, String, String, String, Option<String>);

impl Database {
    /// Connects to nothing yet.
    pub(crate) fn new(url: &str, connections_max: usize, release: &str) -> anyhow::Result<Self> {
        let options = Opts::from_url(url)
            .map_err(|_| anyhow::anyhow!("DATABASE_URL is no mysql:// address"))?;
        let constraints = PoolConstraints::new(1, connections_max);
        let constraints =
            constraints.ok_or_else(|| anyhow::anyhow!("the pool needs a connection"))?;
        let options = OptsBuilder::from_opts(options)
            .prefer_socket(false)
            .tcp_keepalive(Some(KEEPALIVE))
            .pool_opts(PoolOpts::default().with_constraints(constraints));
        Ok(Self {
            pool: Pool::new(options),
            release: release.to_owned(),
        })
    }

    /// Asks something that needs no table.
    pub(crate) async fn check(&self) -> Result<(), DatabaseError> {
        within(async { Ok(self.connection().await?.query_drop("SELECT 1").await?) }).await
    }

    /// Whether the tables are there that this release reads and writes.
    pub(crate) async fn check_schema(&self) -> Result<(), DatabaseError> {
        const ASK: &str = "\
            SELECT r.id, s.document_sha256, h.id FROM rooms r
            JOIN reservations s ON s.room_id = r.id JOIN reservation_history h ON h.reservation_id = s.id LIMIT 0";
        within(async { Ok(self.connection().await?.query_drop(ASK).await?) }).await
    }

    pub(crate) async fn rooms(&self) -> Result<Vec<Room>, DatabaseError> {
        const ASK: &str = "SELECT number, kind, price_cents FROM rooms ORDER BY number";
        within(async {
            let rows: Vec<RoomRow> = self.connection().await?.query(ASK).await?;
            Ok(rows.into_iter().map(room).collect())
        })
        .await
    }

    /// Writes a room; doing it again changes nothing.
    pub(crate) async fn put_room(&self, room: &Room) -> Result<(), DatabaseError> {
        const PUT: &str = "\
            INSERT INTO rooms (number, kind, price_cents) VALUES (?, ?, ?)
            ON DUPLICATE KEY UPDATE kind = VALUES(kind), price_cents = VALUES(price_cents)";
        let row = (&room.number, &room.kind, room.price_cents);
        within(async { Ok(self.connection().await?.exec_drop(PUT, row).await?) }).await
    }

    /// The rooms that nobody has booked in any night of a stay.
    pub(crate) async fn free(&self, stay: Stay) -> Result<Vec<Room>, DatabaseError> {
        const ASK: &str = "\
            SELECT number, kind, price_cents FROM rooms r WHERE NOT EXISTS (
                SELECT 1 FROM reservations s
                WHERE s.room_id = r.id AND s.state = ? AND s.arrives < ? AND s.departs > ?
            ) ORDER BY number";
        let asked = (BOOKED, stay.departs.to_string(), stay.arrives.to_string());
        within(async {
            let rows: Vec<RoomRow> = self.connection().await?.exec(ASK, asked).await?;
            Ok(rows.into_iter().map(room).collect())
        })
        .await
    }

    /// Books a room. Of two that want the same night one gets it: both ask for the row of the room first. Whoever asks again for what
    /// he has gets that one: a commit whose answer came too late is no reason to book twice, nor to refuse.
    pub(crate) async fn book(&self, draft: &Draft) -> Result<Booked, DatabaseError> {
        const ROOM: &str = "SELECT id FROM rooms WHERE number = ? FOR UPDATE";
        const OTHERS: &str = "\
            SELECT COUNT(*) FROM reservations WHERE room_id = ? AND state = ? AND arrives < ? AND departs > ?";
        const OWN: &str = "\
            SELECT id FROM reservations WHERE room_id = ? AND state = ? AND arrives = ? AND departs = ? AND guest = ?";
        const BOOK: &str = "\
            INSERT INTO reservations (room_id, guest, arrives, departs, state) VALUES (?, ?, ?, ?, ?)";
        let (arrives, departs) = (draft.arrives.to_string(), draft.departs.to_string());
        within(async {
            let mut connection = self.connection().await?;
            let mut transaction = connection.start_transaction(TxOpts::default()).await?;
            let room: Option<u64> = transaction.exec_first(ROOM, (&draft.room,)).await?;
            let room = room.ok_or(DatabaseError::RoomUnknown)?;
            let asked = (room, BOOKED, &departs, &arrives);
            let others: Option<u64> = transaction.exec_first(OTHERS, asked).await?;
            if others != Some(0) {
                let asked = (room, BOOKED, &arrives, &departs, draft.guest.trim());
                let own: Option<u64> = transaction.exec_first(OWN, asked).await?;
                return own.map(Booked::Before).ok_or(DatabaseError::Taken);
            }
            let row = (room, draft.guest.trim(), &arrives, &departs, BOOKED);
            transaction.exec_drop(BOOK, row).await?;
            let id = transaction.last_insert_id().unwrap_or_default();
            self.note(&mut transaction, id, BOOKED).await?;
            transaction.commit().await?;
            Ok(Booked::Now(Reservation {
                id,
                room: draft.room.clone(),
                guest: draft.guest.trim().to_owned(),
                arrives,
                departs,
                state: BOOKED.to_owned(),
                document_sha256: None,
            }))
        })
        .await
    }

    pub(crate) async fn reservation(&self, id: u64) -> Result<Reservation, DatabaseError> {
        const ASK: &str = "\
            SELECT s.id, r.number, s.guest, CAST(s.arrives AS CHAR), CAST(s.departs AS CHAR), s.state, s.document_sha256
            FROM reservations s JOIN rooms r ON r.id = s.room_id WHERE s.id = ?";
        within(async {
            let row: Option<ReservationRow> =
                self.connection().await?.exec_first(ASK, (id,)).await?;
            row.map(reservation)
                .ok_or(DatabaseError::ReservationUnknown)
        })
        .await
    }

    /// Cancels a reservation; one that is cancelled stays so.
    pub(crate) async fn cancel(&self, id: u64) -> Result<(), DatabaseError> {
        const STATE: &str = "SELECT state FROM reservations WHERE id = ? FOR UPDATE";
        const CANCEL: &str = "UPDATE reservations SET state = ? WHERE id = ?";
        within(async {
            let mut connection = self.connection().await?;
            let mut transaction = connection.start_transaction(TxOpts::default()).await?;
            let state: Option<String> = transaction.exec_first(STATE, (id,)).await?;
            if state.ok_or(DatabaseError::ReservationUnknown)? == BOOKED {
                transaction.exec_drop(CANCEL, (CANCELLED, id)).await?;
                self.note(&mut transaction, id, CANCELLED).await?;
            }
            Ok(transaction.commit().await?)
        })
        .await
    }

    /// Remembers which document belongs to a reservation. It is in the bucket before it is named here.
    pub(crate) async fn set_document(&self, id: u64, sha256: &str) -> Result<(), DatabaseError> {
        const SET: &str = "UPDATE reservations SET document_sha256 = ? WHERE id = ?";
        within(async {
            let mut connection = self.connection().await?;
            let mut transaction = connection.start_transaction(TxOpts::default()).await?;
            transaction.exec_drop(SET, (sha256, id)).await?;
            self.note(&mut transaction, id, "signed").await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    /// What became of a reservation, oldest first.
    pub(crate) async fn history(&self, id: u64) -> Result<Vec<Change>, DatabaseError> {
        const ASK: &str = "\
            SELECT CAST(at AS CHAR), action, app_release FROM reservation_history WHERE reservation_id = ? ORDER BY id";
        within(async {
            let rows: Vec<(String, String, String)> =
                self.connection().await?.exec(ASK, (id,)).await?;
            let each = rows.into_iter();
            Ok(each
                .map(|(at, action, release)| Change {
                    at,
                    action,
                    release,
                })
                .collect())
        })
        .await
    }

    /// In the transaction of what it tells of: neither is there without the other.
    async fn note(
        &self,
        transaction: &mut mysql_async::Transaction<'_>,
        id: u64,
        action: &str,
    ) -> Result<(), DatabaseError> {
        const NOTE: &str = "INSERT INTO reservation_history (reservation_id, action, app_release) VALUES (?, ?, ?)";
        Ok(transaction
            .exec_drop(NOTE, (id, action, &self.release))
            .await?)
    }

    async fn connection(&self) -> Result<Conn, DatabaseError> {
        Ok(self.pool.get_conn().await?)
    }

    /// Says goodbye to the server.
    pub(crate) async fn close(self: &std::sync::Arc<Self>) {
        let closed = tokio::time::timeout(ANSWER_MAX, self.pool.clone().disconnect()).await;
        drop(closed);
    }
}

async fn within<T>(
    work: impl Future<Output = Result<T, DatabaseError>>,
) -> Result<T, DatabaseError> {
    let done = tokio::time::timeout(ANSWER_MAX, work).await;
    done.unwrap_or(Err(DatabaseError::Silent))
}

fn room((number, kind, price_cents): RoomRow) -> Room {
    Room {
        number,
        kind,
        price_cents,
    }
}

fn reservation(row: ReservationRow) -> Reservation {
    let (id, room, guest, arrives, departs, state, document_sha256) = row;
    Reservation {
        id,
        room,
        guest,
        arrives,
        departs,
        state,
        document_sha256,
    }
}
