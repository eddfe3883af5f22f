//! Leases on SQLite: one server has the file, so a lease is its own as soon as it asks. Floor 2.

use std::time::Duration;

use sea_orm::sqlx::{self, Row, SqliteConnection};
use uuid::Uuid;

use super::while_running;
use crate::{
    domain::{FencingToken, Timestamp},
    store::StoreError,
};

const ACQUIRE: &str = "INSERT INTO leases (name, owner, token, expires_at) VALUES ($1, $2, 1, $3) \
     ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, token = leases.token + 1, expires_at = excluded.expires_at \
     RETURNING token";

pub(super) async fn acquire(
    connection: &mut SqliteConnection,
    name: &str,
    owner: Uuid,
    duration: Duration,
    now: Timestamp,
) -> Result<FencingToken, StoreError> {
    let lasts_micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    let expires_at = Timestamp::from_micros(now.as_micros().saturating_add(lasts_micros));
    let row = sqlx::query(ACQUIRE)
        .bind(name)
        .bind(owner)
        .bind(expires_at.to_utc())
        .fetch_one(connection)
        .await
        .map_err(while_running)?;
    row.try_get(0).map(FencingToken).map_err(while_running)
}
