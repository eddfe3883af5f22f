//! The API: GraphQL over the app. Floor 6. One file for each resource; resolvers only check, call and wrap.

mod access;
mod aggregate;
mod batching;
mod command;
mod delivery;
mod documents;
mod errors;
mod event;
mod event_handler;
mod event_metric;
mod json;
mod loaders;
mod order;
mod pagination;
mod plain;
mod read_model;
mod read_model_changes;
mod scalars;
mod schema;
mod server;
mod stream;
mod text;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_graphql::{Request, Response, ServerError, parser::types::OperationType};
use futures_util::{FutureExt, StreamExt, stream::BoxStream};

pub use self::json::AsJson;
use self::{
    batching::Batched, documents::Documents, errors::ApiError, loaders::Loaders, order::Shape,
    plain::SelectsTwice, schema::Schema,
};
use crate::{
    app::App,
    config::Limits,
    domain::{Caller, Json, json::JsonError},
};

/// The API of one app.
#[derive(Clone)]
pub struct Graphql {
    app: Arc<App>,
    schema: Schema,
    documents: Arc<Documents>,
    max_folded_events: usize,
}

/// A request whose document is parsed, and the kind of its operation.
pub struct Prepared {
    request: Request,
    shape: Option<Arc<Shape>>,
    /// What would run.
    pub operation: OperationType,
    /// For how long it may.
    pub time_limit: TimeLimit,
}

/// Whether an operation has to be done in the time that one may take. A resolver lifts that whose work takes as long as it takes.
#[derive(Clone, Debug, Default)]
pub struct TimeLimit {
    is_lifted: Arc<AtomicBool>,
}

impl TimeLimit {
    fn lift(&self) {
        self.is_lifted.store(true, Ordering::Relaxed);
    }

    /// Whether the operation may take longer.
    #[must_use]
    pub fn is_lifted(&self) -> bool {
        self.is_lifted.load(Ordering::Relaxed)
    }
}

/// The limits that resolvers check.
struct Limited {
    max_event_bytes: usize,
    max_events_per_append: usize,
}

impl Limited {
    fn check_bytes(&self, field: &str, json: &Json) -> Result<(), ApiError> {
        let (bytes, limit) = (json.as_str().len(), self.max_event_bytes);
        if bytes > limit {
            return Err(ApiError::bad_input(
                field,
                JsonError::TooLarge { bytes, limit },
            ));
        }
        Ok(())
    }

    fn check_events(&self, count: usize) -> Result<(), ApiError> {
        let limit = self.max_events_per_append;
        if count == 0 || count > limit {
            let message = format!(
                "must have 1 to {limit} events (the option --max-events-per-append), not {count}"
            );
            return Err(ApiError::bad_input("input.events", message));
        }
        Ok(())
    }
}

impl Graphql {
    /// Builds the API.
    #[must_use]
    pub fn new(app: Arc<App>, limits: &Limits) -> Self {
        let schema = schema::build()
            .data(Limited {
                max_event_bytes: limits.max_event_bytes,
                max_events_per_append: limits.max_events_per_append,
            })
            .data(app.clone())
            .limit_depth(limits.max_depth)
            .limit_complexity(limits.max_complexity)
            .limit_directives(documents::MAX_DIRECTIVES)
            .finish();
        Self {
            app,
            schema,
            documents: Arc::new(Documents::new()),
            max_folded_events: limits.max_folded_events,
        }
    }

    /// Parses the document of a request, or finds it parsed, and says what kind of operation would run.
    ///
    /// # Errors
    /// The answer to a document that cannot be parsed, or that has no such operation.
    pub fn prepare(&self, mut request: Request) -> Result<Prepared, Box<Response>> {
        let document = self.documents.parsed(&request.query).map_err(refuse)?;
        let operation = document
            .operation(request.operation_name.as_deref())
            .map_err(refuse)?;
        request.set_parsed_query(document.parsed.clone());
        Ok(Prepared {
            request,
            shape: operation.shape,
            operation: operation.kind,
            time_limit: TimeLimit::default(),
        })
    }

    /// Executes a query or a mutation. The answer's data is written by [`AsJson`].
    pub async fn execute(&self, prepared: Prepared, caller: Caller) -> Response {
        let loaders = Loaders::new(&self.app, self.max_folded_events);
        let request = prepared
            .request
            .data(caller)
            .data(loaders.clone())
            .data(prepared.time_limit)
            .data(selects_twice(prepared.shape.as_deref()));
        let mut response = Batched::new(self.schema.execute(request).boxed(), loaders).await;
        finish(&mut response, prepared.shape.as_deref(), Some(&caller));
        response
    }

    /// Executes a subscription; a query or a mutation answers once. The answers' data is written by [`AsJson`].
    pub fn subscribe(&self, prepared: Prepared, caller: Caller) -> BoxStream<'static, Response> {
        let shape = prepared.shape;
        let loaders = Loaders::new(&self.app, self.max_folded_events);
        let request = prepared
            .request
            .data(caller)
            .data(loaders.clone())
            .data(prepared.time_limit)
            .data(selects_twice(shape.as_deref()));
        Batched::new(self.schema.execute_stream(request).boxed(), loaders.clone())
            .map(move |mut response| {
                loaders.begin_next_answer();
                finish(&mut response, shape.as_deref(), Some(&caller));
                response
            })
            .boxed()
    }

    /// The schema in the schema definition language.
    #[must_use]
    pub fn sdl(&self) -> String {
        self.schema.sdl()
    }
}

/// The schema in the schema definition language, without a database.
#[must_use]
pub fn sdl() -> String {
    schema::build().finish().sdl()
}

/// A shape that is too large to be known may select anything.
fn selects_twice(shape: Option<&Shape>) -> SelectsTwice {
    SelectsTwice(shape.is_none_or(Shape::selects_twice))
}

fn refuse(error: ServerError) -> Box<Response> {
    let mut response = Response::from_errors(vec![error]);
    finish(&mut response, None, None);
    Box::new(response)
}

fn finish(response: &mut Response, shape: Option<&Shape>, caller: Option<&Caller>) {
    if let Some(shape) = shape {
        shape.arrange(&mut response.data);
    }
    response.errors.truncate(errors::MAX_ERRORS);
    for error in &mut response.errors {
        errors::finish(error, caller);
    }
}
