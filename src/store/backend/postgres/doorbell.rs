//! The doorbell between servers on one PostgreSQL: NOTIFY, after the commit, on a connection of its own. Floor 2.

use std::{convert::Infallible, sync::Arc};

use async_trait::async_trait;
use sea_orm::sqlx::{self, Pool, postgres::PgListener};

use super::{
    super::kept::{Gate, Kept, is_answer},
    Doorbell, GRACE, Primary, READ_TIMEOUT, not_acquired, silent, while_running,
};
use crate::store::StoreError;

const CHANNEL: &str = "tidings";

pub(super) struct PostgresDoorbell {
    readers: Arc<Kept<sqlx::Postgres>>,
    /// Of one connection, for hearing.
    listener: Pool<sqlx::Postgres>,
    primary: Arc<Primary>,
}

impl PostgresDoorbell {
    pub(super) fn new(
        readers: Arc<Kept<sqlx::Postgres>>,
        listener: Pool<sqlx::Postgres>,
        primary: Arc<Primary>,
    ) -> Self {
        Self {
            readers,
            listener,
            primary,
        }
    }

    async fn hear(
        &self,
        heard: &(dyn for<'r> Fn(&'r str) + Send + Sync),
    ) -> Result<Infallible, StoreError> {
        let mut listener = PgListener::connect_with(&self.listener)
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

#[async_trait]
impl Doorbell for PostgresDoorbell {
    async fn ring(&self, text: &str) -> Result<(), StoreError> {
        let mut taken = self.readers.take().await.map_err(not_acquired)?;
        let query = sqlx::query("SELECT pg_notify($1, $2)")
            .bind(CHANNEL)
            .bind(text);
        let epoch = taken.epoch();
        let rung = query.execute(taken.connection());
        let limit = READ_TIMEOUT + GRACE;
        let Some(rung) = self.primary.while_primary(epoch, limit, rung).await else {
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
        let epoch = self.primary.epoch();
        let lost = tokio::select! {
            lost = self.hear(heard) => lost,
            // Nobody rings at a server that is the primary no more.
            () = self.primary.left(epoch) => Err(silent()),
        };
        self.primary.lost();
        lost
    }
}
