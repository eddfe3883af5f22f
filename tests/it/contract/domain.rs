//! Which domain is in force: that of the newest start.

use std::{
    fs, io,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tidings::{app::App, domain::Domain};

use super::{Contract, database::text};
use crate::support::in_process::{Engine, TestServer};

cases!(
    a_start_puts_its_domain_in_force,
    the_newest_start_is_in_force_whatever_the_clocks_say,
    a_wrong_domain_file_stops_the_start,
);

const OTHER: &str = "[aggregates.account.commands.open_account]\nevent = \"account_opened\"\n";

/// The server again, with the domain of a file; without one, with the built-in domain.
async fn restarted(contract: Contract, file: Option<&str>) -> Contract {
    let (engine, partitions) = (contract.engine, contract.partitions);
    let database = contract.server.stop().await;
    let folder = tempfile::tempdir().unwrap();
    let path = file.map(|text| {
        let path = folder.path().join("domain.toml");
        fs::write(&path, text).unwrap();
        path
    });
    let server = TestServer::on(database, |config| config.domain.path = path).await;
    Contract {
        engine,
        partitions,
        client: server.client(),
        server,
    }
}

async fn a_start_puts_its_domain_in_force(contract: Contract) {
    let in_force = async |contract: &Contract| {
        let in_force = contract.server.app.store().domain_in_force().await;
        in_force.unwrap().unwrap()
    };
    let guide = in_force(&contract).await;
    assert_eq!(guide.fingerprint, Domain::guide().fingerprint());
    let stored = text(
        &contract.server.database,
        "SELECT CAST(content AS text) FROM domains",
    )
    .await;
    let stored: Value = serde_json::from_str(&stored).unwrap();
    let create = &stored["aggregates"]["user"]["commands"]["create_user"];
    assert_eq!(create["event"], "user_created");
    assert_eq!(create["requires"], "absent");
    assert_eq!(create["schema"]["required"], json!(["username"]));
    assert_eq!(stored["aggregates"]["user"]["publish_to"], "user_events");
    let deleted = &stored["aggregates"]["user"]["events"]["user_deleted"];
    assert_eq!(deleted["state"], "delete");

    let contract = restarted(contract, None).await;
    assert_eq!(in_force(&contract).await, guide, "the same one again");

    let contract = restarted(contract, Some(OTHER)).await;
    let other = in_force(&contract).await;
    assert_ne!(other.fingerprint, guide.fingerprint);
    assert!(other.since > guide.since);

    let contract = restarted(contract, None).await;
    let again = in_force(&contract).await;
    assert_eq!(again.fingerprint, guide.fingerprint);
    assert!(again.since > other.since);
    let count = text(
        &contract.server.database,
        "SELECT CAST(count(*) AS text) FROM domains",
    );
    assert_eq!(count.await, "2");
    assert!(contract.server.app.ready().await.ready);
}

async fn the_newest_start_is_in_force_whatever_the_clocks_say(contract: Contract) {
    let ahead = "UPDATE domains SET in_force_from = '2999-12-31T23:59:59.999000+00:00'";
    super::database::execute(&contract.server.database, ahead)
        .await
        .unwrap();
    let contract = restarted(contract, Some(OTHER)).await;
    let in_force = contract.server.app.store().domain_in_force().await;
    assert_eq!(
        in_force.unwrap().unwrap().fingerprint,
        contract.server.app.domain().fingerprint()
    );
}

async fn a_wrong_domain_file_stops_the_start(contract: Contract) {
    let database = contract.server.stop().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), OTHER.replace("event", "events")).unwrap();
    let mut config = database.config();
    config.domain.path = Some(file.path().to_owned());
    let Err(error) = App::start(&config).await else {
        panic!("it was to be refused");
    };
    let line = format!("{}:2:1: unknown key `events`", file.path().display());
    assert!(error.to_string().contains(&line), "{error}");
    let stored = text(&database, "SELECT CAST(count(*) AS text) FROM domains").await;
    assert_eq!(stored, "1", "nothing was put in force");
}

/// What was logged, as text.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn count(&self, text: &str) -> usize {
        let lines = self.0.lock().unwrap();
        String::from_utf8_lossy(&lines).matches(text).count()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_server_whose_domain_is_no_longer_in_force_goes_on_and_says_so() {
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().with_writer(move || writer.clone());
    let _log = tracing::subscriber::set_default(log.finish());
    let contract = Contract::on(Engine::Postgres, 1).await;
    let detail = async |contract: &Contract| {
        let readiness = contract.server.app.ready().await;
        assert!(readiness.ready);
        let details = readiness.details.into_iter();
        let (_, text) = details
            .into_iter()
            .find(|(name, _)| name == "domain")
            .unwrap();
        text
    };
    assert_eq!(detail(&contract).await, "ok");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domain.toml");
    fs::write(&path, OTHER).unwrap();
    let other = TestServer::on(Arc::clone(&contract.server.database), |config| {
        config.domain.path = Some(path);
    })
    .await;
    for _ in 0..3 {
        assert!(detail(&contract).await.contains("goes on with its own"));
    }
    let told = "another server has brought another domain into force";
    assert_eq!(lines.count(told), 1, "it is said once");
    let other = Contract {
        engine: Engine::Postgres,
        partitions: 1,
        client: other.client(),
        server: other,
    };
    assert_eq!(detail(&other).await, "ok");
    contract.fill(1).await;

    let third = TestServer::on(Arc::clone(&contract.server.database), |_| {}).await;
    assert_eq!(detail(&contract).await, "ok", "its own is in force again");
    assert_eq!(lines.count("is in force again"), 1);
    assert!(detail(&other).await.contains("goes on with its own"));
    third.stop().await;
}
