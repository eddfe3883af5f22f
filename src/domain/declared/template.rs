//! How an event's data is made from a command's: a JSON value with places in it that the command fills. Floor 0.

use serde_json::{Map, Value};

/// A value to be filled. A text `$.a.b` is the command's value there (left out where there is none), `$` is all of the
/// command's data, and `$$` at the start of a text stands for one `$`. All else is what it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    /// The command's value at these keys; all of its data where there are none.
    Taken(Vec<String>),
    /// A value that is always the same.
    Fixed(Value),
    /// An array of templates.
    Array(Vec<Template>),
    /// An object of templates.
    Object(Vec<(String, Template)>),
}

/// Why a value is no template, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct TemplateError {
    /// The keys and indices that lead there.
    pub path: Vec<String>,
    /// What would be right.
    pub problem: String,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// When a text begins with `$` and is none of the forms.
    pub fn parse(value: &Value) -> Result<Self, TemplateError> {
        let within = |key: &str, error: TemplateError| TemplateError {
            path: [key.to_owned()].into_iter().chain(error.path).collect(),
            problem: error.problem,
        };
        Ok(match value {
            Value::String(text) => Self::parse_text(text).map_err(|problem| TemplateError {
                path: Vec::new(),
                problem,
            })?,
            Value::Array(elements) => Self::Array(
                elements
                    .iter()
                    .enumerate()
                    .map(|(index, element)| {
                        Self::parse(element).map_err(|error| within(&index.to_string(), error))
                    })
                    .collect::<Result<_, _>>()?,
            ),
            Value::Object(entries) => Self::Object(
                entries
                    .iter()
                    .map(|(key, value)| match Self::parse(value) {
                        Ok(template) => Ok((key.clone(), template)),
                        Err(error) => Err(within(key, error)),
                    })
                    .collect::<Result<_, _>>()?,
            ),
            fixed => Self::Fixed(fixed.clone()),
        })
    }

    fn parse_text(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('$') else {
            return Ok(Self::Fixed(text.into()));
        };
        if rest.is_empty() {
            return Ok(Self::Taken(Vec::new()));
        }
        if rest.starts_with('$') {
            return Ok(Self::Fixed(rest.into()));
        }
        let keys: Option<Vec<String>> = rest
            .strip_prefix('.')
            .map(|keys| keys.split('.').map(str::to_owned).collect());
        keys.filter(|keys| keys.iter().all(|key| !key.is_empty()))
            .map(Self::Taken)
            .ok_or_else(|| {
                format!(
                    "`{text}` takes nothing from the command: write $.key or $.key.key, $ for all of its data, or $$ for \
                     a text that begins with a $"
                )
            })
    }

    /// The value for a command's data; `None` where it takes what is not there.
    #[must_use]
    pub fn fill(&self, data: &Value) -> Option<Value> {
        match self {
            Self::Taken(keys) => keys
                .iter()
                .try_fold(data, |value, key| value.as_object()?.get(key))
                .cloned(),
            Self::Fixed(value) => Some(value.clone()),
            Self::Array(elements) => Some(
                elements
                    .iter()
                    .filter_map(|element| element.fill(data))
                    .collect(),
            ),
            Self::Object(entries) => Some(Value::Object(
                entries
                    .iter()
                    .filter_map(|(key, template)| Some((key.clone(), template.fill(data)?)))
                    .collect::<Map<_, _>>(),
            )),
        }
    }

    /// The keys of the command's data that it takes from.
    pub fn taken(&self) -> Vec<&str> {
        match self {
            Self::Taken(keys) => keys.first().map(String::as_str).into_iter().collect(),
            Self::Fixed(_) => Vec::new(),
            Self::Array(elements) => elements.iter().flat_map(Self::taken).collect(),
            Self::Object(entries) => entries
                .iter()
                .flat_map(|(_, template)| template.taken())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fill(template: Value, data: Value) -> Value {
        Template::parse(&template)
            .expect("a template")
            .fill(&data)
            .expect("a value")
    }

    #[test]
    fn a_template_takes_values_from_the_command_and_leaves_out_what_is_not_there() {
        let template = json!({
            "name": "$.username",
            "city": "$.address.city",
            "none": "$.address.city.street",
            "list": ["$.username", "$.nothing", 1],
            "changed": "email_only",
            "all": "$",
        });
        let data = json!({ "username": "ann", "address": { "city": "Bonn" } });
        assert_eq!(
            fill(template, data.clone()),
            json!({ "name": "ann", "city": "Bonn", "list": ["ann", 1], "changed": "email_only", "all": data })
        );
    }

    #[test]
    fn a_null_of_the_command_is_taken() {
        assert_eq!(
            fill(json!({ "email": "$.email" }), json!({ "email": null })),
            json!({ "email": null })
        );
    }

    #[test]
    fn two_dollars_stand_for_one() {
        assert_eq!(
            fill(json!({ "price": "$$5", "odd": "$$.x" }), json!({})),
            json!({ "price": "$5", "odd": "$.x" })
        );
    }

    #[test]
    fn a_text_that_only_looks_like_a_place_is_refused_with_its_own_place() {
        for wrong in ["$name", "$.", "$.a..b", "$.a."] {
            let error = Template::parse(&json!({ "a": [1, wrong] })).expect_err(wrong);
            assert_eq!(error.path, ["a", "1"]);
            assert!(error.problem.contains(wrong), "{error}");
        }
    }
}
