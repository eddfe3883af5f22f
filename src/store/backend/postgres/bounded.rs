//! Bounding lists on PostgreSQL: first by what is stored, which is measured without being read, and then by the texts that are
//! sent, which may be many times as long. Floor 2.

use super::super::Backend;
use crate::store::bounded::Bounded;

/// What a page has of each row: a large value is a pointer until it becomes a text.
pub(super) fn page_columns(list: &Bounded) -> String {
    list.list_of(|column| format!("{}.{column}", list.table))
}

/// The SQL around a page. Texts are made once, in the relation that is materialized.
pub(super) fn bounded(backend: &dyn Backend, list: &Bounded, page: &str) -> String {
    let (order, max_bytes) = (list.order_of(""), list.max_bytes());
    let stored = list.sum_of(|column| backend.stored_bytes(column));
    let sent = list.sum_of(|column| format!("octet_length({column})"));
    let columns = list.list_of(str::to_owned);
    let texts = list.list_of(|column| {
        if list.json.contains(&column) {
            format!("CAST({column} AS text) AS {column}")
        } else {
            column.to_owned()
        }
    });
    format!(
        "WITH page AS ({page}), \
         sized AS (SELECT page.*, COUNT(*) OVER () AS page_rows, \
         SUM({stored}) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) - ({stored}) AS bytes_before FROM page), \
         texts AS MATERIALIZED (SELECT {texts}, page_rows FROM sized WHERE bytes_before < {max_bytes}), \
         summed AS (SELECT texts.*, \
         SUM({sent}) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) - ({sent}) AS bytes_before FROM texts) \
         SELECT {columns}, page_rows FROM summed WHERE bytes_before < {max_bytes} ORDER BY {order}"
    )
}
