//! Reading rows up to a bound in bytes, on either database. Floor 2.

use futures_util::{Stream, TryStreamExt};
use sea_orm::{QueryResult, sqlx};

use crate::store::bounded::Part;

/// So much of what is behind the bound is read and dropped, so that the connection is free again. It is ended where there is
/// more.
const DROPPED_BYTES: usize = 64 << 20;

/// Rows that were read, and whether that was all that the database had to say.
pub(super) struct Reading {
    pub(super) part: Part<QueryResult>,
    pub(super) is_done: bool,
}

/// Reads rows up to the one with which they have `max_bytes`: at least one.
pub(super) async fn up_to<R>(
    mut rows: impl Stream<Item = Result<R, sqlx::Error>> + Unpin,
    max_bytes: usize,
    bytes_of: impl Fn(&R) -> usize,
) -> Result<Reading, sqlx::Error>
where
    QueryResult: From<R>,
{
    let mut part = Part {
        rows: Vec::new(),
        is_cut: false,
    };
    let mut bytes = 0_usize;
    while let Some(row) = rows.try_next().await? {
        part.is_cut = bytes >= max_bytes;
        if max_bytes < usize::MAX {
            bytes = bytes.saturating_add(bytes_of(&row));
        }
        if !part.is_cut {
            part.rows.push(row.into());
        } else if bytes >= max_bytes.saturating_add(DROPPED_BYTES) {
            return Ok(Reading {
                part,
                is_done: false,
            });
        }
    }
    Ok(Reading {
        part,
        is_done: true,
    })
}
