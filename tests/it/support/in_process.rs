//! A server for tests, on a free port, stopped where its handle is dropped.

use std::sync::Arc;

use tidings::{
    app::App,
    config::Config,
    graphql::Graphql,
    http::{self, Server},
};

/// A server that runs in this process.
pub struct TestServer {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    /// `ws://127.0.0.1:PORT/graphql`
    pub ws_url: String,
    server: Server,
    /// The folder of its SQLite file.
    _folder: tempfile::TempDir,
}

impl TestServer {
    /// Starts a server with the documented defaults.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts a server with a configuration of the test's own.
    pub async fn with(configure: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.database.url = format!("sqlite://{}/tidings.db", folder.path().display())
            .parse()
            .unwrap();
        config.listen.address = "127.0.0.1:0".parse().unwrap();
        configure(&mut config);
        let app = App::start(&config).await.unwrap();
        let graphql = Graphql::new(Arc::clone(&app), &config.limits);
        let listener = http::bind(&config).await.unwrap();
        let server = http::serve(listener, graphql, app, &config).unwrap();
        let address = server.local_addr();
        Self {
            url: format!("http://{address}"),
            ws_url: format!("ws://{address}/graphql"),
            server,
            _folder: folder,
        }
    }

    /// The address without the scheme.
    pub fn authority(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Stops it as a signal would.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}
