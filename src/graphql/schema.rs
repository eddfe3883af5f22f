//! The roots, and the one function that builds the schema. Floor 6.

use async_graphql::{MergedObject, MergedSubscription, SchemaBuilder};

use super::{
    aggregate::{AggregateMutation, AggregateQuery},
    command::{CommandMutation, CommandQuery, CommandSubscription},
    event::{EventMutation, EventQuery, EventSubscription},
    event_handler::{EventHandlerMutation, EventHandlerQuery},
    event_metric::{EventMetricMutation, EventMetricQuery},
    read_model::{ReadModelMutation, ReadModelQuery},
    read_model_changes::ReadModelSubscription,
    server::ServerQuery,
    stream::{StreamMutation, StreamQuery, StreamSubscription},
};

/// What can be read.
#[derive(MergedObject, Default)]
pub struct Query(
    AggregateQuery,
    EventQuery,
    CommandQuery,
    ReadModelQuery,
    StreamQuery,
    EventMetricQuery,
    EventHandlerQuery,
    ServerQuery,
);

/// What can be written.
#[derive(MergedObject, Default)]
pub struct Mutation(
    AggregateMutation,
    EventMutation,
    CommandMutation,
    ReadModelMutation,
    StreamMutation,
    EventMetricMutation,
    EventHandlerMutation,
);

/// Every subscription goes from history over to live without a gap, a repeat or a change of order, and continues behind the
/// place that the client names, also after a lost connection. Without a place it starts with what comes after it was accepted.
#[derive(MergedSubscription, Default)]
pub struct Subscription(
    StreamSubscription,
    EventSubscription,
    CommandSubscription,
    ReadModelSubscription,
);

/// The schema of the API.
pub type Schema = async_graphql::Schema<Query, Mutation, Subscription>;

/// Begins the schema; what its resolvers need comes as data.
pub(super) fn build() -> SchemaBuilder<Query, Mutation, Subscription> {
    async_graphql::Schema::build(
        Query::default(),
        Mutation::default(),
        Subscription::default(),
    )
}
