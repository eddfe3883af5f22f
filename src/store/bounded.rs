//! Lists and look-ups that are bounded in bytes while they are read. Floor 2.

use sea_orm::{QueryResult, Statement, sea_query::SelectStatement};

use super::{Store, StoreError};
use crate::domain::Order;

/// How large the rows of one page are, about: a list ends there, and says that there is more.
pub(super) const PAGE_BYTES: usize = 16 << 20;

/// Rows in their order up to the one with which they reach the bound: at least one.
pub(super) struct Part<T> {
    pub(super) rows: Vec<T>,
    /// Whether there are more, which did not fit.
    pub(super) is_cut: bool,
}

impl Store {
    /// Reads rows in their order, up to the one with which they have `max_bytes`.
    pub(super) async fn read_part<T>(
        &self,
        page: &SelectStatement,
        max_bytes: usize,
        read: impl Fn(&QueryResult) -> Result<T, StoreError>,
    ) -> Result<Part<T>, StoreError> {
        let page = self.backend.dialect().build(page);
        let rows = self.read_up_to(page, max_bytes).await?;
        Ok(Part {
            rows: rows.rows.iter().map(read).collect::<Result<_, _>>()?,
            is_cut: rows.is_cut,
        })
    }

    /// Reads the rows of a statement; none where they have more than `max_bytes`.
    pub(super) async fn read_all_or_none<T>(
        &self,
        statement: Statement,
        max_bytes: usize,
        read: impl Fn(&QueryResult) -> Result<T, StoreError>,
    ) -> Result<Option<Vec<T>>, StoreError> {
        let rows = self.read_up_to(statement, max_bytes).await?;
        if rows.is_cut {
            return Ok(None);
        }
        rows.rows
            .iter()
            .map(read)
            .collect::<Result<_, _>>()
            .map(Some)
    }
}

/// Brings the rows of several partitions into one order, `first` of them at most. Behind the last row of a part that was cut
/// nothing is known, so there it ends.
pub(super) fn merge<T, K: Ord>(
    parts: Vec<Part<T>>,
    order: Order,
    first: usize,
    key: impl Fn(&T) -> K,
) -> Part<T> {
    let cut = parts.iter().filter(|part| part.is_cut);
    let ends = cut.filter_map(|part| part.rows.last().map(&key));
    let end = match order {
        Order::OldestFirst => ends.min(),
        Order::NewestFirst => ends.max(),
    };
    let mut rows: Vec<T> = parts.into_iter().flat_map(|part| part.rows).collect();
    if let Some(end) = &end {
        rows.retain(|row| match order {
            Order::OldestFirst => key(row) <= *end,
            Order::NewestFirst => key(row) >= *end,
        });
    }
    rows.sort_unstable_by_key(&key);
    if order == Order::NewestFirst {
        rows.reverse();
    }
    let is_cut = end.is_some() || rows.len() > first;
    rows.truncate(first);
    Part { rows, is_cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_merged_up_to_where_one_of_them_was_cut() {
        let merged = |order, first| {
            let mut parts = vec![
                (vec![1, 4, 9], false),
                (vec![2, 3, 6], true),
                (vec![5], true),
            ];
            if order == Order::NewestFirst {
                parts = vec![
                    (vec![9, 4, 1], false),
                    (vec![8, 6], true),
                    (vec![7, 5], true),
                ];
            }
            let parts = parts.into_iter();
            let parts = parts.map(|(rows, is_cut)| Part { rows, is_cut }).collect();
            let part = merge(parts, order, first, |row| *row);
            (part.rows, part.is_cut)
        };
        assert_eq!(merged(Order::OldestFirst, 9), (vec![1, 2, 3, 4, 5], true));
        assert_eq!(merged(Order::OldestFirst, 2), (vec![1, 2], true));
        assert_eq!(merged(Order::NewestFirst, 9), (vec![9, 8, 7, 6], true));
        let whole = |first| {
            let rows = vec![1, 2, 3];
            let parts = vec![Part {
                rows,
                is_cut: false,
            }];
            merge(parts, Order::OldestFirst, first, |row| *row)
        };
        assert!(!whole(3).is_cut);
        assert!(whole(2).is_cut);
    }
}
