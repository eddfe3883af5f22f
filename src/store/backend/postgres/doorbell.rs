//! The doorbell between servers on one PostgreSQL: NOTIFY, after the commit, on a connection of its own. Floor 2.

use std::{convert::Infallible, sync::Arc};

use async_trait::async_trait;
use sea_orm::{
    DatabaseConnection,
    sqlx::{self, postgres::PgListener},
};
use tokio::time::timeout;

use super::{
    super::kept::{Kept, is_answer},
    Doorbell, READ_TIMEOUT, not_acquired, silent, while_running,
};
use crate::store::StoreError;

const CHANNEL: &str = "tidings";

pub(super) struct PostgresDoorbell {
    readers: Arc<Kept<sqlx::Postgres>>,
    /// Of one connection, for hearing.
    listener: DatabaseConnection,
}

impl PostgresDoorbell {
    pub(super) fn new(readers: Arc<Kept<sqlx::Postgres>>, listener: DatabaseConnection) -> Self {
        Self { readers, listener }
    }
}

#[async_trait]
impl Doorbell for PostgresDoorbell {
    async fn ring(&self, text: &str) -> Result<(), StoreError> {
        let mut taken = self.readers.take().await.map_err(not_acquired)?;
        let query = sqlx::query("SELECT pg_notify($1, $2)")
            .bind(CHANNEL)
            .bind(text);
        let Ok(rung) = timeout(READ_TIMEOUT, query.execute(taken.connection())).await else {
            taken.discard();
            return Err(silent());
        };
        if is_answer(&rung) {
            taken.give_back();
        }
        rung.map(drop).map_err(while_running)
    }

    async fn listen(
        &self,
        heard: &(dyn for<'r> Fn(&'r str) + Send + Sync),
    ) -> Result<Infallible, StoreError> {
        let mut listener = PgListener::connect_with(self.listener.get_postgres_connection_pool())
            .await
            .map_err(not_acquired)?;
        listener.listen(CHANNEL).await.map_err(while_running)?;
        loop {
            // The driver connects again by itself and says so by an empty answer: what was rung meanwhile is lost.
            match listener.try_recv().await.map_err(while_running)? {
                Some(ring) => heard(ring.payload()),
                None => heard(""),
            }
        }
    }
}
