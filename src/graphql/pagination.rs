//! Connections as the GraphQL Cursor Connections specification has them, and the arguments that they take. Floor 6.

use async_graphql::{Enum, SimpleObject};

use super::errors::ApiError;
use crate::{
    domain::{Cursor, DatabaseId, Order as DomainOrder, PartitionCount, Place, Version},
    store::Store,
};

/// The most that one list may be asked for.
pub(super) const MAX_FIRST: i32 = 1000;

/// Which end of a list comes first.
#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq, Hash)]
pub enum Order {
    /// In the order of the log.
    OldestFirst,
    /// The newest comes first.
    NewestFirst,
}

impl From<Order> for DomainOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::OldestFirst => Self::OldestFirst,
            Order::NewestFirst => Self::NewestFirst,
        }
    }
}

/// Where a page lies.
#[derive(Clone, Debug, SimpleObject)]
pub struct PageInfo {
    /// Whether something comes before this page.
    has_previous_page: bool,
    /// Whether something comes behind this page.
    has_next_page: bool,
    /// The cursor of the first edge.
    start_cursor: Option<String>,
    /// The cursor to go on behind.
    end_cursor: Option<String>,
}

impl PageInfo {
    pub(super) fn new(
        has_previous_page: bool,
        has_next_page: bool,
        start_cursor: Option<String>,
        end_cursor: Option<String>,
    ) -> Self {
        Self {
            has_previous_page,
            has_next_page,
            start_cursor,
            end_cursor,
        }
    }
}

/// Where the cursors of a page lead: they are written when they are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Cursors {
    database: DatabaseId,
    partitions: PartitionCount,
}

impl Cursors {
    pub(super) fn of(store: &Store) -> Self {
        Self {
            database: store.database_id(),
            partitions: store.partitions(),
        }
    }

    pub(super) fn write(self, cursor: &Cursor) -> String {
        cursor.encode(self.database, self.partitions)
    }
}

/// Defines the types of one connection.
macro_rules! connection {
    ($connection:ident, $edge:ident, $node:ty, $of:literal) => {
        #[doc = concat!("A page of ", $of, ".")]
        pub struct $connection {
            cursors: $crate::graphql::pagination::Cursors,
            rows: Vec<($crate::domain::Cursor, $node)>,
            has_previous: bool,
            has_next: bool,
            end: Option<$crate::domain::Cursor>,
        }

        #[doc = concat!("A page of ", $of, ".")]
        #[async_graphql::Object]
        impl $connection {
            /// The nodes with their cursors.
            async fn edges(&self) -> $crate::graphql::plain::Nodes<$edge> {
                let edges = self.rows.iter().map(|(cursor, node)| $edge {
                    cursor: self.cursors.write(cursor),
                    node: node.clone(),
                });
                $crate::graphql::plain::Nodes(edges.collect())
            }

            /// The nodes alone.
            async fn nodes(&self) -> $crate::graphql::plain::Nodes<$node> {
                $crate::graphql::plain::Nodes(self.rows.iter().map(|row| row.1.clone()).collect())
            }

            /// Where the page lies.
            async fn page_info(&self) -> $crate::graphql::pagination::PageInfo {
                let cursor = |row: &($crate::domain::Cursor, $node)| self.cursors.write(&row.0);
                let end = self.end.as_ref().map(|end| self.cursors.write(end));
                $crate::graphql::pagination::PageInfo::new(
                    self.has_previous,
                    self.has_next,
                    self.rows.first().map(cursor),
                    end.or_else(|| self.rows.last().map(cursor)),
                )
            }
        }

        /// A node with its cursor.
        pub struct $edge {
            cursor: String,
            node: $node,
        }

        /// A node with its cursor.
        #[async_graphql::Object]
        impl $edge {
            /// The place behind which a list goes on after this node.
            async fn cursor(&self) -> &str {
                &self.cursor
            }

            /// The node.
            async fn node(&self) -> $crate::graphql::plain::Node<$node> {
                $crate::graphql::plain::Node(self.node.clone())
            }
        }

        impl $crate::graphql::plain::Plain for $edge {
            fn write(
                &self,
                field: &async_graphql::parser::types::Field,
                fragments: &$crate::graphql::plain::Fragments,
                text: &mut $crate::graphql::text::JsonText,
            ) -> Option<()> {
                match field.name.node.as_str() {
                    "cursor" => text.text(&self.cursor),
                    "node" => $crate::graphql::plain::write_object(
                        &self.node,
                        &field.selection_set.node,
                        fragments,
                        text,
                    ),
                    _ => None,
                }
            }
        }

        impl $connection {
            /// A page; without `end`, the place to go on behind is that of the last row.
            pub(super) fn new(
                store: &$crate::store::Store,
                rows: Vec<($crate::domain::Cursor, $node)>,
                has_previous: bool,
                has_next: bool,
                end: Option<$crate::domain::Cursor>,
            ) -> Self {
                Self {
                    cursors: $crate::graphql::pagination::Cursors::of(store),
                    rows,
                    has_previous,
                    has_next,
                    end,
                }
            }
        }
    };
}
pub(super) use connection;

/// Checks how many are asked for.
pub(super) fn check_first(first: i32) -> Result<usize, ApiError> {
    match usize::try_from(first) {
        Ok(count) if (1..=MAX_FIRST).contains(&first) => Ok(count),
        _ => Err(ApiError::bad_input(
            "first",
            format!("must be from 1 to {MAX_FIRST}, not {first}"),
        )),
    }
}

/// Checks a version that a client names.
pub(super) fn check_version(field: &str, version: i32) -> Result<Version, ApiError> {
    if version < 0 {
        return Err(ApiError::bad_input(
            field,
            format!("must be 0 or above, not {version}"),
        ));
    }
    Ok(Version(version))
}

/// The cost of a list for the limit of complexity; a wrong number is refused later. It stays far below where sums of costs
/// would begin again at 0.
pub(super) fn list_cost(first: i32, child_complexity: usize) -> usize {
    const MOST: usize = 1 << 40;
    let elements = usize::try_from(first.clamp(1, MAX_FIRST)).unwrap_or(1);
    elements
        .saturating_mul(child_complexity)
        .saturating_add(1)
        .min(MOST)
}

/// The place that a cursor of events names; an empty text is the beginning.
pub(super) fn place_of(cursor: Cursor) -> Option<Place> {
    match cursor {
        Cursor::Events(place) | Cursor::Head { events: place, .. } => Some(place),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_in_lists_cost_more_and_more_and_never_begin_again_at_nothing() {
        let costs: Vec<usize> = std::iter::successors(Some(1), |cost| Some(list_cost(1000, *cost)))
            .take(16)
            .collect();
        assert!(costs.is_sorted());
        assert_eq!(costs[2], 1_001_001);
        assert!(costs[15].checked_mul(1000).is_some());
    }
}
