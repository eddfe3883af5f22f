//! Read models: their type, the queries and mutations for them. Floor 6.

use std::{sync::Arc, time::Duration};

use async_graphql::{
    Context, Enum, InputObject, Object, Result, SimpleObject, parser::types::Field,
};

use super::{
    Limited, TimeLimit,
    access::require,
    aggregate::AggregateObject,
    errors::ApiError,
    event::{aggregate_type, aggregate_types},
    loaders::Loaders,
    pagination::{check_first, check_version, connection, list_cost},
    plain::{Fragments, Node, Plain},
    scalars::{DateTimeScalar, JsonScalar, Long, UuidScalar},
    text::JsonText,
};
use crate::{
    app::App,
    domain::{
        AggregateId, Cursor, CursorError, ExternalModel, ExternalOutcome, Order, ReadModel,
        ReadModelFilter, ReadModelSource as Source, ReadModelTime, Role, Timestamp, Version,
    },
    projections::RebuildError,
    store::{ReadModelList, RebuildScope, Store, StoreError},
};

/// The longest that a client may wait for a read model.
const MAX_WAIT_MS: i32 = 30_000;

/// The queryable state of one aggregate, brought up to date behind its events.
#[derive(Clone)]
pub struct ReadModelObject(pub(super) Arc<ReadModel>);

/// The queryable state of one aggregate, brought up to date behind its events.
#[Object(name = "ReadModel")]
impl ReadModelObject {
    /// The aggregate.
    async fn aggregate_id(&self) -> UuidScalar {
        UuidScalar(self.0.aggregate_id.0)
    }

    /// What that aggregate is.
    async fn aggregate_type(&self) -> &str {
        self.0.aggregate_type.as_str()
    }

    /// The state.
    async fn data(&self) -> JsonScalar {
        JsonScalar(self.0.data.clone())
    }

    /// The version of the last event in it.
    async fn version(&self) -> i32 {
        self.0.version.0
    }

    /// Who writes it.
    async fn source(&self) -> ReadModelSource {
        self.0.source.into()
    }

    /// Why an event could not be folded into it; it stands still behind that event until it is rebuilt. Null when all is well.
    async fn fault(&self) -> Option<&str> {
        self.0.fault.as_deref()
    }

    /// When its aggregate came to be: the time of the event. One from outside: when it was written first.
    async fn created_at(&self) -> DateTimeScalar {
        DateTimeScalar(self.0.created_at)
    }

    /// The time of the last event in it. One from outside: when it was written last.
    async fn updated_at(&self) -> DateTimeScalar {
        DateTimeScalar(self.0.updated_at)
    }

    /// Null where a read model was written from outside for an aggregate that the event store does not have.
    async fn aggregate(&self, ctx: &Context<'_>) -> Result<Option<Node<AggregateObject>>> {
        let loaders = ctx.data_unchecked::<Arc<Loaders>>();
        let aggregate = loaders.aggregates.one(self.0.aggregate_id).await?;
        Ok(aggregate.map(|aggregate| Node(AggregateObject(aggregate))))
    }
}

impl Plain for ReadModelObject {
    fn write(&self, field: &Field, _: &Fragments, text: &mut JsonText) -> Option<()> {
        let model = self.0.as_ref();
        match field.name.node.as_str() {
            "aggregateId" => text.uuid(model.aggregate_id.0),
            "aggregateType" => text.text(model.aggregate_type.as_str()),
            "data" => text.json(&model.data),
            "version" => text.number(model.version.0),
            "fault" => text.optional(model.fault.as_deref(), JsonText::text),
            "createdAt" => text.instant(model.created_at),
            "updatedAt" => text.instant(model.updated_at),
            "source" => text.text(model.source.as_str()),
            _ => None,
        }
    }
}

/// Who writes a read model.
#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
pub enum ReadModelSource {
    /// The projector, from events.
    Projected,
    /// A client has written it by updateReadModel: the projector leaves it alone until it is rebuilt or its aggregate deleted.
    External,
}

impl From<Source> for ReadModelSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Projected => Self::Projected,
            Source::External => Self::External,
        }
    }
}

connection!(
    ReadModelConnection,
    ReadModelEdge,
    ReadModelObject,
    "read models"
);

/// How far the read models are behind the event log.
#[derive(SimpleObject)]
pub struct ProjectionStatus {
    /// Events that are not folded yet.
    lag_events: Long,
    /// The age of the oldest of them, in milliseconds; 0 where there is none.
    lag_ms: f64,
    /// Read models that stand still behind an event that cannot be folded.
    faulted: Long,
}

/// A read model passes where it meets every part that is given; within the list, any one type is enough.
#[derive(InputObject)]
#[graphql(name = "ReadModelFilter")]
pub struct ReadModelFilterInput {
    /// Read models of aggregates of these types.
    aggregate_types: Option<Vec<String>>,
    /// Read models whose data contains this JSON value: every key given, with its value, at every depth.
    contains: Option<JsonScalar>,
}

impl ReadModelFilterInput {
    pub(super) fn check(self, limits: &Limited) -> Result<ReadModelFilter, ApiError> {
        let types = self
            .aggregate_types
            .map(|types| aggregate_types("filter.aggregateTypes", &types));
        let contains = self.contains.map(|contains| contains.0);
        if let Some(contains) = &contains {
            limits.check_bytes("filter.contains", contains)?;
        }
        Ok(ReadModelFilter {
            aggregate_id: None,
            aggregate_types: types.transpose()?,
            contains,
        })
    }
}

/// By what a list of read models is ordered.
#[expect(clippy::enum_variant_names, reason = "they are the names of the API")]
#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
pub enum ReadModelOrder {
    /// By createdAt, the newest first.
    CreatedNewestFirst,
    /// By createdAt, the oldest first.
    CreatedOldestFirst,
    /// By updatedAt, the newest first.
    UpdatedNewestFirst,
    /// By updatedAt, the oldest first.
    UpdatedOldestFirst,
}

impl ReadModelOrder {
    fn parts(self) -> (ReadModelTime, Order) {
        match self {
            Self::CreatedNewestFirst => (ReadModelTime::Created, Order::NewestFirst),
            Self::CreatedOldestFirst => (ReadModelTime::Created, Order::OldestFirst),
            Self::UpdatedNewestFirst => (ReadModelTime::Updated, Order::NewestFirst),
            Self::UpdatedOldestFirst => (ReadModelTime::Updated, Order::OldestFirst),
        }
    }
}

/// A read model to write from outside.
#[derive(InputObject)]
pub struct UpdateReadModelInput {
    /// The aggregate.
    aggregate_id: UuidScalar,
    /// What that aggregate is.
    aggregate_type: String,
    /// The state.
    data: JsonScalar,
    /// The version of the last event in it.
    version: i32,
}

/// What became of a write from outside.
#[derive(SimpleObject)]
pub struct UpdateReadModelPayload {
    /// The read model as it is now.
    read_model: Node<ReadModelObject>,
    /// False where there is a newer one, or one from outside of the same version: then nothing was written.
    updated: bool,
}

/// Which read models are folded again: of one aggregate, of one type, or, without either, all.
#[derive(InputObject)]
pub struct RebuildReadModelsInput {
    /// That of this aggregate.
    aggregate_id: Option<UuidScalar>,
    /// Those of aggregates of this type.
    aggregate_type: Option<String>,
}

/// What became of a rebuild.
#[derive(SimpleObject)]
pub struct RebuildReadModelsPayload {
    /// Read models that are folded again.
    count: Long,
}

#[derive(Default)]
pub struct ReadModelQuery;

#[Object]
impl ReadModelQuery {
    /// One read model. With `minVersion` the answer waits (at most `waitMs`) until it has reached that version, so a client
    /// that has just written reads its own write; a deletion at or above it answers null at once. The error
    /// READ_MODEL_BEHIND says that it has not got there in time, READ_MODEL_FAULTED that it will not by itself.
    async fn read_model(
        &self,
        ctx: &Context<'_>,
        aggregate_id: UuidScalar,
        min_version: Option<i32>,
        #[graphql(default = 2000)] wait_ms: i32,
    ) -> Result<Option<Node<ReadModelObject>>> {
        require(ctx, Role::Read)?;
        let id = AggregateId(aggregate_id.0);
        let limit = check_wait(wait_ms)?;
        let Some(version) = min_version else {
            return find(ctx, id).await;
        };
        let version = check_version("minVersion", version)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let model = app.projections().read_model_at(id, version, limit).await;
        let model = model.map_err(ApiError::from)?;
        Ok(model.map(|model| Node(ReadModelObject(model))))
    }

    /// Read models in an order by one of their times. A page of large ones ends before `first`, and has a next one.
    #[graphql(complexity = "list_cost(first, child_complexity)")]
    async fn read_models(
        &self,
        ctx: &Context<'_>,
        filter: Option<ReadModelFilterInput>,
        #[graphql(default_with = "ReadModelOrder::CreatedNewestFirst")] order_by: ReadModelOrder,
        #[graphql(default = 100)] first: i32,
        after: Option<String>,
    ) -> Result<ReadModelConnection> {
        require(ctx, Role::Read)?;
        let store = ctx.data_unchecked::<Arc<App>>().store();
        let limits = ctx.data_unchecked::<Limited>();
        let filter = filter.map(|filter| filter.check(limits)).transpose()?;
        let first = check_first(first)?;
        let (by, order) = order_by.parts();
        let after = parse_after(store, by, after.as_deref())?;
        let list = ReadModelList { by, order, after };
        let page = store
            .read_models_page(&filter.unwrap_or_default(), list, first)
            .await
            .map_err(ApiError::from)?;
        let cursor = |model: &ReadModel| {
            let (at, id) = (by.of(model), model.aggregate_id);
            Cursor::ReadModels { by, at, id }
        };
        let nodes = page
            .models
            .into_iter()
            .map(|model| (cursor(&model), ReadModelObject(Arc::new(model))))
            .collect();
        Ok(ReadModelConnection::new(
            store,
            nodes,
            after.is_some(),
            page.has_next,
            None,
        ))
    }

    /// How far the read models are behind the event log.
    async fn projection(&self, ctx: &Context<'_>) -> Result<ProjectionStatus> {
        require(ctx, Role::Read)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let status = app.projections().status(app.clock().now()).await;
        let status = status.map_err(ApiError::from)?;
        let long = |count: u64| Long(i64::try_from(count).unwrap_or(i64::MAX));
        Ok(ProjectionStatus {
            lag_events: long(status.lag_events),
            lag_ms: status.lag_ms,
            faulted: long(status.faulted),
        })
    }
}

/// The read model of an aggregate, looked up together with those of others.
pub(super) async fn find(
    ctx: &Context<'_>,
    id: AggregateId,
) -> Result<Option<Node<ReadModelObject>>> {
    let loaders = ctx.data_unchecked::<Arc<Loaders>>();
    let model = loaders.read_models.one(id).await?;
    let there = model.filter(|model| model.is_there());
    Ok(there.map(|model| Node(ReadModelObject(model))))
}

fn check_wait(wait_ms: i32) -> Result<Duration, ApiError> {
    match u64::try_from(wait_ms) {
        Ok(limit_ms) if wait_ms <= MAX_WAIT_MS => Ok(Duration::from_millis(limit_ms)),
        _ => {
            let message = format!("must be from 0 to {MAX_WAIT_MS}, not {wait_ms}");
            Err(ApiError::bad_input("waitMs", message))
        }
    }
}

fn parse_after(
    store: &Store,
    by: ReadModelTime,
    after: Option<&str>,
) -> Result<Option<(Timestamp, AggregateId)>, ApiError> {
    let Some(text) = after.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match Cursor::decode(text, store.database_id(), store.partitions()) {
        Ok(Cursor::ReadModels { by: other, at, id }) if other == by => Ok(Some((at, id))),
        Ok(_) => Err(ApiError::bad_input("after", CursorError::OtherKind)),
        Err(error) => Err(ApiError::bad_input("after", error)),
    }
}

#[derive(Default)]
pub struct ReadModelMutation;

#[Object]
impl ReadModelMutation {
    /// Writes a read model from outside and takes it over from the projector. A version below the stored one (or equal to it, where
    /// that too came from outside) changes nothing (`updated` is false); one above its aggregate's own is BAD_USER_INPUT.
    async fn update_read_model(
        &self,
        ctx: &Context<'_>,
        input: UpdateReadModelInput,
    ) -> Result<UpdateReadModelPayload> {
        require(ctx, Role::Write)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let limits = ctx.data_unchecked::<Limited>();
        limits.check_bytes("input.data", &input.data.0)?;
        let model = ExternalModel {
            aggregate_id: AggregateId(input.aggregate_id.0),
            aggregate_type: aggregate_type("input.aggregateType", &input.aggregate_type)?,
            data: input.data.0,
            version: check_version("input.version", input.version)?,
        };
        let (wanted_type, wanted) = (model.aggregate_type.clone(), model.version);
        let outcome = app.projections().write_external(model).await;
        let outcome = outcome.map_err(|error| match error {
            StoreError::ValueRefused(_) => {
                ApiError::bad_input("input.data", "holds a value that the database cannot store")
            }
            error => ApiError::of_write(error),
        })?;
        let (model, updated) = match outcome {
            ExternalOutcome::Written(model) => (model, true),
            ExternalOutcome::Unchanged(model) if model.is_there() => (model, false),
            ExternalOutcome::Unchanged(tombstone) => {
                return Err(deleted(wanted, tombstone.version).into());
            }
            ExternalOutcome::VersionAhead { actual } => {
                let message = format!(
                    "is {wanted}, and the aggregate has only come to version {actual}: append its events first"
                );
                return Err(ApiError::bad_input("input.version", message).into());
            }
            ExternalOutcome::TypeMismatch { actual } => {
                return Err(ApiError::TypeMismatch {
                    field: "input.aggregateType".to_owned(),
                    expected: wanted_type.to_string(),
                    actual: actual.to_string(),
                }
                .into());
            }
        };
        Ok(UpdateReadModelPayload {
            read_model: Node(ReadModelObject(Arc::new(model))),
            updated,
        })
    }

    /// Folds the read models of one aggregate, of one type, or all again from the first event, while reads go on; external ones
    /// become projected again. The answer comes when it is done, however long that takes: the request time-out does not end it,
    /// and it goes on where its client has gone. Meanwhile others of many read models are UNAVAILABLE.
    async fn rebuild_read_models(
        &self,
        ctx: &Context<'_>,
        input: RebuildReadModelsInput,
    ) -> Result<RebuildReadModelsPayload> {
        require(ctx, Role::Admin)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let scope = match (input.aggregate_id, input.aggregate_type) {
            (Some(_), Some(_)) => {
                let message = "must be left out where input.aggregateId is given";
                return Err(ApiError::bad_input("input.aggregateType", message).into());
            }
            (Some(id), None) => RebuildScope::Aggregate(AggregateId(id.0)),
            (None, Some(name)) => RebuildScope::Type(aggregate_type("input.aggregateType", &name)?),
            (None, None) => RebuildScope::All,
        };
        ctx.data_unchecked::<TimeLimit>().lift();
        let count = app.projections().rebuild(scope).await;
        let count = count.map_err(not_rebuilt)?;
        Ok(RebuildReadModelsPayload {
            count: Long(i64::try_from(count).unwrap_or(i64::MAX)),
        })
    }
}

fn not_rebuilt(error: RebuildError) -> ApiError {
    match error {
        RebuildError::NotFound(_) => ApiError::not_found("input.aggregateId", error),
        RebuildError::Busy | RebuildError::Stopping => ApiError::Busy {
            message: error.to_string(),
        },
        RebuildError::Store(error) => ApiError::of_write(error),
        RebuildError::Failed(_) => ApiError::Failed(Arc::new(error)),
    }
}

/// A write from outside that is older than the deletion of the aggregate.
fn deleted(wanted: Version, version: Version) -> ApiError {
    let message = format!(
        "the aggregate was deleted at version {version}, and a write of version {wanted} does not bring it back"
    );
    ApiError::not_found("input.version", message)
}

#[cfg(test)]
mod tests {
    use async_graphql::Error;

    use super::*;

    #[tokio::test]
    async fn a_rebuild_that_fails_is_the_servers_fault_and_one_that_cannot_begin_is_not() {
        let code = |error| {
            let extensions = Error::from(not_rebuilt(error)).extensions;
            extensions.and_then(|extensions| extensions.get("code").cloned())
        };
        let panicked = tokio::spawn(async { panic!("for a test") }).await;
        let failed = RebuildError::Failed(panicked.expect_err("it has panicked"));
        assert_eq!(code(failed), Some("INTERNAL".into()));
        for error in [RebuildError::Busy, RebuildError::Stopping] {
            assert_eq!(code(error), Some("UNAVAILABLE".into()));
        }
    }
}
