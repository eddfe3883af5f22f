//! A server for tests, on a free port, stopped where its handle is dropped.

use std::sync::Arc;

use tidings::{
    app::App,
    config::Config,
    domain::{AggregateId, AggregateType, EventId, EventType, ExpectedVersion, Json, NewEvent},
    domain::{Domain, SystemClock},
    graphql::Graphql,
    handlers::HandlerFunctions,
    http::{self, Server},
};
use uuid::Uuid;

use super::{
    client::{Client, install_tls},
    postgres::{self, Cluster},
};

/// Which database a server stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

/// A database of a test's own, gone with this value.
pub enum Database {
    /// The folder of the file.
    Sqlite(tempfile::TempDir),
    Postgres(Box<postgres::Database>),
}

impl Database {
    /// An empty one.
    pub fn make(engine: Engine) -> Self {
        match engine {
            Engine::Sqlite => Self::Sqlite(tempfile::tempdir().unwrap()),
            Engine::Postgres => Self::Postgres(Box::new(Cluster::shared().create_database())),
        }
    }

    /// As `--database-url` takes it.
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => {
                format!("sqlite://{}/tidings.db", folder.path().display())
            }
            Self::Postgres(database) => database.url.clone(),
        }
    }

    /// The documented defaults on this database and a free port.
    pub fn config(&self) -> Config {
        let mut config = Config::default();
        config.database.url = self.url().parse().unwrap();
        // Tests that run side by side share the connections of one PostgreSQL server.
        config.database.max_connections = 4;
        config.listen.address = "127.0.0.1:0".parse().unwrap();
        config
    }
}

/// A server that runs in this process.
pub struct TestServer {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    /// `ws://127.0.0.1:PORT/graphql`
    pub ws_url: String,
    pub app: Arc<App>,
    server: Server,
    /// Dropped after the server.
    pub database: Arc<Database>,
}

impl TestServer {
    /// Starts a server with the documented defaults.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts a server with a configuration of the test's own.
    pub async fn with(configure: impl FnOnce(&mut Config)) -> Self {
        Self::on(Arc::new(Database::make(Engine::Sqlite)), configure).await
    }

    /// Starts a server on a database, new or not.
    pub async fn on(database: Arc<Database>, configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = database.config();
        configure(&mut config);
        let domain = config.domain.load().unwrap();
        Self::of(database, domain, HandlerFunctions::new(), config).await
    }

    /// Starts a server with functions in Rust that handlers can be registered with.
    pub async fn with_functions(
        database: Arc<Database>,
        functions: HandlerFunctions,
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = database.config();
        configure(&mut config);
        let domain = config.domain.load().unwrap();
        Self::of(database, domain, functions, config).await
    }

    /// Starts a server with a domain of the test's own.
    pub async fn with_domain(
        database: Arc<Database>,
        domain: Domain,
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = database.config();
        configure(&mut config);
        Self::of(database, domain, HandlerFunctions::new(), config).await
    }

    async fn of(
        database: Arc<Database>,
        domain: Domain,
        functions: HandlerFunctions,
        config: Config,
    ) -> Self {
        install_tls();
        let clock = Arc::new(SystemClock);
        let app = App::start_with_functions(&config, domain, functions, clock)
            .await
            .unwrap();
        let graphql = Graphql::new(Arc::clone(&app), &config.limits);
        let listener = http::bind(&config).await.unwrap();
        let server = http::serve(listener, graphql, Arc::clone(&app), &config).unwrap();
        let address = server.local_addr();
        Self {
            url: format!("http://{address}"),
            ws_url: format!("ws://{address}/graphql"),
            app,
            server,
            database,
        }
    }

    /// The address without the scheme.
    pub fn authority(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::to(&format!("{}/graphql", self.url), &self.ws_url)
    }

    /// Stops it as a signal would, and gives back its database.
    pub async fn stop(self) -> Arc<Database> {
        self.server.stop().await;
        self.app.stop().await;
        self.database
    }
}

/// An event as the API hands it on to the appender, with an id that no client chose.
pub fn new_event(aggregate: Uuid) -> NewEvent {
    NewEvent {
        id: EventId(Uuid::new_v4()),
        id_is_given: false,
        aggregate_id: AggregateId(aggregate),
        aggregate_type: AggregateType::new("user").unwrap(),
        event_type: EventType::new("user_created").unwrap(),
        data: Json::empty_object(),
        metadata: Json::empty_object(),
        expected_version: ExpectedVersion::Any,
    }
}
