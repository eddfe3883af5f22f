//! The subscription to read models. Floor 6.

use std::sync::Arc;

use async_graphql::{Context, Result, SimpleObject, Subscription, parser::types::Field};
use futures_util::stream::{self, Stream};

use super::{
    access::require,
    errors::ApiError,
    plain::{Fragments, Node, Plain, write_object},
    read_model::{ReadModelFilterInput, ReadModelObject},
    scalars::UuidScalar,
    text::JsonText,
};
use crate::{
    app::App,
    domain::{AggregateId, Cursor, Position, ReadModelFilter, Role},
    store::Store,
    tail::ChangeStep,
};

/// One step of the `readModels` subscription.
#[derive(SimpleObject)]
pub struct ReadModelChange {
    /// The place behind this step.
    cursor: String,
    /// The aggregate whose read model has changed.
    aggregate_id: UuidScalar,
    /// Its newest state; null where it was removed or no longer passes the filter.
    read_model: Option<Node<ReadModelObject>>,
}

impl ReadModelChange {
    fn of(step: ChangeStep, filter: &ReadModelFilter, store: &Store) -> Self {
        let model = step.model;
        let passes = model.is_there() && filter.matches_data(&model);
        Self {
            cursor: Cursor::Changes(step.place).encode(store.database_id(), store.partitions()),
            aggregate_id: UuidScalar(model.aggregate_id.0),
            read_model: passes.then_some(Node(ReadModelObject(model))),
        }
    }
}

impl Plain for ReadModelChange {
    fn write(&self, field: &Field, fragments: &Fragments, text: &mut JsonText) -> Option<()> {
        match field.name.node.as_str() {
            "cursor" => text.text(&self.cursor),
            "aggregateId" => text.uuid(self.aggregate_id.0),
            "readModel" => text.optional(self.read_model.as_ref(), |text, model| {
                write_object(&model.0, &field.selection_set.node, fragments, text)
            }),
            _ => None,
        }
    }
}

#[derive(Default)]
pub struct ReadModelSubscription;

#[Subscription]
impl ReadModelSubscription {
    /// The read models that pass the filter, each time that one has changed (a reader too slow for every state gets the newest).
    async fn read_models(
        &self,
        ctx: &Context<'_>,
        aggregate_id: Option<UuidScalar>,
        filter: Option<ReadModelFilterInput>,
        after: Option<String>,
    ) -> Result<impl Stream<Item = Result<Node<ReadModelChange>>>> {
        require(ctx, Role::Read)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let store = app.store().clone();
        let filter = filter.map(|filter| filter.check(ctx.data_unchecked()));
        let filter = ReadModelFilter {
            aggregate_id: aggregate_id.map(|id| AggregateId(id.0)),
            ..filter.transpose()?.unwrap_or_default()
        };
        let after = after.map(|text| parse_place(&store, &text)).transpose()?;
        let follower = app.tail().follow_changes(after, filter.clone()).await;
        let follower = follower
            .map_err(|error| ApiError::of_follow(error, store.database_id(), store.partitions()))?;
        let context = Arc::new((filter, store));
        Ok(stream::unfold(Some(follower), move |follower| {
            let context = context.clone();
            async move {
                let mut follower = follower?;
                Some(match follower.next().await {
                    Ok(step) => {
                        let (filter, store) = context.as_ref();
                        let change = ReadModelChange::of(step, filter, store);
                        (Ok(Node(change)), Some(follower))
                    }
                    Err(error) => (Err(ApiError::from(error).into()), None),
                })
            }
        }))
    }
}

/// The place that a client names: the beginning for an empty text.
fn parse_place(store: &Store, text: &str) -> Result<Vec<Position>, ApiError> {
    if text.is_empty() {
        return Ok(vec![Position::START; store.partitions().get()]);
    }
    match Cursor::decode(text, store.database_id(), store.partitions()) {
        Ok(Cursor::Changes(behind)) => Ok(behind),
        Ok(Cursor::Head { changes, .. }) => Ok(changes),
        Ok(_) => {
            let message = "is the cursor of something else: pass on one that this subscription gave, or server.headCursor";
            Err(ApiError::bad_input("after", message))
        }
        Err(error) => Err(ApiError::bad_input("after", error)),
    }
}
