//! A PostgreSQL with a standby: the primary dies, is fenced off, or has gone on without its standby.

use std::time::{Duration, Instant};

use sea_orm::sqlx::{self, Connection, SqliteConnection};
use serde_json::json;
use tokio::task::block_in_place;
use uuid::Uuid;

use super::servers::append_by_sql;
use super::*;
use crate::support::in_process;
use crate::support::load::{Append, NewEvent, aggregate_in};
use crate::support::postgres::{self, Cluster};
use crate::support::proxy::Proxy;
use crate::support::server::TestServerBuilder;
use crate::support::sql_clients::{Servers, SqlLoad};

const SQL_CLIENTS: usize = 8;

/// A server with time-outs that keep the test short, on several URLs.
fn serve(urls: &[&str]) -> TestServer {
    prepare(urls).start()
}

fn prepare(urls: &[&str]) -> TestServerBuilder {
    TestServer::on(&urls.join(","))
        .arguments(["--partitions", "4"])
        .arguments(["--database-acquire-timeout", "1s", "--lock-timeout", "1s"])
        .arguments(["--request-timeout", "3s"])
}

/// Ends all sessions on a database, of servers and of SQL clients.
fn cut_sessions(database: &postgres::Database) {
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_go_on_by_themselves_on_a_standby_that_is_promoted_and_nothing_acknowledged_is_lost()
 {
    let old = Cluster::private();
    let database = old.create_database();
    let new = old.standby(true);
    let promoted = new.database(&database.name);
    // One of them has the standby before the primary: it is passed over.
    let servers = [
        serve(&[&database.url, &promoted.url]),
        serve(&[&promoted.url, &database.url]),
    ];
    let followers: Vec<Follower> = servers
        .iter()
        .flat_map(|server| follow_the_load(&server.ws_url(), false))
        .collect();
    let next = Arc::new(mixed());
    let loads = servers.each_ref().map(|server| {
        let next = next.clone();
        Load::start(&Client::new(server), WRITERS, move |writer, call| {
            next(writer, call)
        })
    });
    let aggregates: Vec<Uuid> = (0..8).map(|number| aggregate_in(number % 4)).collect();
    let of_sql = Servers::new(&[&database.url, &promoted.url]);
    let sql = SqlLoad::start(&of_sql, SQL_CLIENTS, &aggregates);
    for load in &loads {
        load.until_more_acknowledged(200).await;
    }
    sql.until_more_appended(200).await;

    old.stop_immediate();
    new.promote();
    let began = Instant::now();
    for load in &loads {
        load.until_more_acknowledged(200).await;
    }
    sql.until_more_appended(200).await;
    println!(
        "200 more appends each {:?} after the promotion",
        began.elapsed()
    );

    // SQL clients cannot know a primary that was left behind from the new one: they are pointed at the new one alone, as
    // docs/operations.md asks for.
    of_sql.set(&[&promoted.url]).await;
    // Somebody starts the old primary again, and it takes itself for one. It is the first in the order.
    old.start();
    let before = StoredLog::read_whole(&database.url).await;
    cut_sessions(&promoted);
    for load in &loads {
        load.until_more_acknowledged(200).await;
    }
    sql.until_more_appended(200).await;

    let mut ledger = Ledger::default();
    for load in loads {
        ledger.add(load.stop().await);
    }
    println!("{:?} {:?}", ledger.counts, ledger.reasons);
    assert_eq!(ledger.counts.cut, 0, "every call was answered");
    let told = sql.stop().await;
    let log = StoredLog::read_whole(&promoted.url).await;
    for told in told {
        assert!(told.lost >= 2, "both faults came during load: {told:?}");
        told.add_to(&mut ledger, &log);
    }
    let client = Client::new(&servers[0]);
    assert_nothing_was_lost(&promoted.url, &client, &mut ledger, &followers).await;
    let is_undisturbed = followers.iter().all(|follower| follower.resumed() == 0);
    assert!(is_undisturbed, "subscriptions live through it");
    let after = StoredLog::read_whole(&database.url).await;
    assert_eq!(after.events.len(), before.events.len());
    assert_eq!(after.entries.len(), before.entries.len());
}

/// Its machine is gone: nothing answers, and nothing is closed. The time-outs are the default ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_go_on_by_themselves_soon_after_a_primary_has_vanished_without_a_word() {
    const SOON: Duration = Duration::from_secs(8);
    let old = Cluster::private();
    let database = old.create_database();
    let new = old.standby(true);
    let promoted = new.database(&database.name);
    let proxy = Proxy::to(&database.url).await;
    let server = TestServer::on(&format!("{},{}", proxy.url, promoted.url))
        .arguments(["--partitions", "4"])
        .start();
    let client = Client::new(&server);
    let followers = follow_the_load(&server.ws_url(), false);
    let load = Load::start(&client, WRITERS, mixed());
    load.until_more_acknowledged(200).await;

    proxy.vanish();
    let began = Instant::now();
    block_in_place(|| new.promote());
    load.until_more_acknowledged(200).await;
    let taken = began.elapsed();
    println!("200 more appends {taken:?} after the primary has vanished");
    let mut ledger = load.stop().await;
    println!("{:?} {:?}", ledger.counts, ledger.reasons);
    assert_nothing_was_lost(&promoted.url, &client, &mut ledger, &followers).await;
    assert!(ledger.counts.failed() > 0, "it came during load");
    let is_undisturbed = followers.iter().all(|follower| follower.resumed() == 0);
    assert!(is_undisturbed, "subscriptions live through it");
    assert!(taken < SOON, "{taken:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_made_read_only_is_left_for_the_one_that_was_promoted() {
    let old = Cluster::private();
    let database = old.create_database();
    let new = old.standby(true);
    let promoted = new.database(&database.name);
    let server = serve(&[&database.url, &promoted.url]);
    let client = Client::new(&server);
    let followers = follow_the_load(&server.ws_url(), false);
    let load = Load::start(&client, WRITERS, mixed());
    load.until_more_acknowledged(200).await;

    // Its sessions live on; none of them writes any more.
    old.execute("ALTER SYSTEM SET default_transaction_read_only = on");
    old.execute("SELECT pg_reload_conf()");
    let before = load.counts();
    let refused = |counts: &crate::support::load::Counts| counts.failed() > before.failed();
    load.until("appends that are refused", refused).await;
    new.promote();
    load.until_more_acknowledged(200).await;
    let mut ledger = load.stop().await;
    assert_nothing_was_lost(&promoted.url, &client, &mut ledger, &followers).await;
}

/// The standby is behind, and has gone on past the place where the server was before that server looks: by the numbers of its
/// positions nothing is missing, and only the ids tell. The server keeps no read models: nobody has made those on the standby
/// meanwhile, so the head of their changes would tell, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_ends_rather_than_skip_what_takes_the_places_of_events_that_were_lost() {
    const LOST: usize = 3;
    let old = Cluster::private();
    let database = old.create_database();
    let new = old.standby(true);
    let promoted = new.database(&database.name);
    let mut server = prepare(&[&database.url, &promoted.url])
        .arguments(["--background=false"])
        .start();
    let client = Client::new(&server);
    let follow = Follow::everything();
    let follower = Follower::start(&server.ws_url(), follow.clone(), Manner::all(&follow));
    let append = async |count| {
        for _ in 0..count {
            Append::Event(NewEvent::new(Uuid::new_v4(), json!({})))
                .send_until_acknowledged(&client)
                .await;
        }
    };
    append(20).await;

    // From here on nobody waits for the standby, which is away.
    old.execute("ALTER SYSTEM RESET synchronous_standby_names");
    old.execute("SELECT pg_reload_conf()");
    new.stop_immediate();
    append(LOST).await;
    let log = StoredLog::read_whole(&database.url).await;
    follower.assert_was_given_all_of(&log).await;

    server.signal("STOP");
    old.stop_immediate();
    new.start();
    new.promote();
    append_by_sql(&promoted.url, 20 * LOST).await;
    server.signal("CONT");
    let status = server.wait(Duration::from_secs(20));
    assert_eq!(status.code(), Some(1));
    let output = server.output();
    assert!(output.contains("the database has gone back"), "{output}");
    assert!(output.contains("what this server has seen at"), "{output}");

    // Started again, it serves what is there.
    server.restart();
    append(1).await;
    let log = StoredLog::read_whole(&promoted.url).await;
    assert_eq!(log.events.len(), 20 + 20 * LOST + 1);
    let follower = Follower::start(&server.ws_url(), follow.clone(), Manner::all(&follow));
    follower.assert_was_given_all_of(&log).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_primary_the_start_ends_with_what_is_wrong_with_each_server() {
    let primary = Cluster::private();
    let database = primary.create_database();
    let standby = primary.standby(false);
    let of_standby = standby.url_of(&database.name);
    primary.stop_immediate();
    let urls = format!("{},{of_standby}", database.url);
    let (status, output) = TestServer::on(&urls).start_and_fail();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("it is a standby"), "{output}");
    assert!(output.contains("Connection refused"), "{output}");
    let (_, output) = TestServer::on(&of_standby).start_and_fail();
    assert!(output.contains("it is a standby"), "{output}");
}

/// Where nothing tells that it is another database: the file was put back, say, or a pooler hides the connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_behind_what_was_read_from_it_ends_the_server() {
    let server = in_process::TestServer::start().await;
    let client = server.client();
    for _ in 0..3 {
        Append::Event(NewEvent::new(Uuid::new_v4(), json!({})))
            .send_until_acknowledged(&client)
            .await;
    }
    let mut connection = SqliteConnection::connect(&server.database.url())
        .await
        .unwrap();
    let back = "DROP TRIGGER events_refuse_delete; DELETE FROM events WHERE position = 3";
    sqlx::raw_sql(back).execute(&mut connection).await.unwrap();
    assert!(!server.app.lost().is_cancelled());
    // Whoever begins to follow has the server look.
    let query = "subscription { events { event { id } } }";
    let _subscription = client.subscribe(query, json!({})).await;
    let lost = server.app.lost();
    let lost = tokio::time::timeout(Duration::from_secs(30), lost.cancelled());
    lost.await.expect("it finds out");
    assert!(!server.app.ready().await.ready);
}
