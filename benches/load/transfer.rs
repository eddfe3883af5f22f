//! Moving a log: `tidings export | tidings import` from SQLite with 1 partition to PostgreSQL with 16, and whether each
//! aggregate has the same events afterwards, by a checksum of this benchmark's own.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::Instant;

use futures_util::{Stream, TryStreamExt};
use sea_orm::sqlx::{
    self, AssertSqlSafe, ColumnIndex, Connection, Decode, PgConnection, Row, SqliteConnection,
    Type,
    types::chrono::{DateTime, Utc},
};
use sha2::{Digest, Sha256};
use tidings::domain::canonical::write_canonical;
use uuid::Uuid;

use crate::projection::on_this_thread;

pub const PARTITIONS: u8 = 16;
const AGGREGATES: u64 = 50_000;

/// One move.
#[derive(Clone, Debug, Default)]
pub struct Transferred {
    pub events: u64,
    /// With the check that `tidings import` does in the end.
    pub seconds: f64,
    /// How many aggregates there are, and how many of them have other events than before.
    pub aggregates: usize,
    pub different: usize,
}

/// Fills a SQLite file with events, over many aggregates in turn, with ids in the order of time as servers make them.
pub fn fill(url: &str, events: u64) {
    let migrated = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["migrate", "--database-url", url])
        .stdout(Stdio::null())
        .status();
    assert!(migrated.is_ok_and(|status| status.success()));
    let at = |n: &str| {
        format!(
            "strftime('%Y-%m-%dT%H:%M:%S', 1760000000 + ({n}) / 1000, 'unixepoch') || printf('.%03d+00:00', ({n}) % 1000)"
        )
    };
    let (event_at, first_at) = (at("n.n"), at("n + 1"));
    let last_at = at(&format!("{events} - {AGGREGATES} + n + 1"));
    let sql = format!(
        "CREATE TEMP TABLE ids AS WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {AGGREGATES} - 1)
             SELECT n, randomblob(16) AS id FROM n;
         CREATE INDEX temp.ids_n ON ids (n);
         INSERT INTO events (partition_no, position, id, aggregate_id, aggregate_type, event_type, event_data, event_metadata, version, created_at)
             WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {events})
             SELECT 0, n.n, unhex(printf('%012x', 1760000000000 + n.n)) || randomblob(10), ids.id, 'order',
                    CASE WHEN n.n <= {AGGREGATES} THEN 'order_placed' ELSE 'item_added' END,
                    '{{\"item\":\"' || hex(randomblob(12)) || '\",\"quantity\":' || (n.n % 7) || ',\"price\":' || (n.n % 997) || '.25,'
                    || '\"note\":\"Please leave it at the door, thank you\",\"tags\":[\"a\",\"b\"],\"gift\":false}}',
                    '{{\"correlationId\":\"' || hex(randomblob(8)) || '\"}}', (n.n - 1) / {AGGREGATES} + 1, {event_at}
             FROM n JOIN ids ON ids.n = (n.n - 1) % {AGGREGATES};
         INSERT INTO aggregates SELECT 0, id, 'order', {events} / {AGGREGATES}, {first_at}, {last_at} FROM ids;"
    );
    on_this_thread(async {
        let mut connection = SqliteConnection::connect(url)
            .await
            .expect("the file opens");
        let fill = sqlx::raw_sql(AssertSqlSafe(sql));
        fill.execute(&mut connection).await.expect("it is filled");
        connection.close().await.expect("it closes");
    });
}

/// Moves it, and compares.
pub fn run(from: &str, to: &str, events: u64) -> Result<Transferred, String> {
    let began = Instant::now();
    let binary = env!("CARGO_BIN_EXE_tidings");
    let mut export = Command::new(binary)
        .args(["export", "--database-url", from])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let lines = export.stdout.take().ok_or("the export has no output")?;
    let import = Command::new(binary)
        .args([
            "import",
            "--database-url",
            to,
            "--partitions",
            &PARTITIONS.to_string(),
        ])
        .stdin(lines)
        .stdout(Stdio::inherit())
        .status()
        .map_err(|error| error.to_string())?;
    let seconds = began.elapsed().as_secs_f64();
    let exported = export.wait().map_err(|error| error.to_string())?;
    if !import.success() || !exported.success() {
        return Err(format!("export: {exported}, import: {import}"));
    }
    let (before, after) = on_this_thread(async {
        let mut source = SqliteConnection::connect(from).await?;
        let before = sums(sqlx::query(EVENTS).fetch(&mut source)).await?;
        let mut target = PgConnection::connect(to).await?;
        let after = sums(sqlx::query(EVENTS).fetch(&mut target)).await?;
        Ok::<_, sqlx::Error>((before, after))
    })
    .map_err(|error| error.to_string())?;
    let differs = |(id, sum): &(&Uuid, &Sum)| after.get(*id) != Some(*sum);
    let different = before.iter().filter(differs).count();
    Ok(Transferred {
        events,
        seconds,
        aggregates: before.len(),
        different: different + after.len().saturating_sub(before.len()),
    })
}

const EVENTS: &str = "SELECT aggregate_id, id, aggregate_type, event_type, CAST(event_data AS text), \
     CAST(event_metadata AS text), version, created_at FROM events ORDER BY partition_no, position";

type Sum = [u8; 32];

/// A checksum over the events of each aggregate, one after another.
async fn sums<R: Row>(
    mut rows: impl Stream<Item = Result<R, sqlx::Error>> + Unpin,
) -> Result<HashMap<Uuid, Sum>, sqlx::Error>
where
    usize: ColumnIndex<R>,
    for<'r> Uuid: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> String: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i32: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> DateTime<Utc>: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut sums: HashMap<Uuid, Sum> = HashMap::new();
    let mut bytes = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let sum = sums.entry(row.try_get(0)?).or_default();
        bytes.clear();
        bytes.extend_from_slice(sum);
        bytes.extend_from_slice(row.try_get::<Uuid, _>(1)?.as_bytes());
        for column in [2, 3] {
            bytes.extend_from_slice(row.try_get::<String, _>(column)?.as_bytes());
            bytes.push(0);
        }
        for column in [4, 5] {
            let text = row.try_get::<String, _>(column)?;
            write_canonical(&text, &mut bytes)
                .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        }
        bytes.extend_from_slice(&row.try_get::<i32, _>(6)?.to_le_bytes());
        let at = row.try_get::<DateTime<Utc>, _>(7)?.timestamp_micros();
        bytes.extend_from_slice(&at.to_le_bytes());
        *sum = Sha256::digest(&bytes).into();
    }
    Ok(sums)
}
