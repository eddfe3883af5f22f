//! Lists and look-ups whose JSON is bounded in bytes before it is read. Floor 2.

use sea_orm::{
    QueryResult, Statement,
    sea_query::{Expr, SelectStatement},
};

use super::{Store, StoreError, rows::Row};
use crate::domain::Order;

/// How large the rows of one page are, about: a list ends there, and says that there is more.
pub(super) const PAGE_BYTES: usize = 16 << 20;

/// Rows of one table, and how they are bounded. All names are as SQL spells them.
#[derive(Clone, Copy)]
pub(super) struct Bounded {
    pub(super) table: &'static str,
    /// What a row is found by.
    pub(super) key: &'static [&'static str],
    /// What is read of each row.
    pub(super) columns: &'static [&'static str],
    /// Those of them that are JSON.
    pub(super) json: &'static [&'static str],
    /// By what they are ordered.
    pub(super) sorted: &'static [&'static str],
    pub(super) order: Order,
    pub(super) max_bytes: usize,
}

/// Rows in their order up to the one with which they reach the bound: at least one.
pub(super) struct Part<T> {
    pub(super) rows: Vec<T>,
    /// Whether there are more, which did not fit.
    pub(super) is_cut: bool,
}

impl Bounded {
    /// The order, of a relation with this prefix.
    pub(super) fn order_of(&self, prefix: &str) -> String {
        let direction = match self.order {
            Order::OldestFirst => "",
            Order::NewestFirst => " DESC",
        };
        let column = |column: &&str| format!("{prefix}{column}{direction}");
        self.sorted
            .iter()
            .map(column)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The sum of something over all columns of JSON.
    pub(super) fn sum_of(&self, of: impl Fn(&str) -> String) -> String {
        let of: Vec<String> = self.json.iter().map(|column| of(column)).collect();
        of.join(" + ")
    }

    /// Columns as a list, each as `of` has it.
    pub(super) fn list_of(&self, of: impl Fn(&str) -> String) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| of(column)).collect();
        columns.join(", ")
    }

    /// In how many bytes the rows are to fit, for SQL.
    pub(super) fn max_bytes(&self) -> i64 {
        i64::try_from(self.max_bytes).unwrap_or(i64::MAX)
    }

    fn part<T>(
        &self,
        rows: &[QueryResult],
        read: impl Fn(&QueryResult) -> Result<T, StoreError>,
    ) -> Result<Part<T>, StoreError> {
        let asked = match rows.first() {
            Some(row) => Row::at(row, self.columns.len()).next::<i64>()?,
            None => 0,
        };
        Ok(Part {
            is_cut: usize::try_from(asked).is_ok_and(|asked| asked > rows.len()),
            rows: rows.iter().map(read).collect::<Result<_, _>>()?,
        })
    }
}

impl Store {
    /// The statement for the rows that `page` finds, bounded. It selects nothing yet, and has its limit. Behind the columns comes
    /// how many rows the page has.
    pub(super) fn bounded(&self, list: &Bounded, mut page: SelectStatement) -> Statement {
        page.expr(Expr::cust(self.backend.page_columns(list)));
        let mut statement = self.backend.dialect().build(&page);
        statement.sql = self.backend.bounded(list, &statement.sql);
        statement
    }

    /// Reads the rows that `page` finds, bounded.
    pub(super) async fn read_part<T>(
        &self,
        list: &Bounded,
        page: SelectStatement,
        read: impl Fn(&QueryResult) -> Result<T, StoreError>,
    ) -> Result<Part<T>, StoreError> {
        let rows = self.read(self.bounded(list, page)).await?;
        list.part(&rows, read)
    }

    /// Reads the rows that a statement finds, which selects [`super::backend::Backend::page_columns`]; none where not all fit.
    pub(super) async fn read_all_or_none<T>(
        &self,
        list: &Bounded,
        mut page: Statement,
        read: impl Fn(&QueryResult) -> Result<T, StoreError>,
    ) -> Result<Option<Vec<T>>, StoreError> {
        page.sql = self.backend.bounded(list, &page.sql);
        let part = list.part(&self.read(page).await?, read)?;
        Ok((!part.is_cut).then_some(part.rows))
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
