//! The table `domains`: which domain is in force. Floor 2.

use entity::domains::{Column, Entity};
use sea_orm::sea_query::{Expr, OnConflict, Order, Query};

use super::{Store, StoreError, rows::Row};
use crate::domain::{Domain, Timestamp};

/// The domain that is in force: the one of the newest start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainInForce {
    /// What tells it from others.
    pub fingerprint: String,
    /// When it came into force.
    pub since: Timestamp,
}

impl Store {
    /// Finds the domain in force; none where no server has started yet.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn domain_in_force(&self) -> Result<Option<DomainInForce>, StoreError> {
        let select = Query::select()
            .columns([Column::Fingerprint, Column::InForceFrom])
            .from(Entity)
            .order_by(Column::InForceFrom, Order::Desc)
            .order_by(Column::Fingerprint, Order::Desc)
            .limit(1)
            .to_owned();
        let rows = self.select(&select).await?;
        let in_force = rows.first().map(|row| {
            let mut row = Row::of(row);
            Ok(DomainInForce {
                fingerprint: row.next()?,
                since: row.instant()?,
            })
        });
        in_force.transpose()
    }

    /// Puts a domain in force, from now on; whether another one was before. Nothing changes where it is in force already.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn put_in_force(&self, domain: &Domain) -> Result<bool, StoreError> {
        let newest = self.domain_in_force().await?;
        let mut since = self.clock.now();
        let was_other = newest.is_some();
        if let Some(newest) = newest {
            if newest.fingerprint == domain.fingerprint() {
                return Ok(false);
            }
            // The clock of another server may have been ahead.
            since = since.max(Timestamp::from_micros(newest.since.as_micros() + 1));
        }
        let content = self
            .backend
            .json_value(domain.content().as_str().to_owned());
        let later = OnConflict::column(Column::Fingerprint)
            .update_column(Column::InForceFrom)
            .to_owned();
        let insert = Query::insert()
            .into_table(Entity)
            .columns([Column::Fingerprint, Column::Content, Column::InForceFrom])
            .values_panic([
                Expr::val(domain.fingerprint()),
                content,
                Expr::val(since.to_utc()),
            ])
            .on_conflict(later)
            .to_owned();
        self.backend
            .execute(self.backend.dialect().build(&insert))
            .await?;
        Ok(was_other)
    }
}
