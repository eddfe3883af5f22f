//! Leases on PostgreSQL, by the database's clock. Floor 2.

use std::time::Duration;

use sea_orm::sqlx::{self, PgConnection, Row};
use uuid::Uuid;

use super::while_running;
use crate::{
    domain::FencingToken,
    store::{LeaseGrant, StoreError},
};

/// The row is locked before its condition is looked at again, so of several that ask at a time one gets it.
const ACQUIRE: &str = "INSERT INTO leases AS l (name, owner, token, expires_at) \
     VALUES ($1, $2, 1, clock_timestamp() + $3 * INTERVAL '1 millisecond') \
     ON CONFLICT (name) DO UPDATE \
     SET owner = excluded.owner, token = l.token + 1, expires_at = clock_timestamp() + $3 * INTERVAL '1 millisecond' \
     WHERE l.expires_at <= clock_timestamp() OR l.owner = excluded.owner \
     RETURNING token";

const REMAINING: &str = "SELECT CAST(EXTRACT(EPOCH FROM expires_at - clock_timestamp()) * 1000 AS double precision) \
     FROM leases WHERE name = $1";

const RENEW: &str = "UPDATE leases SET expires_at = clock_timestamp() + $3 * INTERVAL '1 millisecond' \
     WHERE name = $1 AND token = $2";

const RELEASE: &str =
    "UPDATE leases SET expires_at = clock_timestamp() WHERE name = $1 AND token = $2";

pub(super) async fn acquire(
    connection: &mut PgConnection,
    name: &str,
    owner: Uuid,
    duration: Duration,
) -> Result<LeaseGrant, StoreError> {
    let granted = sqlx::query(ACQUIRE)
        .bind(name)
        .bind(owner)
        .bind(milliseconds(duration))
        .fetch_optional(&mut *connection)
        .await
        .map_err(while_running)?;
    if let Some(row) = granted {
        let token = row.try_get(0).map_err(while_running)?;
        return Ok(LeaseGrant::Granted(FencingToken(token)));
    }
    let remaining = sqlx::query(REMAINING)
        .bind(name)
        .fetch_optional(connection)
        .await
        .map_err(while_running)?;
    let remaining_ms: f64 = match remaining {
        Some(row) => row.try_get(0).map_err(while_running)?,
        None => 0.0,
    };
    Ok(LeaseGrant::Held(Duration::from_millis(
        remaining_ms.clamp(0.0, 1e9) as u64,
    )))
}

pub(super) async fn renew(
    connection: &mut PgConnection,
    name: &str,
    token: FencingToken,
    duration: Duration,
) -> Result<bool, StoreError> {
    let renewed = sqlx::query(RENEW)
        .bind(name)
        .bind(token.0)
        .bind(milliseconds(duration))
        .execute(connection)
        .await
        .map_err(while_running)?;
    Ok(renewed.rows_affected() > 0)
}

pub(super) async fn release(
    connection: &mut PgConnection,
    name: &str,
    token: FencingToken,
) -> Result<(), StoreError> {
    sqlx::query(RELEASE)
        .bind(name)
        .bind(token.0)
        .execute(connection)
        .await
        .map(drop)
        .map_err(while_running)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
