//! The tests' own ground: the cluster is private, durable, shared by a run, and comes back after a crash.

use sea_orm::sqlx::{self, Connection, PgConnection};

use crate::support::postgres::Cluster;

async fn ask(url: &str, question: &'static str) -> Result<String, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::query_scalar(question)
        .fetch_one(&mut connection)
        .await
}

#[tokio::test]
async fn databases_of_the_shared_cluster_are_apart_and_durable() {
    let (one, other) = (
        Cluster::shared().create_database(),
        Cluster::shared().create_database(),
    );
    assert_ne!(one.name, other.name);
    for setting in [
        "SHOW fsync",
        "SHOW synchronous_commit",
        "SHOW full_page_writes",
    ] {
        assert_eq!(ask(&one.url, setting).await.unwrap(), "on", "{setting}");
    }
    assert_eq!(
        ask(&one.url, "SELECT current_database()::text")
            .await
            .unwrap(),
        one.name
    );
    assert_eq!(
        ask(&other.url, "SELECT current_database()::text")
            .await
            .unwrap(),
        other.name
    );
}

#[tokio::test]
async fn a_private_cluster_stops_as_in_a_crash_and_comes_back_on_its_port_with_its_data() {
    let cluster = Cluster::private();
    assert_ne!(cluster.port(), Cluster::shared().port());
    let database = cluster.create_database();
    assert_eq!(
        ask(
            &database.url,
            "WITH made AS (SELECT 'kept') SELECT * FROM made"
        )
        .await
        .unwrap(),
        "kept"
    );

    cluster.stop_immediate();
    assert!(ask(&database.url, "SELECT 'still there'").await.is_err());
    cluster.start();
    assert_eq!(
        ask(&database.url, "SELECT current_database()::text")
            .await
            .unwrap(),
        database.name
    );

    let folder = ask(
        &database.url,
        "SELECT setting FROM pg_settings WHERE name = 'data_directory'",
    )
    .await
    .unwrap();
    assert!(std::path::Path::new(&folder).exists());
    drop(cluster);
    assert!(
        !std::path::Path::new(&folder).exists(),
        "its folder goes with it"
    );
}
