//! Every table that grows can be distributed by `partition_no`, as an engine that shards wants it: read from the catalogs of a
//! migrated database. `docs/scale-out.md` builds on it.

use std::path::{Path, PathBuf};

use sea_orm::sqlx::{self, AssertSqlSafe, Connection, PgConnection};
use tidings::app::App;

use crate::support::in_process::{Database, Engine};

/// Tables that do not grow with the log: each server, or one of them, has all of them.
pub const NOT_GROWING: &[&str] = &[
    "database_settings",
    "domains",
    "event_handlers",
    "event_metrics",
    "imports",
    "leases",
    "seaql_migrations",
];

/// What is wrong, one text each: `table: what`. `$1` are the tables that do not grow.
const PROBLEMS: &str = "
    WITH tables AS (
        SELECT c.oid, c.relname::text AS name, c.relname = ANY ($1) AS is_small
        FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
    ),
    growing AS (
        SELECT t.oid, t.name, a.attnum, a.attnotnull AND a.atttypid = 'smallint'::regtype AS is_right
        FROM tables t LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = 'partition_no' WHERE NOT t.is_small
    )
    SELECT name || ': it has no column partition_no, a smallint that is never NULL'
    FROM growing WHERE is_right IS NOT TRUE
    UNION ALL
    SELECT g.name || ': it has no primary key' FROM growing g
    WHERE NOT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = g.oid AND i.indisprimary)
    UNION ALL
    SELECT g.name || ': partition_no is not part of ' || i.indexrelid::regclass
    FROM growing g JOIN pg_index i ON i.indrelid = g.oid
    WHERE (i.indisunique OR i.indisexclusion)
          AND NOT coalesce(g.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]), false)
    UNION ALL
    SELECT c.relname || ': it is a sequence'
    FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'S'
    UNION ALL
    SELECT t.name || ': ' || a.attname || ' is an identity column'
    FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid WHERE a.attidentity <> ''
    UNION ALL
    SELECT t.name || ': the foreign key ' || f.conname || ' leads to rows that may lie elsewhere'
    FROM tables t JOIN pg_constraint f ON f.conrelid = t.oid AND f.contype = 'f'
    WHERE NOT EXISTS (
        SELECT 1 FROM growing g, growing o, unnest(f.conkey, f.confkey) AS k(here, there)
        WHERE g.oid = f.conrelid AND o.oid = f.confrelid AND k.here = g.attnum AND k.there = o.attnum
    )
    UNION ALL
    SELECT name || ': it is named as one that does not grow, and is not there'
    FROM unnest($1) AS name WHERE name NOT IN (SELECT t.name FROM tables t)
    ORDER BY 1";

/// A database with the tables, and a connection to it.
pub async fn migrated(partitions: u8) -> (Database, PgConnection) {
    let database = Database::make(Engine::Postgres);
    let mut config = database.config();
    config.database.partitions = Some(partitions);
    App::migrate(&config).await.unwrap();
    let connection = PgConnection::connect(&database.url()).await.unwrap();
    (database, connection)
}

async fn problems(connection: &mut PgConnection) -> Vec<String> {
    let query = sqlx::query_scalar(PROBLEMS).bind(NOT_GROWING);
    query.fetch_all(connection).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: impl Into<String>) {
    let sql = sqlx::raw_sql(AssertSqlSafe(sql.into()));
    sql.execute(connection).await.unwrap();
}

#[tokio::test]
async fn every_table_that_grows_can_be_distributed_by_its_partition() {
    let (_database, mut connection) = migrated(1).await;
    assert_eq!(problems(&mut connection).await, [""; 0]);
}

#[tokio::test]
async fn tables_that_cannot_be_distributed_are_found() {
    let (_database, mut connection) = migrated(1).await;
    for (sql, expected) in [
        (
            "CREATE TABLE bad (id uuid PRIMARY KEY)",
            vec![
                "bad: it has no column partition_no, a smallint that is never NULL",
                "bad: partition_no is not part of bad_pkey",
            ],
        ),
        (
            "CREATE TABLE bad (partition_no smallint NOT NULL, id uuid)",
            vec!["bad: it has no primary key"],
        ),
        (
            "CREATE TABLE bad (partition_no smallint, id uuid, name text, PRIMARY KEY (partition_no, id));
             CREATE UNIQUE INDEX bad_name ON bad (name) INCLUDE (partition_no)",
            vec!["bad: partition_no is not part of bad_name"],
        ),
        (
            "CREATE TABLE bad (partition_no smallint, id bigserial, PRIMARY KEY (partition_no, id))",
            vec!["bad_id_seq: it is a sequence"],
        ),
        (
            "CREATE TABLE bad (partition_no smallint, id int GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (partition_no, id))",
            vec!["bad: id is an identity column", "bad_id_seq: it is a sequence"],
        ),
        (
            "CREATE TABLE bad (partition_no smallint, id uuid REFERENCES event_handlers, PRIMARY KEY (partition_no, id))",
            vec!["bad: the foreign key bad_id_fkey leads to rows that may lie elsewhere"],
        ),
        (
            "CREATE TABLE bad (partition_no smallint, id uuid, other smallint, PRIMARY KEY (partition_no, id),
             FOREIGN KEY (other, id) REFERENCES aggregates (partition_no, id))",
            vec!["bad: the foreign key bad_other_id_fkey leads to rows that may lie elsewhere"],
        ),
        (
            "CREATE TABLE bad (partition_no smallint, id uuid, PRIMARY KEY (partition_no, id),
             FOREIGN KEY (partition_no, id) REFERENCES aggregates (partition_no, id))",
            vec![],
        ),
        (
            "CREATE TABLE bad (partition_no smallint, id uuid, PRIMARY KEY (partition_no, id)); DROP TABLE leases",
            vec!["leases: it is named as one that does not grow, and is not there"],
        ),
    ] {
        execute(&mut connection, "BEGIN").await;
        execute(&mut connection, sql).await;
        assert_eq!(problems(&mut connection).await, expected, "{sql}");
        execute(&mut connection, "ROLLBACK").await;
    }
}

/// Makes the tables that grow once more, in a schema of their own, each divided into a table for each partition, as an engine
/// that shards would divide it.
const DIVIDE: &str = "
    CREATE SCHEMA divided;
    DO $$
    DECLARE v_table text;
    BEGIN
        FOR v_table IN SELECT table_name FROM information_schema.columns WHERE table_schema = 'public' AND column_name = 'partition_no'
        LOOP
            EXECUTE format('CREATE TABLE divided.%I (LIKE public.%I INCLUDING ALL) PARTITION BY LIST (partition_no)', v_table, v_table);
            FOR v_partition IN 0 .. 3 LOOP
                EXECUTE format('CREATE TABLE divided.%I PARTITION OF divided.%I FOR VALUES IN (%s)',
                               v_table || '_' || v_partition, v_table, v_partition);
            END LOOP;
        END LOOP;
    END $$;
    INSERT INTO divided.partition_locks SELECT * FROM public.partition_locks;
    SET search_path = divided, public;";

/// Writes to partition 2: two new aggregates, one of them again, a request that is refused for its version; a command with its
/// event and one that is pending, which is settled, while the other cannot be again; entries; a read model.
const APPEND: &str = "
    SELECT tidings_append_events(2::smallint, '{1,2}', '{1,2}', ARRAY[gen_random_uuid(), gen_random_uuid()], '{true,true}',
        ARRAY['00000000-0000-0000-0000-00000000000a'::uuid, '00000000-0000-0000-0000-00000000000b'], '{a,a}', '{b,b}',
        ARRAY['{}', '{}'], ARRAY['{}', '{}'], '{0,NULL}');
    SELECT tidings_append_events(2::smallint, '{1,2}', '{1,2}', ARRAY[gen_random_uuid(), gen_random_uuid()], '{true,true}',
        ARRAY['00000000-0000-0000-0000-00000000000a'::uuid, '00000000-0000-0000-0000-00000000000b'], '{a,a}', '{b,b}',
        ARRAY['{}', '{}'], ARRAY['{}', '{}'], '{1,7}');
    SELECT tidings_append_events(2::smallint, '{1,2}', '{1,2}', ARRAY[gen_random_uuid(), NULL], '{false,false}',
        ARRAY['00000000-0000-0000-0000-00000000000c'::uuid, '00000000-0000-0000-0000-00000000000d'], '{a,NULL}', '{b,NULL}',
        ARRAY['{}', NULL], ARRAY['{}', NULL], '{0,NULL}', '{1,2}', '{1,0}',
        ARRAY['00000000-0000-0000-0000-000000000001'::uuid, '00000000-0000-0000-0000-000000000002'], '{true,true}', '{c,c}',
        ARRAY[NULL, '{}'], '{}', '{}', '{PROCESSED,PENDING}', '{}');
    SELECT tidings_append_events(2::smallint, '{1,2}', '{1,2}', ARRAY[gen_random_uuid(), gen_random_uuid()], '{false,false}',
        ARRAY['00000000-0000-0000-0000-00000000000d'::uuid, '00000000-0000-0000-0000-00000000000c'], '{a,a}', '{b,b}',
        ARRAY['{}', '{}'], ARRAY['{}', '{}'], '{NULL,NULL}', '{1,2}', '{1,1}',
        ARRAY['00000000-0000-0000-0000-000000000002'::uuid, '00000000-0000-0000-0000-000000000001'], '{true,true}', '{NULL,NULL}',
        '{}', '{}', '{}', '{PROCESSED,PROCESSED}', '{}');
    SELECT tidings_write_read_model(2::smallint, '00000000-0000-0000-0000-00000000000a', 'a', '{}', 1);
    SELECT tidings_append_entries(2::smallint, '{s,t}', ARRAY[gen_random_uuid(), gen_random_uuid()], '{b,b}', ARRAY['{}', '{}'],
        ARRAY[NULL, NULL]::smallint[], ARRAY[NULL, 0]::bigint[]);";

/// Of which partitions tables were read or written in this transaction.
async fn touched(connection: &mut PgConnection) -> Vec<String> {
    let sql = "SELECT DISTINCT right(relname::text, 1) FROM pg_stat_xact_user_tables WHERE schemaname = 'divided' \
               AND coalesce(seq_scan, 0) + coalesce(idx_scan, 0) + n_tup_ins + n_tup_upd + n_tup_del > 0 ORDER BY 1";
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap()
}

#[tokio::test]
async fn an_append_touches_the_tables_of_one_partition() {
    let (_database, mut connection) = migrated(4).await;
    execute(&mut connection, DIVIDE).await;
    // What was counted until now goes elsewhere.
    const FORGET: &str = "SELECT pg_stat_force_next_flush()";
    execute(&mut connection, FORGET).await;
    // The plans that are kept are others than the first ones.
    for _ in 0..10 {
        execute(&mut connection, "BEGIN").await;
        execute(&mut connection, APPEND).await;
        assert_eq!(touched(&mut connection).await, ["2"]);
        let versions = "SELECT array_agg(version ORDER BY position) FROM events_2";
        let versions: Vec<i32> = sqlx::query_scalar(versions)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(versions, [1, 1, 2, 1, 1], "it has appended");
        let commands = "SELECT array_agg(status || attempts ORDER BY id) FROM commands_2";
        let commands: Vec<String> = sqlx::query_scalar(commands)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(commands, ["PROCESSED1", "PROCESSED1"], "it has settled");
        execute(&mut connection, "ROLLBACK").await;
        execute(&mut connection, FORGET).await;
    }
    execute(
        &mut connection,
        "BEGIN; SELECT FROM events WHERE id = gen_random_uuid()",
    )
    .await;
    assert_eq!(
        touched(&mut connection).await,
        ["0", "1", "2", "3"],
        "this would be found"
    );
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries
        .flat_map(|entry| match entry.path() {
            path if path.is_dir() => sources(&path),
            path => vec![path],
        })
        .collect()
}

#[test]
fn triggers_stand_in_one_file_of_each_database() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migration");
    let makes_triggers = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap().to_uppercase();
        let mut lines = text.lines();
        lines.any(|line| line.trim_start().starts_with("CREATE") && line.contains(" TRIGGER "))
    };
    let mut found: Vec<PathBuf> = sources(&folder)
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|kind| kind == "sql" || kind == "rs")
        })
        .filter(makes_triggers)
        .map(|path| path.strip_prefix(&folder).unwrap().to_owned())
        .collect();
    found.sort();
    let expected = ["sql/postgres/triggers.sql", "sql/sqlite/triggers.sql"];
    assert_eq!(found, expected.map(PathBuf::from));
}
