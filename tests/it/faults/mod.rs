//! What happens to appends and subscriptions when the server, its database, its clients or its disk fail.

/// Makes a test of a case on each of some databases, each with its partitions.
macro_rules! on_databases {
    ($case:ident: $($name:ident($engine:ident, $partitions:literal)),+ $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $case(Engine::$engine, $partitions).await;
        }
    )+};
}

mod disk;
mod dump;
mod failover;
mod handlers;
mod hang_up;
mod held_lock;
mod kill;
mod kill_commands;
mod mixed_load;
mod outage;
mod projection;
mod servers;
mod silence;
mod stop;
mod stop_commands;

use std::sync::Arc;

use crate::support::client::Client;
use crate::support::follow::{Filter, Follow, Follower, Manner};
use crate::support::in_process::{Database, Engine};
use crate::support::load::{Ledger, Load, mixed};
use crate::support::log::StoredLog;
use crate::support::server::TestServer;

/// Writers during a fault.
const WRITERS: usize = 16;

/// Calls that are acknowledged at least before a server is killed.
const ACKNOWLEDGED_BEFORE_A_KILL: usize = 150;

/// More of it where the run may take long.
fn rounds(usual: usize) -> usize {
    if std::env::var_os("TIDINGS_LONG").is_some() {
        usual * 10
    } else {
        usual
    }
}

/// Kills a server during load, again and again: what it has acknowledged, without open questions.
async fn kill_during_load(server: &mut TestServer, client: &Client, kills: usize) -> Ledger {
    let next = Arc::new(mixed());
    let mut ledger = Ledger::default();
    for _ in 0..rounds(kills) {
        let next = next.clone();
        let load = Load::start(client, WRITERS, move |writer, call| next(writer, call));
        load.until_more_acknowledged(ACKNOWLEDGED_BEFORE_A_KILL)
            .await;
        server.kill9();
        load.until("a call that is cut off", |counts| counts.cut > 0)
            .await;
        ledger.add(load.stop().await);
        server.restart();
    }
    ledger.repeat_unknown(client).await;
    ledger
}

/// Subscribers of everything that [`mixed`] appends, with and without a filter, each from the beginning.
fn follow_the_load(ws_url: &str, resumes: bool) -> Vec<Follower> {
    let events = |aggregate_types: &[&str], progress| Follow::Events {
        filter: Filter {
            aggregate: None,
            aggregate_types: aggregate_types
                .iter()
                .map(|&name| name.to_owned())
                .collect(),
        },
        progress,
    };
    [
        events(&[], false),
        events(&[], true),
        events(&["load", "other"], false),
        Follow::Stream("stream-0".to_owned()),
        Follow::Stream("stream-3".to_owned()),
    ]
    .into_iter()
    .map(|follow| {
        let manner = Manner {
            resumes,
            ..Manner::all(&follow)
        };
        Follower::start(ws_url, follow, manner)
    })
    .collect()
}

/// A ledger without open questions against what is stored, and what subscribers were given against that.
async fn assert_nothing_was_lost(
    database_url: &str,
    client: &Client,
    ledger: &mut Ledger,
    followers: &[Follower],
) {
    ledger.assert_kept_in(&StoredLog::read_whole(database_url).await);
    ledger.repeat_unknown(client).await;
    let log = StoredLog::read_whole(database_url).await;
    ledger.assert_is_all_of(&log);
    for follower in followers {
        let given = follower.assert_was_given_all_of(&log).await;
        assert!(given > 0, "there was something to be given");
    }
}
