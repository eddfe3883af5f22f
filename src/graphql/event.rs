//! Events: their type, the queries and mutations for them, and the subscription to them. Floor 6.

use std::{collections::HashSet, sync::Arc};

use async_graphql::{
    Context, InputObject, Object, Result, SimpleObject, Subscription, parser::types::Field,
};
use futures_util::stream::{self, Stream};

use super::{
    Limited,
    access::require,
    aggregate::AggregateObject,
    errors::{ApiError, AppendInput},
    loaders::Loaders,
    pagination::{Order, check_first, check_version, connection, list_cost, place_of},
    plain::{Fragments, Node, Nodes, Plain, write_object},
    scalars::{DateTimeScalar, JsonScalar, UuidScalar},
    text::JsonText,
};
use crate::{
    app::App,
    domain::{
        AggregateId, AggregateType, Cursor, Event, EventFilter, EventId, EventType,
        ExpectedVersion, Json, NewEvent, Place, Role,
    },
    store::EventPageOutcome,
};

/// The most types that a filter may name.
const MAX_TYPES: usize = 1000;

/// A fact that happened to one aggregate. Never changed after it was appended.
#[derive(Clone)]
pub struct EventObject(pub(super) Arc<Event>);

/// A fact that happened to one aggregate. Never changed after it was appended.
#[Object(name = "Event")]
impl EventObject {
    /// Its id. It makes an append idempotent.
    async fn id(&self) -> UuidScalar {
        UuidScalar(self.0.id.0)
    }

    /// What happened, in the past tense: user_created.
    #[graphql(name = "type")]
    async fn event_type(&self) -> &str {
        self.0.event_type.as_str()
    }

    /// What is to be known about it.
    async fn data(&self) -> JsonScalar {
        JsonScalar(self.0.data.clone())
    }

    /// Facts about the event: commandId, correlationId, causationId, and whatever the writer added.
    async fn metadata(&self) -> JsonScalar {
        JsonScalar(self.0.metadata.clone())
    }

    /// The aggregate that it happened to.
    async fn aggregate_id(&self) -> UuidScalar {
        UuidScalar(self.0.aggregate_id.0)
    }

    /// What that aggregate is.
    async fn aggregate_type(&self) -> &str {
        self.0.aggregate_type.as_str()
    }

    /// Its place in its aggregate: 1, 2, 3 … without a gap.
    async fn version(&self) -> i32 {
        self.0.version.0
    }

    /// When it was appended.
    async fn created_at(&self) -> DateTimeScalar {
        DateTimeScalar(self.0.created_at)
    }

    /// The aggregate that it happened to.
    async fn aggregate(&self, ctx: &Context<'_>) -> Result<Node<AggregateObject>> {
        let loaders = ctx.data_unchecked::<Arc<Loaders>>();
        let aggregate = loaders.aggregates.one(self.0.aggregate_id).await?;
        aggregate
            .map(|aggregate| Node(AggregateObject(aggregate)))
            .ok_or_else(|| {
                crate::store::StoreError::Inconsistent(format!(
                    "the event {} has no aggregate",
                    self.0.id
                ))
            })
            .map_err(|error| ApiError::from(error).into())
    }
}

impl Plain for EventObject {
    fn write(&self, field: &Field, _: &Fragments, text: &mut JsonText) -> Option<()> {
        let event = self.0.as_ref();
        match field.name.node.as_str() {
            "id" => text.uuid(event.id.0),
            "type" => text.text(event.event_type.as_str()),
            "data" => text.json(&event.data),
            "metadata" => text.json(&event.metadata),
            "aggregateId" => text.uuid(event.aggregate_id.0),
            "aggregateType" => text.text(event.aggregate_type.as_str()),
            "version" => text.number(event.version.0),
            "createdAt" => text.instant(event.created_at),
            _ => None,
        }
    }
}

connection!(EventConnection, EventEdge, EventObject, "events");

/// One step of the `events` subscription. Keep the newest cursor and pass it back as `after` to continue behind it, with the same
/// filter or another one. `event` is null where `progress` was asked for and the log moved on without an event that passes the
/// filter.
#[derive(SimpleObject)]
pub struct EventUpdate {
    /// The place behind this step.
    cursor: String,
    /// The event.
    event: Option<Node<EventObject>>,
    /// True once history is behind and this is the newest there is.
    caught_up: bool,
}

impl Plain for EventUpdate {
    fn write(&self, field: &Field, fragments: &Fragments, text: &mut JsonText) -> Option<()> {
        match field.name.node.as_str() {
            "cursor" => text.text(&self.cursor),
            "event" => match &self.event {
                Some(event) => write_object(&event.0, &field.selection_set.node, fragments, text),
                None => text.null(),
            },
            "caughtUp" => text.boolean(self.caught_up),
            _ => None,
        }
    }
}

/// An event passes where it meets every part that is given; within a list, any one value is enough.
#[derive(InputObject)]
#[graphql(name = "EventFilter")]
pub struct EventFilterInput {
    /// Events of this aggregate.
    aggregate_id: Option<UuidScalar>,
    /// Events of aggregates of these types.
    aggregate_types: Option<Vec<String>>,
    /// Events of these types.
    event_types: Option<Vec<String>>,
    /// The correlationId of their metadata.
    correlation_id: Option<String>,
    /// Events appended at this instant or later.
    created_from: Option<DateTimeScalar>,
    /// Events appended before this instant.
    created_before: Option<DateTimeScalar>,
}

impl EventFilterInput {
    fn check(self) -> Result<EventFilter, ApiError> {
        let aggregate_types = self
            .aggregate_types
            .map(|types| aggregate_types("filter.aggregateTypes", &types));
        let event_types = self.event_types.map(|types| {
            check_length("filter.eventTypes", types.len())?;
            let check = |(index, name): (usize, &String)| {
                EventType::new(name).map_err(|error| {
                    ApiError::bad_input(format!("filter.eventTypes[{index}]"), error)
                })
            };
            types
                .iter()
                .enumerate()
                .map(check)
                .collect::<Result<Vec<_>, _>>()
        });
        if self
            .correlation_id
            .as_ref()
            .is_some_and(|id| id.contains('\0'))
        {
            let message = "holds the character U+0000, which no event has: leave it out";
            return Err(ApiError::bad_input("filter.correlationId", message));
        }
        Ok(EventFilter {
            aggregate_id: self.aggregate_id.map(|id| AggregateId(id.0)),
            aggregate_types: aggregate_types.transpose()?,
            event_types: event_types.transpose()?,
            correlation_id: self.correlation_id,
            created_from: self.created_from.map(|time| time.0),
            created_before: self.created_before.map(|time| time.0),
        })
    }
}

/// Databases take only so many parameters in a statement.
pub(super) fn check_length(field: &str, length: usize) -> Result<(), ApiError> {
    if length > MAX_TYPES {
        let message = format!("has {length} names: at most {MAX_TYPES} are allowed");
        return Err(ApiError::bad_input(field, message));
    }
    Ok(())
}

/// Checks the names of types of aggregates.
pub(super) fn aggregate_types(
    field: &str,
    types: &[String],
) -> Result<Vec<AggregateType>, ApiError> {
    check_length(field, types.len())?;
    let check =
        |(index, name): (usize, &String)| aggregate_type(&format!("{field}[{index}]"), name);
    types.iter().enumerate().map(check).collect()
}

/// Checks the name of a type of aggregates.
pub(super) fn aggregate_type(field: &str, name: &str) -> Result<AggregateType, ApiError> {
    AggregateType::new(name).map_err(|error| ApiError::bad_input(field, error))
}

/// An event to append.
#[derive(InputObject)]
pub struct AppendEventInput {
    /// Makes the append idempotent: a second append of the same id to the same aggregate returns the first one's event.
    id: Option<UuidScalar>,
    /// The aggregate that it happened to.
    aggregate_id: UuidScalar,
    /// What that aggregate is.
    aggregate_type: String,
    /// What happened, in the past tense.
    #[graphql(name = "type")]
    event_type: String,
    /// What is to be known about it.
    data: JsonScalar,
    /// Facts about the event itself: a JSON object.
    metadata: Option<JsonScalar>,
    /// The version that the aggregate must have: 0 for none yet. Left out, the event is appended whatever the version.
    expected_version: Option<i32>,
}

impl AppendEventInput {
    fn check(self, app: &App, limits: &Limited, path: &str) -> Result<NewEvent, ApiError> {
        let field = |name: &str| format!("{path}.{name}");
        let metadata = self
            .metadata
            .map_or_else(Json::empty_object, |metadata| metadata.0);
        if !metadata.is_object() {
            return Err(ApiError::bad_input(
                field("metadata"),
                "must be a JSON object",
            ));
        }
        limits.check_bytes(&field("data"), &self.data.0)?;
        limits.check_bytes(&field("metadata"), &metadata)?;
        check_correlation_id(&field("metadata.correlationId"), &metadata)?;
        let expected_version = match self.expected_version {
            None => ExpectedVersion::Any,
            Some(version) => {
                ExpectedVersion::Exactly(check_version(&field("expectedVersion"), version)?)
            }
        };
        Ok(NewEvent {
            id: EventId(self.id.map_or_else(|| app.clock().new_id(), |id| id.0)),
            id_is_given: self.id.is_some(),
            aggregate_id: AggregateId(self.aggregate_id.0),
            aggregate_type: AggregateType::new(&self.aggregate_type)
                .map_err(|error| ApiError::bad_input(field("aggregateType"), error))?,
            event_type: EventType::new(&self.event_type)
                .map_err(|error| ApiError::bad_input(field("type"), error))?,
            data: self.data.0,
            metadata,
            expected_version,
        })
    }
}

/// The largest correlation id, in bytes as JSON: it has an index, which takes no larger ones.
const MAX_CORRELATION_ID_BYTES: usize = 500;

pub(super) fn check_correlation_id(field: &str, metadata: &Json) -> Result<(), ApiError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata<'a> {
        #[serde(borrow)]
        correlation_id: Option<&'a serde_json::value::RawValue>,
    }
    if metadata.as_str().len() <= MAX_CORRELATION_ID_BYTES {
        return Ok(());
    }
    let read = serde_json::from_str::<Metadata<'_>>(metadata.as_str());
    let bytes = read
        .ok()
        .and_then(|metadata| metadata.correlation_id)
        .map_or(0, |id| id.get().len());
    if bytes > MAX_CORRELATION_ID_BYTES {
        let message =
            format!("has {bytes} bytes as JSON: at most {MAX_CORRELATION_ID_BYTES} are allowed");
        return Err(ApiError::bad_input(field, message));
    }
    Ok(())
}

/// Events to append, all of them or none.
#[derive(InputObject)]
pub struct AppendEventsInput {
    /// The events, in their order.
    events: Vec<AppendEventInput>,
}

/// What became of an append.
#[derive(SimpleObject)]
pub struct AppendEventPayload {
    /// The event.
    event: Node<EventObject>,
    /// `duplicate` is true where an event of that id was there already and nothing was appended.
    duplicate: bool,
}

/// What became of an append of several events.
#[derive(SimpleObject)]
pub struct AppendEventsPayload {
    /// The events, in the order of the input.
    events: Nodes<EventObject>,
}

#[derive(Default)]
pub struct EventQuery;

#[Object]
impl EventQuery {
    /// One event.
    async fn event(&self, ctx: &Context<'_>, id: UuidScalar) -> Result<Option<Node<EventObject>>> {
        require(ctx, Role::Read)?;
        let event = ctx
            .data_unchecked::<Arc<Loaders>>()
            .events
            .one(EventId(id.0))
            .await?;
        Ok(event.map(|event| Node(EventObject(event))))
    }

    /// Events in the order of the log. With several partitions that is the order within each; between them none is promised. A
    /// page of large ones ends before `first`, and has a next one.
    #[graphql(complexity = "list_cost(first, child_complexity)")]
    async fn events(
        &self,
        ctx: &Context<'_>,
        filter: Option<EventFilterInput>,
        #[graphql(default_with = "Order::OldestFirst")] order: Order,
        #[graphql(default = 100)] first: i32,
        after: Option<String>,
    ) -> Result<EventConnection> {
        require(ctx, Role::Read)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let filter = filter
            .map(EventFilterInput::check)
            .transpose()?
            .unwrap_or_default();
        let first = check_first(first)?;
        let after = parse_place(app, after.as_deref())?;
        let store = app.store();
        let page = match store
            .events_page(&filter, order.into(), after.as_ref(), first)
            .await
            .map_err(ApiError::from)?
        {
            EventPageOutcome::Page(page) => page,
            EventPageOutcome::NotReached(head) => {
                return Err(
                    ApiError::not_reached(head, store.database_id(), store.partitions()).into(),
                );
            }
        };
        let nodes = page
            .events
            .into_iter()
            .map(|(place, event)| (Cursor::Events(place), EventObject(Arc::new(event))))
            .collect();
        Ok(EventConnection::new(
            store,
            nodes,
            after.is_some(),
            page.has_next,
            Some(Cursor::Events(page.end)),
        ))
    }
}

/// The place that a client names: none for an empty text, which is the beginning.
fn parse_place(app: &App, after: Option<&str>) -> Result<Option<Place>, ApiError> {
    let store = app.store();
    let Some(text) = after.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let cursor = Cursor::decode(text, store.database_id(), store.partitions())
        .map_err(|error| ApiError::bad_input("after", error))?;
    place_of(cursor)
        .map(Some)
        .ok_or_else(|| ApiError::bad_input("after", crate::domain::CursorError::OtherKind))
}

#[derive(Default)]
pub struct EventMutation;

#[Object]
impl EventMutation {
    /// Appends one event. An aggregate that does not exist yet is made.
    async fn append_event(
        &self,
        ctx: &Context<'_>,
        input: AppendEventInput,
    ) -> Result<AppendEventPayload> {
        require(ctx, Role::Write)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let event = input.check(app, ctx.data_unchecked(), "input")?;
        let appended = app.appender().append_events(vec![event]).await;
        let appended = appended.map_err(|error| ApiError::Append {
            error,
            input: AppendInput::One,
        })?;
        let event = appended
            .stored
            .into_iter()
            .next()
            .map(|event| Node(EventObject(event)));
        let event = event.ok_or_else(|| {
            ApiError::from(crate::store::StoreError::Inconsistent(
                "an append stored nothing".to_owned(),
            ))
        })?;
        Ok(AppendEventPayload {
            event,
            duplicate: appended.duplicate,
        })
    }

    /// Appends several events, to one or more aggregates: all of them or none.
    async fn append_events(
        &self,
        ctx: &Context<'_>,
        input: AppendEventsInput,
    ) -> Result<AppendEventsPayload> {
        require(ctx, Role::Write)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let limits = ctx.data_unchecked::<Limited>();
        limits.check_events(input.events.len())?;
        let mut ids = HashSet::new();
        let mut events = Vec::with_capacity(input.events.len());
        for (index, event) in input.events.into_iter().enumerate() {
            let event = event.check(app, limits, &format!("input.events[{index}]"))?;
            if !ids.insert(event.id) {
                let field = format!("input.events[{index}].id");
                return Err(ApiError::bad_input(
                    field,
                    "is in the list twice: each event needs an id of its own",
                )
                .into());
            }
            events.push(event);
        }
        let appended = app.appender().append_events(events).await;
        let appended = appended.map_err(|error| ApiError::Append {
            error,
            input: AppendInput::List,
        })?;
        Ok(AppendEventsPayload {
            events: Nodes(appended.stored.into_iter().map(EventObject).collect()),
        })
    }
}

#[derive(Default)]
pub struct EventSubscription;

#[Subscription]
impl EventSubscription {
    /// With `progress`, also a step without an event when it has caught up, and at least every 5 seconds while the log moves on.
    async fn events(
        &self,
        ctx: &Context<'_>,
        filter: Option<EventFilterInput>,
        after: Option<String>,
        #[graphql(default = false)] progress: bool,
    ) -> Result<impl Stream<Item = Result<Node<EventUpdate>>>> {
        require(ctx, Role::Read)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let filter = filter
            .map(EventFilterInput::check)
            .transpose()?
            .unwrap_or_default();
        let (database, partitions) = (app.store().database_id(), app.store().partitions());
        let place = match after.as_deref() {
            None => None,
            Some(text) => {
                Some(parse_place(app, Some(text))?.unwrap_or_else(|| Place::start(partitions)))
            }
        };
        let follower = app.tail().follow_events(place, filter, progress).await;
        let follower =
            follower.map_err(|error| ApiError::of_follow(error, database, partitions))?;
        Ok(stream::unfold(Some(follower), move |follower| async move {
            let mut follower = follower?;
            Some(match follower.next().await {
                Ok(step) => {
                    let update = EventUpdate {
                        cursor: Cursor::Events(step.place).encode(database, partitions),
                        event: step.event.map(|event| Node(EventObject(event))),
                        caught_up: step.caught_up,
                    };
                    (Ok(Node(update)), Some(follower))
                }
                Err(error) => (Err(ApiError::from(error).into()), None),
            })
        }))
    }
}
