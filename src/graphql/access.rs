//! Who may use which root field: said in one place, asked by each resolver. Floor 6.

use async_graphql::Context;

use super::errors::ApiError;
use crate::domain::{Caller, Role};

/// Refuses a caller whose role is below the one that is needed. Nobody at all is refused too.
pub(super) fn require(ctx: &Context<'_>, needed: Role) -> Result<(), ApiError> {
    match ctx.data::<Caller>() {
        Ok(caller) if caller.role >= needed => Ok(()),
        _ => Err(ApiError::Forbidden { needed }),
    }
}
