//! Stub of floor 5.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Stub.
#[derive(Debug, thiserror::Error)]
#[error("the start failed")]
pub struct StartError;

/// Stub.
#[derive(Debug)]
pub struct Readiness {
    /// Stub.
    pub ready: bool,
    /// Stub.
    pub details: Vec<(String, String)>,
}

/// Stub.
pub struct App {
    stopping: CancellationToken,
    database: String,
    streams: Mutex<HashMap<String, watch::Sender<i64>>>,
}

impl App {
    /// Stub.
    ///
    /// # Errors
    /// Never.
    pub async fn start(config: &Config) -> Result<Arc<App>, StartError> {
        Ok(Arc::new(Self {
            stopping: CancellationToken::new(),
            database: config.database.url.to_string(),
            streams: Mutex::default(),
        }))
    }
    /// Stub.
    ///
    /// # Errors
    /// Never.
    pub async fn migrate(_config: &Config) -> Result<(), StartError> {
        Ok(())
    }
    /// Stub.
    pub async fn ready(&self) -> Readiness {
        Readiness {
            ready: true,
            details: vec![("database".to_owned(), "ok".to_owned())],
        }
    }
    /// Stub.
    pub fn describe_database(&self) -> String {
        self.database.clone()
    }
    /// Stub.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }
    /// Stub.
    pub async fn stop(&self) {
        self.stopping.cancel();
    }
    /// Stub.
    pub fn append(&self, stream: &str) -> i64 {
        let mut streams = self.streams.lock().expect("not poisoned");
        let head = streams
            .entry(stream.to_owned())
            .or_insert_with(|| watch::channel(0).0);
        head.send_modify(|head| *head += 1);
        *head.borrow()
    }
    /// Stub.
    pub fn follow(&self, stream: &str) -> watch::Receiver<i64> {
        let mut streams = self.streams.lock().expect("not poisoned");
        streams
            .entry(stream.to_owned())
            .or_insert_with(|| watch::channel(0).0)
            .subscribe()
    }
}
