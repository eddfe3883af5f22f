//! Leases on PostgreSQL, by the database's clock. Floor 2.

use std::time::Duration;

use sea_orm::sqlx::{self, PgConnection, Row};
use uuid::Uuid;

use super::while_running;
use crate::{
    domain::FencingToken,
    store::{LeaseGrant, StoreError},
};

/// For how long somebody else has it yet, in milliseconds.
const REMAINING: &str = "SELECT CAST(EXTRACT(EPOCH FROM expires_at - clock_timestamp()) * 1000 AS double precision) \
     FROM leases WHERE name = $1 AND owner <> $2";

/// The row is locked before its condition is looked at again, so of several that ask at a time one gets it.
const ACQUIRE: &str = "INSERT INTO leases AS l (name, owner, token, expires_at) \
     VALUES ($1, $2, 1, clock_timestamp() + $3 * INTERVAL '1 millisecond') \
     ON CONFLICT (name) DO UPDATE \
     SET owner = excluded.owner, token = l.token + 1, expires_at = clock_timestamp() + $3 * INTERVAL '1 millisecond' \
     WHERE $4 OR l.expires_at <= clock_timestamp() OR l.owner = excluded.owner \
     RETURNING token";

const RENEW: &str = "UPDATE leases SET expires_at = clock_timestamp() + $3 * INTERVAL '1 millisecond' \
     WHERE name = $1 AND token = $2";

const RELEASE: &str =
    "UPDATE leases SET expires_at = clock_timestamp() WHERE name = $1 AND token = $2";

pub(super) async fn acquire(
    connection: &mut PgConnection,
    name: &str,
    owner: Uuid,
    duration: Duration,
    takes_over: bool,
) -> Result<LeaseGrant, StoreError> {
    // Asking for it locks its row, which is a write: whoever waits only looks.
    let remaining = sqlx::query(REMAINING)
        .bind(name)
        .bind(owner)
        .fetch_optional(&mut *connection)
        .await
        .map_err(while_running)?;
    if let Some(row) = remaining
        && !takes_over
    {
        let remaining_ms: f64 = row.try_get(0).map_err(while_running)?;
        if remaining_ms > 0.0 {
            let remaining = Duration::from_secs_f64(remaining_ms.min(1e9) / 1e3);
            return Ok(LeaseGrant::Held(remaining));
        }
    }
    let granted = sqlx::query(ACQUIRE)
        .bind(name)
        .bind(owner)
        .bind(milliseconds(duration))
        .bind(takes_over)
        .fetch_optional(connection)
        .await
        .map_err(while_running)?;
    match granted {
        Some(row) => {
            let token = row.try_get(0).map_err(while_running)?;
            Ok(LeaseGrant::Granted(FencingToken(token)))
        }
        // Another one was faster.
        None => Ok(LeaseGrant::Held(Duration::ZERO)),
    }
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
