//! The server itself. Floor 6.

use std::sync::Arc;

use async_graphql::{Context, Object, Result};

use super::{access::require, errors::ApiError, scalars::DateTimeScalar};
use crate::{
    app::App,
    domain::{Cursor, Place, Role},
};

/// The server and its database.
pub struct Server;

/// The server and its database.
#[Object]
impl Server {
    /// The version of tidings.
    async fn version(&self) -> &str {
        env!("CARGO_PKG_VERSION")
    }

    /// sqlite or postgres.
    async fn database(&self, ctx: &Context<'_>) -> &'static str {
        ctx.data_unchecked::<Arc<App>>().store().kind()
    }

    /// How many partitions the database has.
    async fn partitions(&self, ctx: &Context<'_>) -> i32 {
        i32::try_from(ctx.data_unchecked::<Arc<App>>().store().partitions().get())
            .unwrap_or(i32::MAX)
    }

    /// The newest place in the event log: take it before reading a list, and subscribe behind it after. The subscription
    /// `readModels` takes it too.
    async fn head_cursor(&self, ctx: &Context<'_>) -> Result<String> {
        let store = ctx.data_unchecked::<Arc<App>>().store();
        let heads = store.heads().await.map_err(ApiError::from)?;
        let head = Cursor::Head {
            events: Place::behind(heads.events),
            changes: heads.changes,
        };
        Ok(head.encode(store.database_id(), store.partitions()))
    }

    /// When the server started.
    async fn started_at(&self, ctx: &Context<'_>) -> DateTimeScalar {
        DateTimeScalar(ctx.data_unchecked::<Arc<App>>().started_at())
    }
}

#[derive(Default)]
pub struct ServerQuery;

#[Object]
impl ServerQuery {
    /// The server and its database.
    async fn server(&self, ctx: &Context<'_>) -> Result<Server> {
        require(ctx, Role::Read)?;
        Ok(Server)
    }
}
