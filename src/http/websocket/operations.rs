//! The operations that run on one connection. Floor 7.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_graphql::{Response, parser::types::OperationType};
use futures_util::{
    Stream, StreamExt,
    stream::{self, AbortHandle, BoxStream, SelectAll},
};

use crate::{
    domain::access::Caller,
    graphql::Prepared,
    http::{
        answer::{complete_codes, is_request_error},
        graphql::{code_of, execute},
        router::Shared,
    },
    metrics::{self, Counted, Operation},
};

/// What an operation has to say.
pub(super) enum Outcome {
    /// A result.
    Next(Response),
    /// It was refused, and has ended.
    Refused(Response),
    /// It has ended.
    Completed,
}

/// The operations that run on one connection, by id. They are polled only where somebody waits for the next outcome, so nothing queues up.
#[derive(Default)]
pub(super) struct Operations {
    running: SelectAll<BoxStream<'static, (Arc<str>, Outcome)>>,
    handles: HashMap<Arc<str>, Handle>,
}

struct Handle {
    abort: AbortHandle,
    is_subscription: bool,
}

impl Operations {
    pub(super) fn len(&self) -> usize {
        self.handles.len()
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.handles.contains_key(id)
    }

    /// Starts an operation; its id must not be running.
    pub(super) fn start(
        &mut self,
        id: &str,
        shared: &Arc<Shared>,
        prepared: Prepared,
        caller: Caller,
        log_span: tracing::Span,
    ) {
        let id: Arc<str> = id.into();
        let is_subscription = prepared.operation == OperationType::Subscription;
        let outcomes = Logged {
            stream: outcomes(shared, prepared, caller),
            span: log_span,
        };
        let tagged = Arc::clone(&id);
        let (outcomes, abort) =
            stream::abortable(outcomes.map(move |outcome| (Arc::clone(&tagged), outcome)));
        self.running.push(outcomes.boxed());
        let handle = Handle {
            abort,
            is_subscription,
        };
        self.handles.insert(id, handle);
    }

    /// Ends an operation, if it runs.
    pub(super) fn stop(&mut self, id: &str) {
        if let Some(handle) = self.handles.remove(id) {
            handle.abort.abort();
        }
    }

    /// Ends the subscriptions; queries and mutations, which end by themselves, go on.
    pub(super) fn stop_subscriptions(&mut self) {
        let subscriptions = self.handles.extract_if(|_, handle| handle.is_subscription);
        subscriptions.for_each(|(_, handle)| handle.abort.abort());
    }

    /// The next outcome of any operation; waits where there is none.
    pub(super) async fn next(&mut self) -> (Arc<str>, Outcome) {
        let Some((id, outcome)) = self.running.next().await else {
            return std::future::pending().await;
        };
        if matches!(outcome, Outcome::Refused(_) | Outcome::Completed) {
            self.stop(&id);
        }
        (id, outcome)
    }
}

/// The outcomes of an operation, each line of the log that is written for them under its ids.
struct Logged {
    stream: BoxStream<'static, Outcome>,
    span: tracing::Span,
}

impl Stream for Logged {
    type Item = Outcome;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        let this = &mut *self;
        let _entered = this.span.enter();
        this.stream.as_mut().poll_next(cx)
    }
}

fn outcomes(
    shared: &Arc<Shared>,
    prepared: Prepared,
    caller: Caller,
) -> BoxStream<'static, Outcome> {
    let is_subscription = prepared.operation == OperationType::Subscription;
    let mut running = is_subscription.then(|| Running::begin(shared));
    let responses = if is_subscription {
        shared.graphql.subscribe(prepared, caller)
    } else {
        let shared = Arc::clone(shared);
        let execution = async move { execute(&shared, prepared, caller).await };
        stream::once(execution).boxed()
    };
    let results = responses.enumerate().map(move |(index, mut response)| {
        complete_codes(&mut response);
        if let Some(running) = &mut running {
            running.hear(&response);
        }
        if index == 0 && (is_request_error(&response) || is_subscription && is_not_begun(&response))
        {
            Outcome::Refused(response)
        } else {
            Outcome::Next(response)
        }
    });
    results
        .chain(stream::once(async { Outcome::Completed }))
        .boxed()
}

/// A subscription that runs: it is counted while it does, and by what it came to when it has ended.
struct Running {
    shared: Arc<Shared>,
    /// The code of the error that it ended with.
    code: Option<String>,
    _counted: Counted,
}

impl Running {
    fn begin(shared: &Arc<Shared>) -> Self {
        Self {
            _counted: shared.app.metrics().subscription(),
            shared: Arc::clone(shared),
            code: None,
        }
    }

    fn hear(&mut self, response: &Response) {
        if !response.errors.is_empty() {
            self.code = Some(code_of(response).to_owned());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let code = self.code.as_deref().unwrap_or(metrics::OK);
        let metrics = self.shared.app.metrics();
        metrics.count_request(Operation::Subscription, code, None);
    }
}

/// Whether a subscription's field refused to begin: the error's path is the field's own.
fn is_not_begun(response: &Response) -> bool {
    !response.errors.is_empty()
        && response.data == async_graphql::Value::Null
        && response.errors.iter().all(|error| error.path.len() <= 1)
}
