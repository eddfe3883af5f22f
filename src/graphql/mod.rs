//! Stub of floor 6.

use std::sync::Arc;

use async_graphql::{
    Context, Error, ErrorExtensions, InputObject, Object, Request, Response, Result, Schema,
    SimpleObject, Subscription, Value,
    parser::types::{DocumentOperations, OperationType},
};
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};

use crate::{
    app::App,
    config::Limits,
    domain::access::{Caller, Role},
};

/// Stub.
#[derive(Clone)]
pub struct Graphql {
    schema: Schema<Query, Mutation, Feed>,
}

/// Stub.
pub struct Prepared {
    /// Stub.
    pub request: Request,
    /// Stub.
    pub operation: OperationType,
}

struct Query;
struct Mutation;
struct Feed;

#[derive(SimpleObject)]
struct Server {
    version: String,
}

#[derive(SimpleObject)]
struct StreamInfo {
    name: String,
}

#[derive(SimpleObject)]
struct StreamEntry {
    position: i64,
    stream_name: String,
}

#[derive(SimpleObject)]
struct AppendToStreamPayload {
    entry: StreamEntry,
    duplicate: bool,
}

#[derive(InputObject)]
struct AppendToStreamInput {
    stream_name: String,
    event_id: String,
    r#type: String,
    data: async_graphql::Json<Value>,
}

fn need(ctx: &Context<'_>, role: Role) -> Result<()> {
    if ctx.data::<Caller>()?.role < role {
        return Err(Error::new("the token's role does not allow this")
            .extend_with(|_, e| e.set("code", "FORBIDDEN")));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::new("a name has 1 to 100 characters")
            .extend_with(|_, e| e.set("code", "BAD_USER_INPUT")));
    }
    Ok(())
}

#[Object]
impl Query {
    async fn server(&self) -> Server {
        Server {
            version: "stub".to_owned(),
        }
    }
    async fn stream(&self, name: String) -> Result<Option<StreamInfo>> {
        check_name(&name)?;
        Ok(Some(StreamInfo { name }))
    }
    /// Never answers, for tests of time-outs.
    async fn hang(&self) -> bool {
        std::future::pending().await
    }
}

#[Object]
impl Mutation {
    async fn append_to_stream(
        &self,
        ctx: &Context<'_>,
        input: AppendToStreamInput,
    ) -> Result<AppendToStreamPayload> {
        need(ctx, Role::Write)?;
        check_name(&input.stream_name)?;
        let position = ctx.data::<Arc<App>>()?.append(&input.stream_name);
        Ok(AppendToStreamPayload {
            entry: StreamEntry {
                position,
                stream_name: input.stream_name,
            },
            duplicate: false,
        })
    }
}

#[Subscription]
impl Feed {
    async fn stream_entries(
        &self,
        ctx: &Context<'_>,
        stream_name: String,
        after: Option<i64>,
    ) -> Result<impl Stream<Item = StreamEntry> + use<>> {
        check_name(&stream_name)?;
        let mut head = ctx.data::<Arc<App>>()?.follow(&stream_name);
        let after = after.unwrap_or_else(|| *head.borrow_and_update());
        Ok(stream::unfold(
            (head, after, stream_name),
            |(mut head, at, name)| async move {
                head.wait_for(|head| *head > at).await.ok()?;
                Some((
                    StreamEntry {
                        position: at + 1,
                        stream_name: name.clone(),
                    },
                    (head, at + 1, name),
                ))
            },
        ))
    }
}

impl Graphql {
    /// Stub.
    pub fn new(app: Arc<App>, limits: &Limits) -> Self {
        let schema = Schema::build(Query, Mutation, Feed)
            .data(app)
            .limit_depth(limits.max_depth)
            .finish();
        Self { schema }
    }

    /// Stub.
    ///
    /// # Errors
    /// A ready answer.
    pub fn prepare(&self, mut request: Request) -> Result<Prepared, Box<Response>> {
        let name = request.operation_name.clone();
        let document = request.parsed_query().map_err(|mut error| {
            error
                .extensions
                .get_or_insert_default()
                .set("code", "BAD_USER_INPUT");
            Box::new(Response::from_errors(vec![error]))
        })?;
        let operation = match &document.operations {
            DocumentOperations::Single(one) => one.node.ty,
            DocumentOperations::Multiple(many) => {
                match name.and_then(|name| many.get(name.as_str())) {
                    Some(one) => one.node.ty,
                    None => OperationType::Query,
                }
            }
        };
        Ok(Prepared { request, operation })
    }

    /// Stub.
    pub async fn execute(&self, prepared: Prepared, caller: Caller) -> Response {
        self.schema.execute(prepared.request.data(caller)).await
    }

    /// Stub.
    pub fn subscribe(&self, prepared: Prepared, caller: Caller) -> BoxStream<'static, Response> {
        self.schema
            .execute_stream(prepared.request.data(caller))
            .boxed()
    }

    /// Stub.
    pub fn sdl(&self) -> String {
        self.schema.sdl()
    }
}

/// Stub.
pub fn sdl() -> String {
    Schema::new(Query, Mutation, Feed).sdl()
}
