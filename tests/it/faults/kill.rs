//! `kill -9` of the server during load, again and again.

use super::*;

const ROUNDS: usize = 10;

on_databases!(
    kill_again_and_again:
    a_killed_server_keeps_what_it_acknowledged_on_sqlite(Sqlite, 1),
    a_killed_server_keeps_what_it_acknowledged_on_postgres(Postgres, 4),
);

async fn kill_again_and_again(engine: Engine, partitions: u8) {
    let database = Arc::new(Database::make(engine));
    let mut server = TestServer::on(&database.url())
        .arguments(["--partitions", &partitions.to_string()])
        .start();
    let client = Client::new(&server);
    let followers = follow_the_load(&server.ws_url(), true);
    let next = Arc::new(mixed());
    let mut ledger = Ledger::default();
    let (mut unanswered, mut found_done) = (0, 0);
    for _ in 0..rounds(ROUNDS) {
        let next = next.clone();
        let load = Load::start(&client, WRITERS, move |writer, call| next(writer, call));
        load.until_more_acknowledged(ACKNOWLEDGED_BEFORE_A_KILL)
            .await;
        server.kill9();
        load.until("a call that is cut off", |counts| counts.cut > 0)
            .await;
        let mut round = load.stop().await;
        server.restart();

        round.assert_kept_in(&StoredLog::read_whole(&database.url()).await);
        unanswered += round.unknown.len();
        found_done += round.repeat_unknown(&client).await;
        ledger.add(round);
        ledger.assert_is_all_of(&StoredLog::read_whole(&database.url()).await);
    }
    println!(
        "{:?}; of {unanswered} unanswered calls {found_done} at least were done",
        ledger.counts
    );
    assert!(
        ledger.counts.acknowledged >= ROUNDS * ACKNOWLEDGED_BEFORE_A_KILL,
        "{:?}",
        ledger.counts
    );
    assert!(unanswered >= ROUNDS, "the kills came during load");
    assert_nothing_was_lost(&database.url(), &client, &mut ledger, &followers).await;
    assert!(
        followers
            .iter()
            .all(|follower| follower.resumed() >= ROUNDS),
        "the subscribers were cut off each time"
    );
}
