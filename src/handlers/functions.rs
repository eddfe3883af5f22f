//! Functions in Rust that handlers can be registered with, where tidings is used as a library. Floor 4.

use std::{collections::BTreeMap, error::Error, fmt, panic::AssertUnwindSafe, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};

use crate::domain::{Event, FunctionName, HandlerFunction, LastError};

/// Why a function failed: its text is kept with the delivery.
pub type HandlerError = Box<dyn Error + Send + Sync>;

type Function =
    Arc<dyn Fn(Arc<Event>) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync>;

/// Why a function cannot be had under a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot be the name of a function: use 1 to 100 letters, digits and _ - . : / @ +, and not `log`"
)]
pub struct FunctionNameError(String);

/// Functions in Rust, by their names.
#[derive(Clone, Default)]
pub struct HandlerFunctions {
    functions: BTreeMap<String, Function>,
}

impl HandlerFunctions {
    /// No function.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// These functions and one more. It is called for each event at least once, in order for each aggregate, and again where it
    /// fails; it has to be done in the time that `--handler-timeout` gives it.
    ///
    /// # Errors
    /// When handlers cannot be registered with such a name.
    pub fn with<F, R, E>(mut self, name: &str, function: F) -> Result<Self, FunctionNameError>
    where
        F: Fn(Arc<Event>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<HandlerError>,
    {
        if !matches!(HandlerFunction::parse(name), Ok(HandlerFunction::Rust(_))) {
            return Err(FunctionNameError(name.to_owned()));
        }
        let function: Function =
            Arc::new(move |event| function(event).map(|done| done.map_err(Into::into)).boxed());
        self.functions.insert(name.to_owned(), function);
        Ok(self)
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.functions.keys().map(String::as_str)
    }

    /// Whether there is one of that name.
    #[must_use]
    pub fn has(&self, name: &FunctionName) -> bool {
        self.functions.contains_key(name.as_str())
    }

    /// Calls a function. One that panics has failed.
    pub(super) fn call(
        &self,
        name: &FunctionName,
        event: Arc<Event>,
    ) -> BoxFuture<'static, Result<(), LastError>> {
        let Some(function) = self.functions.get(name.as_str()).cloned() else {
            let missing = format!("this server has no function {name} in Rust");
            return async move { Err(LastError::new(&missing)) }.boxed();
        };
        let call = async move {
            let called = function(event).await;
            called.map_err(|error| LastError::new(&error.to_string()))
        };
        async move {
            match AssertUnwindSafe(call).catch_unwind().await {
                Ok(outcome) => outcome,
                Err(_) => Err(LastError::new("the function panicked")),
            }
        }
        .boxed()
    }
}

impl fmt::Debug for HandlerFunctions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}
