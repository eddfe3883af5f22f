//! Aggregates: their type, and the queries and mutations for them. Floor 6.

use std::sync::Arc;

use async_graphql::{Context, InputObject, Object, Result, SimpleObject, parser::types::Field};

use super::{
    access::require,
    command::{self, CommandConnection},
    errors::ApiError,
    event::{EventObject, aggregate_types},
    loaders::Loaders,
    pagination::{Order, check_first, check_version, connection, list_cost},
    plain::{Fragments, Node, Nodes, Plain},
    read_model::{self, ReadModelObject},
    scalars::{DateTimeScalar, JsonScalar, UuidScalar},
    text::JsonText,
};
use crate::{
    app::App,
    domain::{Aggregate, AggregateId, AggregateType, Cursor, CursorError, Role, Version},
    states::StateAt,
    store::EventRange,
};

/// The cost of a state for the limit of complexity: it takes events to read, of which there may be many.
const STATE_COST: usize = 20;

/// What has events and a version.
#[derive(Clone)]
pub struct AggregateObject(pub(super) Aggregate);

/// What has events and a version.
#[Object(name = "Aggregate")]
impl AggregateObject {
    /// Its id.
    async fn id(&self) -> UuidScalar {
        UuidScalar(self.0.id.0)
    }

    /// What it is.
    #[graphql(name = "type")]
    async fn aggregate_type(&self) -> &str {
        self.0.aggregate_type.as_str()
    }

    /// The version of its newest event; 0 before the first.
    async fn version(&self) -> i32 {
        self.0.version.0
    }

    /// When it was made.
    async fn created_at(&self) -> DateTimeScalar {
        DateTimeScalar(self.0.created_at)
    }

    /// When its newest event was appended, or when it was made.
    async fn updated_at(&self) -> DateTimeScalar {
        DateTimeScalar(self.0.updated_at)
    }

    /// Its events, those behind `afterVersion` in the order asked for (above it, or below it where the newest come first). More
    /// than 64 MiB of them in one answer are BAD_USER_INPUT: ask for fewer then.
    #[graphql(complexity = "list_cost(first, child_complexity)")]
    async fn events(
        &self,
        ctx: &Context<'_>,
        after_version: Option<i32>,
        #[graphql(default = 100)] first: i32,
        #[graphql(default_with = "Order::OldestFirst")] order: Order,
    ) -> Result<Nodes<EventObject>> {
        let first = i32::try_from(check_first(first)?).unwrap_or(i32::MAX);
        let after = after_version
            .map(|version| check_version("afterVersion", version))
            .transpose()?;
        let Some(range) = range_of(&self.0, after, first, order) else {
            return Ok(Nodes(Vec::new()));
        };
        let events = ctx
            .data_unchecked::<Arc<Loaders>>()
            .event_ranges
            .one(range)
            .await?
            .unwrap_or_default();
        let mut events: Vec<EventObject> = events.into_iter().map(EventObject).collect();
        if order == Order::NewestFirst {
            events.reverse();
        }
        Ok(Nodes(events))
    }

    /// Its state folded from its events by the domain's rules: now, or as it was at a version or at an instant (one of the
    /// two). Null before the first event and after a deletion.
    #[graphql(complexity = "STATE_COST")]
    async fn state(
        &self,
        ctx: &Context<'_>,
        at_version: Option<i32>,
        at: Option<DateTimeScalar>,
    ) -> Result<Option<JsonScalar>> {
        let newest = self.0.version;
        let version = match at_version {
            Some(_) if at.is_some() => {
                let message = "give a version (atVersion) or an instant (at), not both";
                return Err(ApiError::bad_input("at", message).into());
            }
            Some(version) => check_version("atVersion", version)?,
            None => newest,
        };
        if version > newest {
            return Err(ApiError::VersionNotReached { head: newest.0 }.into());
        }
        let wanted = StateAt {
            aggregate_id: self.0.id,
            aggregate_type: self.0.aggregate_type.clone(),
            version,
            at: at.map(|at| at.0),
        };
        let loaders = ctx.data_unchecked::<Arc<Loaders>>();
        let folded = loaders.states.one(wanted).await?;
        let state = folded.transpose().map_err(ApiError::State)?;
        Ok(state.filter(|state| state.is_object()).map(JsonScalar))
    }

    /// The commands that were to change it, in the order in which they were made.
    #[graphql(complexity = "list_cost(first, child_complexity)")]
    async fn commands(
        &self,
        ctx: &Context<'_>,
        #[graphql(default = 20)] first: i32,
        after: Option<String>,
    ) -> Result<CommandConnection> {
        command::commands_of(ctx, self.0.id, first, after.as_deref()).await
    }

    /// Its read model. Null before the first event is folded and after a deletion.
    async fn read_model(&self, ctx: &Context<'_>) -> Result<Option<Node<ReadModelObject>>> {
        read_model::find(ctx, self.0.id).await
    }
}

impl Plain for AggregateObject {
    fn write(&self, field: &Field, _: &Fragments, text: &mut JsonText) -> Option<()> {
        let aggregate = &self.0;
        match field.name.node.as_str() {
            "id" => text.uuid(aggregate.id.0),
            "type" => text.text(aggregate.aggregate_type.as_str()),
            "version" => text.number(aggregate.version.0),
            "createdAt" => text.instant(aggregate.created_at),
            "updatedAt" => text.instant(aggregate.updated_at),
            _ => None,
        }
    }
}

/// The versions that are asked for: they have no gap, so a number of events is a range.
fn range_of(
    aggregate: &Aggregate,
    after: Option<Version>,
    first: i32,
    order: Order,
) -> Option<EventRange> {
    let newest = aggregate.version.0;
    let (low, high) = match order {
        Order::OldestFirst => {
            let after = after.map_or(0, |after| after.0);
            (
                after.saturating_add(1),
                after.saturating_add(first).min(newest),
            )
        }
        Order::NewestFirst => {
            let high = after.map_or(newest, |after| (after.0 - 1).min(newest));
            ((high - first + 1).max(1), high)
        }
    };
    (low <= high).then_some(EventRange {
        aggregate_id: aggregate.id,
        first: Version(low),
        last: Version(high),
    })
}

connection!(
    AggregateConnection,
    AggregateEdge,
    AggregateObject,
    "aggregates"
);

/// An aggregate to make.
#[derive(InputObject)]
pub struct CreateAggregateInput {
    /// Its id; left out, the server makes one.
    id: Option<UuidScalar>,
    /// What it is.
    #[graphql(name = "type")]
    aggregate_type: String,
}

/// What became of it.
#[derive(SimpleObject)]
pub struct CreateAggregatePayload {
    /// The aggregate.
    aggregate: Node<AggregateObject>,
    /// False where it was there already.
    created: bool,
}

#[derive(Default)]
pub struct AggregateQuery;

#[Object]
impl AggregateQuery {
    /// The id that a text key stands for where an aggregate is named by one (its UUIDv5); a UUID stands for itself.
    async fn aggregate_id(&self, ctx: &Context<'_>, key: String) -> Result<UuidScalar> {
        require(ctx, Role::Read)?;
        if key.is_empty() {
            return Err(ApiError::bad_input("key", "must not be empty").into());
        }
        Ok(UuidScalar(AggregateId::from_key(&key).0))
    }

    /// One aggregate.
    async fn aggregate(
        &self,
        ctx: &Context<'_>,
        id: UuidScalar,
    ) -> Result<Option<Node<AggregateObject>>> {
        require(ctx, Role::Read)?;
        let aggregate = ctx
            .data_unchecked::<Arc<Loaders>>()
            .aggregates
            .one(AggregateId(id.0))
            .await?;
        Ok(aggregate.map(|aggregate| Node(AggregateObject(aggregate))))
    }

    /// Aggregates in the order in which they were made.
    #[graphql(complexity = "list_cost(first, child_complexity)")]
    async fn aggregates(
        &self,
        ctx: &Context<'_>,
        types: Option<Vec<String>>,
        #[graphql(default_with = "Order::OldestFirst")] order: Order,
        #[graphql(default = 100)] first: i32,
        after: Option<String>,
    ) -> Result<AggregateConnection> {
        require(ctx, Role::Read)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let store = app.store();
        let types = types
            .map(|types| aggregate_types("types", &types))
            .transpose()?;
        let first = check_first(first)?;
        let after = match after.as_deref().filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => match Cursor::decode(text, store.database_id(), store.partitions()) {
                Ok(Cursor::Aggregates { created_at, id }) => Some((created_at, id)),
                Ok(_) => return Err(ApiError::bad_input("after", CursorError::OtherKind).into()),
                Err(error) => return Err(ApiError::bad_input("after", error).into()),
            },
        };
        let page = store
            .aggregates_page(types.as_deref(), order.into(), after, first as u64 + 1)
            .await;
        let mut page = page.map_err(ApiError::from)?;
        let has_next = page.len() > first;
        page.truncate(first);
        let cursor = |aggregate: &Aggregate| Cursor::Aggregates {
            created_at: aggregate.created_at,
            id: aggregate.id,
        };
        let nodes = page
            .into_iter()
            .map(|aggregate| (cursor(&aggregate), AggregateObject(aggregate)))
            .collect();
        Ok(AggregateConnection::new(
            store,
            nodes,
            after.is_some(),
            has_next,
            None,
        ))
    }
}

#[derive(Default)]
pub struct AggregateMutation;

#[Object]
impl AggregateMutation {
    /// Makes an aggregate that has no event yet. Making the same one again changes nothing.
    async fn create_aggregate(
        &self,
        ctx: &Context<'_>,
        input: CreateAggregateInput,
    ) -> Result<CreateAggregatePayload> {
        require(ctx, Role::Write)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let id = AggregateId(input.id.map_or_else(|| app.clock().new_id(), |id| id.0));
        let aggregate_type = AggregateType::new(&input.aggregate_type)
            .map_err(|error| ApiError::bad_input("input.type", error))?;
        let made = app.appender().create_aggregate(id, &aggregate_type).await;
        let (aggregate, created) = made.map_err(|error| ApiError::Append {
            error,
            input: super::errors::AppendInput::One,
        })?;
        if aggregate.aggregate_type != aggregate_type {
            let (expected, actual) = (
                aggregate_type.to_string(),
                aggregate.aggregate_type.to_string(),
            );
            let field = "input.type".to_owned();
            return Err(ApiError::TypeMismatch {
                field,
                expected,
                actual,
            }
            .into());
        }
        Ok(CreateAggregatePayload {
            aggregate: Node(AggregateObject(aggregate)),
            created,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;
    use uuid::Uuid;

    fn range(after: Option<i32>, first: i32, order: Order) -> Option<(i32, i32)> {
        let aggregate = Aggregate {
            id: AggregateId(Uuid::nil()),
            aggregate_type: AggregateType::new("user").expect("a name"),
            version: Version(10),
            created_at: Timestamp::from_micros(0),
            updated_at: Timestamp::from_micros(0),
        };
        range_of(&aggregate, after.map(Version), first, order)
            .map(|range| (range.first.0, range.last.0))
    }

    #[test]
    fn a_number_of_events_is_a_range_of_versions() {
        assert_eq!(range(None, 3, Order::OldestFirst), Some((1, 3)));
        assert_eq!(range(Some(8), 3, Order::OldestFirst), Some((9, 10)));
        assert_eq!(range(Some(10), 3, Order::OldestFirst), None);
        assert_eq!(range(Some(i32::MAX), 3, Order::OldestFirst), None);
        assert_eq!(range(None, 3, Order::NewestFirst), Some((8, 10)));
        assert_eq!(range(Some(3), 5, Order::NewestFirst), Some((1, 2)));
        assert_eq!(range(Some(1), 5, Order::NewestFirst), None);
        assert_eq!(range(Some(0), 5, Order::NewestFirst), None);
    }
}
