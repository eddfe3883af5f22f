//! Streams: their types, the queries and mutations for them, and the subscription to one. Floor 6.

use std::sync::Arc;

use async_graphql::{
    Context, InputObject, Object, Result, SimpleObject, Subscription, parser::types::Field,
};
use futures_util::stream::{self, Stream as AsyncStream};

use super::{
    Limited,
    access::require,
    errors::{ApiError, AppendInput},
    event::EventObject,
    loaders::Loaders,
    pagination::{check_first, connection, list_cost},
    plain::{Fragments, Node, Nodes, Plain},
    scalars::{DateTimeScalar, JsonScalar, Long, UuidScalar},
    text::JsonText,
};
use crate::{
    app::App,
    domain::{
        Cursor, CursorError, Entry, EventId, EventType, ExpectedPosition, NewEntry, Position, Role,
        Stream, StreamName,
    },
    store::EntryRange,
};

/// A named log of entries, each at its own position.
#[derive(Clone)]
pub struct StreamObject(Stream);

/// A named log of entries, each at its own position.
#[Object(name = "Stream")]
impl StreamObject {
    /// Its name.
    async fn name(&self) -> &str {
        self.0.name.as_str()
    }

    /// The position of its newest entry; 0 while it is empty.
    async fn last_position(&self) -> Long {
        self.0.last_position.into()
    }

    /// Its entries behind the position `after`, in position order. More than 64 MiB of them in one answer are BAD_USER_INPUT: ask
    /// for fewer then.
    #[graphql(complexity = "list_cost(first, child_complexity)")]
    async fn entries(
        &self,
        ctx: &Context<'_>,
        #[graphql(default_with = "Long(0)")] after: Long,
        #[graphql(default = 100)] first: i32,
    ) -> Result<Nodes<StreamEntry>> {
        let first = check_first(first)?;
        let newest = self.0.last_position;
        if after.0 > newest.0 {
            return Err(ApiError::PositionNotReached { head: newest.0 }.into());
        }
        // Positions have no gap, so a number of entries is a range.
        let last = newest.min(Position(after.0 + i64::try_from(first).unwrap_or(i64::MAX)));
        if last.0 == after.0 {
            return Ok(Nodes(Vec::new()));
        }
        let range = EntryRange {
            stream_name: self.0.name.clone(),
            first: Position(after.0 + 1),
            last,
        };
        let entries = ctx
            .data_unchecked::<Arc<Loaders>>()
            .entry_ranges
            .one(range)
            .await?
            .unwrap_or_default();
        Ok(Nodes(entries.into_iter().map(StreamEntry).collect()))
    }
}

/// One entry of a stream.
#[derive(Clone)]
pub struct StreamEntry(Arc<Entry>);

/// One entry of a stream.
#[Object]
impl StreamEntry {
    /// The stream.
    async fn stream_name(&self) -> &str {
        self.0.stream_name.as_str()
    }

    /// Its place in the stream: 1, 2, 3 … without a gap.
    async fn position(&self) -> Long {
        self.0.position.into()
    }

    /// The id of the event; a stream has each once.
    async fn event_id(&self) -> UuidScalar {
        UuidScalar(self.0.event_id.0)
    }

    /// What happened.
    #[graphql(name = "type")]
    async fn event_type(&self) -> &str {
        self.0.event_type.as_str()
    }

    /// What is to be known about it.
    async fn data(&self) -> JsonScalar {
        JsonScalar(self.0.data.clone())
    }

    /// When it was appended.
    async fn created_at(&self) -> DateTimeScalar {
        DateTimeScalar(self.0.created_at)
    }

    /// The event of that id in the event store, if it is there.
    async fn event(&self, ctx: &Context<'_>) -> Result<Option<Node<EventObject>>> {
        let event = ctx
            .data_unchecked::<Arc<Loaders>>()
            .events
            .one(self.0.event_id)
            .await?;
        Ok(event.map(|event| Node(EventObject(event))))
    }
}

impl Plain for StreamEntry {
    fn write(&self, field: &Field, _: &Fragments, text: &mut JsonText) -> Option<()> {
        let entry = self.0.as_ref();
        match field.name.node.as_str() {
            "streamName" => text.text(entry.stream_name.as_str()),
            "position" => text.number(entry.position.0),
            "eventId" => text.uuid(entry.event_id.0),
            "type" => text.text(entry.event_type.as_str()),
            "data" => text.json(&entry.data),
            "createdAt" => text.instant(entry.created_at),
            _ => None,
        }
    }
}

impl Plain for StreamObject {
    fn write(&self, field: &Field, _: &Fragments, text: &mut JsonText) -> Option<()> {
        match field.name.node.as_str() {
            "name" => text.text(self.0.name.as_str()),
            "lastPosition" => text.number(self.0.last_position.0),
            _ => None,
        }
    }
}

connection!(StreamConnection, StreamEdge, StreamObject, "streams");

/// An entry to append.
#[derive(InputObject)]
pub struct AppendToStreamInput {
    /// The stream. One that does not exist yet is made.
    stream_name: String,
    /// Appending the same event id to the same stream again returns the position that it has there.
    event_id: UuidScalar,
    /// What happened, in the past tense.
    #[graphql(name = "type")]
    event_type: String,
    /// What is to be known about it.
    data: JsonScalar,
    /// The position that the stream must be at: 0 for an empty one.
    expected_position: Option<Long>,
}

/// What became of it.
#[derive(SimpleObject)]
pub struct AppendToStreamPayload {
    /// The entry.
    entry: Node<StreamEntry>,
    /// True where an entry of that event id was there already and nothing was appended.
    duplicate: bool,
}

fn stream_name(field: &str, name: &str) -> Result<StreamName, ApiError> {
    StreamName::new(name).map_err(|error| ApiError::bad_input(field, error))
}

#[derive(Default)]
pub struct StreamQuery;

#[Object]
impl StreamQuery {
    /// One stream.
    async fn stream(&self, ctx: &Context<'_>, name: String) -> Result<Option<Node<StreamObject>>> {
        require(ctx, Role::Read)?;
        let name = stream_name("name", &name)?;
        let store = ctx.data_unchecked::<Arc<App>>().store();
        let mut streams = store
            .streams_by_name(std::slice::from_ref(&name))
            .await
            .map_err(ApiError::from)?;
        Ok(streams
            .remove(&name)
            .map(|stream| Node(StreamObject(stream))))
    }

    /// Streams in the order of their names.
    #[graphql(complexity = "list_cost(first, child_complexity)")]
    async fn streams(
        &self,
        ctx: &Context<'_>,
        #[graphql(default = 100)] first: i32,
        after: Option<String>,
    ) -> Result<StreamConnection> {
        require(ctx, Role::Read)?;
        let store = ctx.data_unchecked::<Arc<App>>().store();
        let first = check_first(first)?;
        let after = match after.as_deref().filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => match Cursor::decode(text, store.database_id(), store.partitions()) {
                Ok(Cursor::Streams(name)) => Some(name),
                Ok(_) => return Err(ApiError::bad_input("after", CursorError::OtherKind).into()),
                Err(error) => return Err(ApiError::bad_input("after", error).into()),
            },
        };
        let mut page = store
            .streams_page(after.as_ref(), first as u64 + 1)
            .await
            .map_err(ApiError::from)?;
        let has_next = page.len() > first;
        page.truncate(first);
        let cursor = |stream: &Stream| Cursor::Streams(stream.name.clone());
        let nodes = page
            .into_iter()
            .map(|stream| (cursor(&stream), StreamObject(stream)))
            .collect();
        Ok(StreamConnection::new(
            store,
            nodes,
            after.is_some(),
            has_next,
            None,
        ))
    }
}

#[derive(Default)]
pub struct StreamMutation;

#[Object]
impl StreamMutation {
    /// Appends an entry to a stream. A stream that does not exist yet is made.
    async fn append_to_stream(
        &self,
        ctx: &Context<'_>,
        input: AppendToStreamInput,
    ) -> Result<AppendToStreamPayload> {
        require(ctx, Role::Write)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        ctx.data_unchecked::<Limited>()
            .check_bytes("input.data", &input.data.0)?;
        let entry = NewEntry {
            stream_name: stream_name("input.streamName", &input.stream_name)?,
            event_id: EventId(input.event_id.0),
            event_type: EventType::new(&input.event_type)
                .map_err(|error| ApiError::bad_input("input.type", error))?,
            data: input.data.0,
            expected_position: input
                .expected_position
                .map_or(ExpectedPosition::Any, |position| {
                    ExpectedPosition::Exactly(Position(position.0))
                }),
        };
        let appended = app.appender().append_entry(entry).await;
        let appended = appended.map_err(|error| ApiError::Append {
            error,
            input: AppendInput::One,
        })?;
        let entry = appended
            .stored
            .into_iter()
            .next()
            .map(|entry| Node(StreamEntry(entry)));
        let entry = entry.ok_or_else(|| {
            ApiError::from(crate::store::StoreError::Inconsistent(
                "an append stored nothing".to_owned(),
            ))
        })?;
        Ok(AppendToStreamPayload {
            entry,
            duplicate: appended.duplicate,
        })
    }
}

#[derive(Default)]
pub struct StreamSubscription;

#[Subscription]
impl StreamSubscription {
    /// The entries of a stream behind a position, first those that are there and then each as it comes.
    async fn stream_entries(
        &self,
        ctx: &Context<'_>,
        stream_name: String,
        after: Option<Long>,
    ) -> Result<impl AsyncStream<Item = Result<Node<StreamEntry>>>> {
        require(ctx, Role::Read)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let name = self::stream_name("streamName", &stream_name)?;
        let follower = app
            .tail()
            .follow_stream(name, after.map(|after| Position(after.0)))
            .await;
        let follower = follower.map_err(|error| {
            ApiError::of_follow(error, app.store().database_id(), app.store().partitions())
        })?;
        Ok(stream::unfold(Some(follower), |follower| async move {
            let mut follower = follower?;
            Some(match follower.next().await {
                Ok(entry) => (Ok(Node(StreamEntry(entry))), Some(follower)),
                Err(error) => (Err(ApiError::from(error).into()), None),
            })
        }))
    }
}
