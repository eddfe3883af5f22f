//! pgbench on the guide's table: what the server is measured against.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::measure::{CpuClock, Measurement};
use crate::postgres::{Cluster, Database};
use crate::sql::Sql;
use crate::work::{KNOWN_AGGREGATES, KNOWN_EVENTS, event_data, known_id_sql};

/// The guide's table in a database of its own, and the scripts that pgbench runs on it.
pub struct Guide {
    pub database: Database,
    scripts: tempfile::TempDir,
    events: u64,
}

impl Guide {
    pub fn new(cluster: &Cluster) -> Guide {
        let database = cluster.create_database();
        Sql::connect(&database.url).execute(include_str!("guide.sql"));
        let scripts = tempfile::tempdir().expect("a temp folder can be made");
        Guide {
            database,
            scripts,
            events: 0,
        }
    }

    /// One call of the guide's function for a fresh aggregate; a rate of events.
    pub fn append(
        &mut self,
        cluster: &Cluster,
        connections: usize,
        duration: Duration,
    ) -> Measurement {
        let script = format!(
            "SELECT append_event(gen_random_uuid(), 'user', 'user_updated', '{}', '{{}}');\n",
            event_data()
        );
        let measurement = self.run(cluster, "append", &script, connections, duration);
        self.events += measurement.operations;
        measurement
    }

    /// A bare INSERT of 100 rows of one fresh aggregate; a rate of rows.
    pub fn insert_hundred(
        &mut self,
        cluster: &Cluster,
        connections: usize,
        duration: Duration,
    ) -> Measurement {
        let script = format!("{}\n", self.insert("SELECT gen_random_uuid() AS id", 100));
        let measurement = self
            .run(cluster, "insert", &script, connections, duration)
            .times(100);
        self.events += measurement.operations;
        measurement
    }

    /// All columns of the events of one aggregate with 50 of them; a rate of statements.
    pub fn read(&self, cluster: &Cluster, connections: usize, duration: Duration) -> Measurement {
        let script = format!(
            "\\set n random(1, {KNOWN_AGGREGATES})\n\
             SELECT id, aggregate_id, aggregate_type, event_type, event_data, event_metadata, version, created_at \
             FROM events WHERE aggregate_id = {} ORDER BY version;\n",
            known_id_sql(":n")
        );
        self.run(cluster, "read", &script, connections, duration)
    }

    /// Makes the aggregates that [`Guide::read`] reads.
    pub fn fill_known(&mut self) {
        let aggregates = format!(
            "SELECT {} AS id FROM generate_series(1, {KNOWN_AGGREGATES}) n",
            known_id_sql("n")
        );
        let mut sql = Sql::connect(&self.database.url);
        sql.execute(&self.insert(&aggregates, KNOWN_EVENTS));
        sql.execute("VACUUM ANALYZE events");
        self.events += u64::from(KNOWN_AGGREGATES * KNOWN_EVENTS);
    }

    /// Makes sure that the table holds so many events.
    pub fn fill_to(&mut self, events: u64) {
        let missing = events.saturating_sub(self.events);
        if missing > 0 {
            let aggregates = format!(
                "SELECT gen_random_uuid() AS id FROM generate_series(1, {})",
                missing.div_ceil(10)
            );
            Sql::connect(&self.database.url).execute(&self.insert(&aggregates, 10));
            self.events += missing;
        }
    }

    fn insert(&self, aggregates: &str, events_each: u32) -> String {
        format!(
            "INSERT INTO events (aggregate_id, aggregate_type, event_type, event_data, event_metadata, version) \
             SELECT a.id, 'user', 'user_updated', '{}', '{{}}', v \
             FROM ({aggregates}) a, generate_series(1, {events_each}) v;",
            event_data()
        )
    }

    /// Over TCP and with prepared statements, which is the fastest that pgbench has over TCP.
    fn run(
        &self,
        cluster: &Cluster,
        name: &str,
        script: &str,
        connections: usize,
        duration: Duration,
    ) -> Measurement {
        let path: PathBuf = self.scripts.path().join(format!("{name}.sql"));
        std::fs::write(&path, script).expect("the script can be written");
        Sql::connect(&self.database.url).execute("CHECKPOINT");

        let clock = CpuClock::start(None, Some(cluster.pid()));
        let output = Command::new(cluster.bin("pgbench"))
            .args([
                "--host=127.0.0.1",
                "--username=postgres",
                "--no-vacuum",
                "--protocol=prepared",
            ])
            .arg(format!("--port={}", cluster.port()))
            .arg(format!("--client={connections}"))
            .arg(format!("--jobs={}", connections.min(2)))
            .arg(format!("--time={}", duration.as_secs().max(1)))
            .arg(format!("--file={}", path.display()))
            .arg(&self.database.name)
            .output()
            .expect("pgbench starts");
        let cpu = clock.stop();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let number = |label: &str| {
            let rest = text
                .lines()
                .find_map(|line| line.trim().strip_prefix(label));
            rest.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
                .unwrap_or_else(|| panic!("pgbench prints no '{label}':\n{text}\n{errors}"))
        };
        Measurement {
            operations: number("number of transactions actually processed:") as u64,
            rate: number("tps ="),
            mean_ms: number("latency average ="),
            cpu,
            ..Measurement::default()
        }
    }
}
