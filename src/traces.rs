//! Traces: spans by OpenTelemetry, sent on by OTLP where an endpoint is set, and nothing at all where none is. Floor 2: all
//! that works on a request or an event has its spans, and only this module knows whose library they are.
//!
//! What is current is the task's own: [`Span::within`] makes a span current while a future is polled.

mod export;

use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::Either;
use opentelemetry::{
    Context, Key, KeyValue, SpanId, TraceFlags, TraceId, Value,
    context::{FutureExt, WithContext},
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, TraceState, Tracer,
        TracerProvider,
    },
};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan},
};
use url::Url;

use crate::domain::{
    AggregateType, Clock, Event, HandlerName, Json, Position, Timestamp, TraceParent,
};

/// How long a stop waits for the last spans to be sent.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// What a handler does with an event.
const HANDLE: &str = "handle";
const HANDLER: &str = "tidings.handler";
/// So many events were worked on together.
const BATCH_EVENTS: &str = "tidings.batch.events";

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The client of the collector cannot be made.
    #[error("traces cannot be sent to {endpoint}")]
    Client {
        /// The collector.
        endpoint: Url,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where spans are begun. Cheap to clone; without an endpoint it does nothing.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Tracing>>);

struct Tracing {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    clock: Arc<dyn Clock>,
}

/// An event that a trace goes through, as it was found in its metadata.
#[derive(Clone, Debug)]
pub struct TracedEvent {
    parent: TraceParent,
    event: Arc<Event>,
}

impl TracedEvent {
    /// Where it is in its partition.
    #[must_use]
    pub fn position(&self) -> Position {
        self.event.position
    }

    /// The type of its aggregate.
    #[must_use]
    pub fn aggregate_type(&self) -> &AggregateType {
        &self.event.aggregate_type
    }
}

impl Traces {
    /// Begins to send spans to the collector at an endpoint; none: there are no traces. To be called within a runtime.
    ///
    /// # Errors
    /// When the collector's client cannot be made.
    pub fn start(endpoint: Option<&Url>, clock: Arc<dyn Clock>) -> Result<Self, TracesError> {
        let Some(endpoint) = endpoint else {
            return Ok(Self(None));
        };
        let exporter = export::exporter(endpoint).map_err(|source| TracesError::Client {
            endpoint: endpoint.clone(),
            source,
        })?;
        // What the environment says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER) holds.
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource())
            .build();
        let tracer = provider.tracer("tidings");
        Ok(Self(Some(Arc::new(Tracing {
            provider,
            tracer,
            clock,
        }))))
    }

    /// Whether there are traces.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A span for what a client asks for: below the one that is current, else below the client's own, else a new trace.
    #[must_use]
    pub fn serve(&self, name: impl Into<Cow<'static, str>>, client: Option<TraceParent>) -> Span {
        let Some(tracing) = &self.0 else {
            return Span(None);
        };
        let current = Context::current();
        if current.has_active_span() {
            return tracing.open(name, SpanKind::Internal, &current);
        }
        let above = client.map_or(current, of_parent);
        tracing.open(name, SpanKind::Server, &above)
    }

    /// A span below the one that is current; none where nothing is.
    #[must_use]
    pub fn begin(&self, name: &'static str) -> Span {
        let Some(tracing) = &self.0 else {
            return Span(None);
        };
        let current = Context::current();
        if !current.span().span_context().is_sampled() {
            return Span(None);
        }
        tracing.open(name, SpanKind::Internal, &current)
    }

    /// Where the work of this task is in its trace; none where it is not recorded.
    #[must_use]
    pub fn current(&self) -> Option<TraceParent> {
        self.0.as_ref()?;
        place_of(&Context::current())
    }

    /// A span that goes on with the trace that metadata names; none where it names none.
    #[must_use]
    pub fn go_on(&self, name: &'static str, metadata: &Json) -> Span {
        let Some(tracing) = &self.0 else {
            return Span(None);
        };
        match TraceParent::of_metadata(metadata).filter(|parent| parent.is_sampled) {
            Some(parent) => tracing.open(name, SpanKind::Consumer, &of_parent(parent)),
            None => Span(None),
        }
    }

    /// The time now, for spans that are recorded when they are over; none where there are no traces.
    #[must_use]
    pub fn now(&self) -> Option<Timestamp> {
        Some(self.0.as_ref()?.clock.now())
    }

    /// The events that a trace goes through, and the time now; none where there are none of them, or no traces.
    #[must_use]
    pub fn traced(&self, events: &[Arc<Event>]) -> Option<(Vec<TracedEvent>, Timestamp)> {
        let now = self.now()?;
        let traced = |event: &Arc<Event>| {
            let parent = TraceParent::of_metadata(&event.metadata)?;
            parent.is_sampled.then(|| TracedEvent {
                parent,
                event: event.clone(),
            })
        };
        let traced: Vec<TracedEvent> = events.iter().filter_map(traced).collect();
        (!traced.is_empty()).then_some((traced, now))
    }

    /// A span for one call of a handler with an event, in the event's trace; none where that has none.
    #[must_use]
    pub fn handle(&self, handler: &HandlerName, event: &Event) -> Span {
        let span = self.go_on(HANDLE, &event.metadata);
        if let Span(Some((context, _))) = &span {
            let mut attributes = about(event);
            attributes.push(KeyValue::new(HANDLER, handler.to_string()));
            context.span().set_attributes(attributes);
        }
        span
    }

    /// Records what is being done to some events, from an instant until this is dropped: a span in the trace of each. Also
    /// where the work is cut off, for what was asked of the database last may be done then.
    #[must_use]
    pub fn recording(
        &self,
        name: &'static str,
        events: Vec<TracedEvent>,
        from: Timestamp,
    ) -> Recording {
        Recording {
            traces: self.clone(),
            name,
            events,
            from,
        }
    }

    fn record_events(&self, name: &'static str, traced: &[TracedEvent], from: Timestamp) {
        let Some(tracing) = &self.0 else { return };
        let times = (from, tracing.clock.now());
        for TracedEvent { parent, event } in traced {
            let mut attributes = about(event);
            attributes.push(KeyValue::new(BATCH_EVENTS, count(traced.len())));
            let above = of_parent(*parent);
            tracing.record(name, SpanKind::Consumer, &above, times, attributes);
        }
    }

    /// Records what a handler did with a batch of events, from an instant until now: a span in the trace of each. `fault` says why
    /// it failed for an event at a place.
    pub fn record_handled(
        &self,
        handler: &HandlerName,
        traced: &[TracedEvent],
        from: Timestamp,
        fault: impl Fn(Position) -> Option<String>,
    ) {
        let Some(tracing) = &self.0 else { return };
        let times = (from, tracing.clock.now());
        for TracedEvent { parent, event } in traced {
            let mut attributes = about(event);
            attributes.push(KeyValue::new(HANDLER, handler.to_string()));
            attributes.push(KeyValue::new(BATCH_EVENTS, count(traced.len())));
            let above = of_parent(*parent);
            let mut span = tracing.begin(HANDLE, SpanKind::Consumer, &above, times.0, attributes);
            if let Some(why) = fault(event.position) {
                span.set_status(Status::error(why));
            }
            span.end_with_timestamp(time_of(times.1));
        }
    }

    /// Sends what is left, and ends.
    pub async fn stop(&self) {
        let Some(tracing) = self.0.clone() else {
            return;
        };
        // The library waits by blocking its thread.
        let stopped = tokio::task::spawn_blocking(move || {
            tracing.provider.shutdown_with_timeout(STOP_TIMEOUT)
        });
        if let Ok(Err(error)) = stopped.await {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Work on some events that a trace goes through; it is recorded when this is dropped.
#[derive(Debug)]
pub struct Recording {
    traces: Traces,
    name: &'static str,
    events: Vec<TracedEvent>,
    from: Timestamp,
}

impl Recording {
    /// Records nothing: it came to nothing, and is done again.
    pub fn give_up(mut self) {
        self.events.clear();
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.traces
            .record_events(self.name, &self.events, self.from);
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Traces").field(&self.is_on()).finish()
    }
}

impl Tracing {
    fn open(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind, above: &Context) -> Span {
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        let span = self.tracer.build_with_context(builder, above);
        Span(Some((above.with_span(span), self.tracer.clone())))
    }

    fn begin(
        &self,
        name: &'static str,
        kind: SpanKind,
        above: &Context,
        from: Timestamp,
        attributes: Vec<KeyValue>,
    ) -> SdkSpan {
        begin(&self.tracer, name, kind, above, from, attributes)
    }

    fn record(
        &self,
        name: &'static str,
        kind: SpanKind,
        above: &Context,
        (from, to): (Timestamp, Timestamp),
        attributes: Vec<KeyValue>,
    ) {
        let mut span = self.begin(name, kind, above, from, attributes);
        span.end_with_timestamp(time_of(to));
    }
}

fn begin(
    tracer: &SdkTracer,
    name: &'static str,
    kind: SpanKind,
    above: &Context,
    from: Timestamp,
    attributes: Vec<KeyValue>,
) -> SdkSpan {
    let builder = SpanBuilder::from_name(name)
        .with_kind(kind)
        .with_start_time(time_of(from))
        .with_attributes(attributes);
    tracer.build_with_context(builder, above)
}

/// What each span of an event says of it.
fn about(event: &Event) -> Vec<KeyValue> {
    vec![
        KeyValue::new("tidings.event.id", event.id.0.to_string()),
        KeyValue::new("tidings.event.type", event.event_type.to_string()),
        KeyValue::new("tidings.partition", i64::from(event.partition.0)),
        KeyValue::new("tidings.position", event.position.0),
    ]
}

/// A piece of work in a trace; nothing where there is none. It ends when it is dropped.
#[derive(Default)]
pub struct Span(Option<(Context, SdkTracer)>);

impl Span {
    /// What work elsewhere names as its parent; none where nothing is recorded.
    #[must_use]
    pub fn parent(&self) -> Option<TraceParent> {
        let (context, _) = self.0.as_ref()?;
        place_of(context)
    }

    /// Says something about the work.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some((context, _)) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// Says that the work has failed.
    pub fn set_failed(&self, why: &str) {
        if let Some((context, _)) = &self.0 {
            context.span().set_status(Status::error(why.to_owned()));
        }
    }

    /// Records a part of the work that is done already.
    pub fn record_part(
        &self,
        name: &'static str,
        times: (Timestamp, Timestamp),
        numbers: &[(&'static str, usize)],
    ) {
        if let Some((context, tracer)) = &self.0 {
            let number =
                |(key, number): &(&'static str, usize)| KeyValue::new(*key, count(*number));
            let attributes = numbers.iter().map(number).collect();
            let (from, to) = times;
            let mut span = begin(tracer, name, SpanKind::Internal, context, from, attributes);
            span.end_with_timestamp(time_of(to));
        }
    }

    /// The future with the span current while it is polled.
    pub fn within<F: Future>(&self, future: F) -> Either<WithContext<F>, F> {
        match &self.0 {
            Some((context, _)) => Either::Left(future.with_context(context.clone())),
            None => Either::Right(future),
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some((context, _)) = &self.0 {
            context.span().end();
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.parent()).finish()
    }
}

/// Who sends the spans: what the environment says, and what it leaves open.
fn resource() -> Resource {
    let told = Resource::builder().build();
    let is_told = |key: &'static str| {
        let value = told.get(&Key::from_static_str(key));
        // The library makes a name up where nobody gives one.
        value.is_some_and(|value| !value.as_str().starts_with("unknown_service"))
    };
    let own = [
        ("service.name", "tidings"),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let own = own.into_iter().filter(|(key, _)| !is_told(key));
    Resource::builder()
        .with_attributes(own.map(|(key, value)| KeyValue::new(key, value)))
        .build()
}

fn place_of(context: &Context) -> Option<TraceParent> {
    let span = context.span();
    let context = span.span_context();
    context.is_sampled().then(|| TraceParent {
        trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(context.span_id().to_bytes()),
        is_sampled: true,
    })
}

fn of_parent(parent: TraceParent) -> Context {
    let flags = TraceFlags::default().with_sampled(parent.is_sampled);
    let context = SpanContext::new(
        TraceId::from_bytes(parent.trace_id.to_be_bytes()),
        SpanId::from_bytes(parent.span_id.to_be_bytes()),
        flags,
        true,
        TraceState::default(),
    );
    Context::new().with_remote_span_context(context)
}

fn time_of(instant: Timestamp) -> SystemTime {
    UNIX_EPOCH + instant.since(Timestamp::from_micros(0))
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
