//! Connections as the GraphQL Cursor Connections specification has them, and the arguments that they take. Floor 6.

use async_graphql::{Enum, SimpleObject};

use super::errors::ApiError;
use crate::domain::{Cursor, Order as DomainOrder, Place, Version};

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

/// Defines the types of one connection.
macro_rules! connection {
    ($connection:ident, $edge:ident, $node:ty, $of:literal) => {
        #[doc = concat!("A page of ", $of, ".")]
        #[derive(Clone, async_graphql::SimpleObject)]
        pub struct $connection {
            /// The nodes with their cursors.
            edges: $crate::graphql::plain::Nodes<$edge>,
            /// The nodes alone.
            nodes: $crate::graphql::plain::Nodes<$node>,
            /// Where the page lies.
            page_info: $crate::graphql::pagination::PageInfo,
        }

        /// A node with its cursor.
        #[derive(Clone, async_graphql::SimpleObject)]
        pub struct $edge {
            /// The place behind which a list goes on after this node.
            cursor: String,
            /// The node.
            node: $crate::graphql::plain::Node<$node>,
        }

        impl $crate::graphql::plain::Plain for $edge {
            fn plain(
                &self,
                field: &async_graphql::parser::types::Field,
                fragments: &$crate::graphql::plain::Fragments,
            ) -> Option<async_graphql::Value> {
                match field.name.node.as_str() {
                    "cursor" => Some(self.cursor.as_str().into()),
                    "node" => $crate::graphql::plain::object(
                        &self.node.0,
                        &field.selection_set.node,
                        fragments,
                    ),
                    _ => None,
                }
            }
        }

        impl $connection {
            pub(super) fn new(
                nodes: Vec<(String, $node)>,
                has_previous: bool,
                has_next: bool,
                end: Option<String>,
            ) -> Self {
                use $crate::graphql::plain::{Node, Nodes};
                let start_cursor = nodes.first().map(|(cursor, _)| cursor.clone());
                let end_cursor = end.or_else(|| nodes.last().map(|(cursor, _)| cursor.clone()));
                let all = nodes.iter().map(|(_, node)| node.clone()).collect();
                let edge = |(cursor, node)| $edge {
                    cursor,
                    node: Node(node),
                };
                Self {
                    nodes: Nodes(all),
                    edges: Nodes(nodes.into_iter().map(edge).collect()),
                    page_info: $crate::graphql::pagination::PageInfo::new(
                        has_previous,
                        has_next,
                        start_cursor,
                        end_cursor,
                    ),
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
