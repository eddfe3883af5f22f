//! Bounding lists on SQLite: by the texts that are stored, whose length is known without reading them. Only those that fit are
//! looked up then. Floor 2.

use super::super::Backend;
use crate::store::bounded::Bounded;

/// What a page has of each row: what it is found by, what it is sorted by, and how large it is.
pub(super) fn page_columns(backend: &dyn Backend, list: &Bounded) -> String {
    let mut columns = list.key.to_vec();
    columns.extend(
        list.sorted
            .iter()
            .filter(|column| !list.key.contains(column)),
    );
    let columns = columns
        .iter()
        .map(|column| format!("{}.{column}", list.table));
    let stored = list.sum_of(|column| backend.stored_bytes(&format!("{}.{column}", list.table)));
    let columns = columns.chain([format!("{stored} AS bytes")]);
    columns.collect::<Vec<_>>().join(", ")
}

/// The SQL around a page.
pub(super) fn bounded(list: &Bounded, page: &str) -> String {
    let (order, max_bytes) = (list.order_of(""), list.max_bytes());
    let columns = list.list_of(|column| format!("t.{column}"));
    let keys = list
        .key
        .iter()
        .map(|column| format!("t.{column} = s.{column}"));
    let keys = keys.collect::<Vec<_>>().join(" AND ");
    let sorted = list.order_of("s.");
    let table = list.table;
    format!(
        "WITH page AS ({page}), \
         sized AS (SELECT page.*, COUNT(*) OVER () AS page_rows, \
         SUM(bytes) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) - bytes AS bytes_before FROM page) \
         SELECT {columns}, s.page_rows FROM sized s CROSS JOIN {table} t ON {keys} \
         WHERE s.bytes_before < {max_bytes} ORDER BY {sorted}"
    )
}
