//! A server that is stopped amid pending commands, loses its leases, and goes on: each command is settled once, in its turn.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sea_orm::sqlx::{self, Connection, PgConnection};
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::support::client::LIMIT;
use crate::support::load::aggregate_in;
use crate::support::postgres::Cluster;

const CREATED_BETWEEN: usize = 300;
/// Longer than the server is stopped for at least.
const LEASE: &str = "1s";

fn serve(database_url: &str) -> TestServer {
    TestServer::on(database_url)
        .arguments(["--partitions", "4", "--lease", LEASE])
        .start()
}

/// Clients that record changes of the same few users, one after another, until they are told to stop.
struct Creators {
    created: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Creators {
    fn start(client: &Client, users: &[Uuid]) -> Creators {
        let created = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let task = |number: usize| {
            let (client, users) = (client.clone(), users.to_vec());
            let (created, stop) = (created.clone(), stop.clone());
            tokio::spawn(async move {
                let query = "mutation($input: CreateCommandInput!) { createCommand(input: $input) { command { id } } }";
                for call in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let user = users[(number + call) % users.len()];
                    let email = format!("{number}-{call}");
                    let input = json!({ "aggregateId": user, "type": "update_user", "data": { "email": email } });
                    let told = client.query(query, json!({ "input": input })).await;
                    told.unwrap();
                    created.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        Creators {
            tasks: (0..WRITERS).map(task).collect(),
            created,
            stop,
        }
    }

    async fn until_more_are_created(&self) {
        let aim = self.created.load(Ordering::Relaxed) + CREATED_BETWEEN;
        let started = Instant::now();
        while self.created.load(Ordering::Relaxed) < aim {
            assert!(started.elapsed() < LIMIT, "commands are recorded");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.created.load(Ordering::Relaxed)
    }
}

/// Waits until another server has taken the lease of each partition: all tokens are greater than these.
async fn until_taken_over(connection: &mut PgConnection, before: &[i64]) -> Vec<i64> {
    let started = Instant::now();
    loop {
        let tokens = tokens(connection).await;
        let is_greater = |(now, before): (&i64, &i64)| now > before;
        if tokens.iter().zip(before).all(is_greater) {
            return tokens;
        }
        assert!(started.elapsed() < LIMIT, "the other server takes over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn tokens(connection: &mut PgConnection) -> Vec<i64> {
    let tokens = "SELECT token FROM leases WHERE name LIKE 'partition-%' ORDER BY name";
    sqlx::query_scalar(tokens)
        .fetch_all(connection)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_stopped_past_its_lease_settles_no_command_twice_or_out_of_turn() {
    let database = Cluster::shared().create_database();
    let mut working = serve(&database.url);
    let users: Vec<Uuid> = (0..8).map(|number| aggregate_in(number % 4)).collect();
    let execute = "mutation($input: CreateCommandInput!) { executeCommand(input: $input) { command { status } } }";
    for user in &users {
        let input =
            json!({ "aggregateId": user, "type": "create_user", "data": { "username": "ada" } });
        let told = Client::new(&working)
            .query(execute, json!({ "input": input }))
            .await;
        assert_eq!(
            told.unwrap()["executeCommand"]["command"]["status"],
            "PROCESSED"
        );
    }
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let mut held = until_taken_over(&mut connection, &[0; 4]).await;
    let mut waiting = serve(&database.url);
    let mut created = 0;
    for _ in 0..rounds(3) {
        let creators = Creators::start(&Client::new(&waiting), &users);
        creators.until_more_are_created().await;
        // Amid its work, wherever that is.
        working.signal("STOP");
        held = until_taken_over(&mut connection, &held).await;
        creators.until_more_are_created().await;
        working.signal("CONT");
        creators.until_more_are_created().await;
        created += creators.finish().await;
        std::mem::swap(&mut working, &mut waiting);
    }

    let started = Instant::now();
    loop {
        let pending = "SELECT count(*) FROM commands WHERE status = 'PENDING'";
        let pending: i64 = sqlx::query_scalar(pending)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        if pending == 0 {
            break;
        }
        assert!(started.elapsed() < LIMIT, "{pending} are still pending");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let log = StoredLog::read_whole(&database.url).await;
    assert_eq!(log.commands.len(), users.len() + created);
    let settled: Vec<(Uuid, String, i32, i32, i32)> = sqlx::query_as(
        "SELECT aggregate_id, status, attempts, first_version, last_version FROM commands ORDER BY created_at, id",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let mut versions: HashMap<Uuid, i32> = HashMap::new();
    for (user, status, attempts, first, last) in settled {
        let version = versions.entry(user).or_default();
        *version += 1;
        assert_eq!((status.as_str(), attempts), ("PROCESSED", 1));
        assert_eq!(
            (first, last),
            (*version, *version),
            "in the order of creation"
        );
    }
    println!("{created} commands were recorded");
}
