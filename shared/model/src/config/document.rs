//! The JSON object of a `config.json`, read field by field so that every refusal names its field.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{ConfigError, read_bounded};

/// A configuration and where it came from.
pub(super) struct Document {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl Document {
    pub(super) fn read(path: PathBuf) -> Result<Self, ConfigError> {
        let text = read_bounded(&path)?;
        match serde_json::from_slice(&text) {
            Ok(fields) => Ok(Self { path, fields }),
            Err(source) => Err(ConfigError::Json { path, source }),
        }
    }

    /// A field that is there, `null` included.
    pub(super) fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// A field that is there and not `null`.
    pub(super) fn set(&self, name: &str) -> Option<&Value> {
        self.field(name).filter(|value| !value.is_null())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// An integer in `1..=most`, or `absent` where there is no such field.
    pub(super) fn size(&self, name: &str, absent: i64, most: i64) -> Result<i64, ConfigError> {
        self.integer(name, absent, 1..=most)
    }

    /// An integer in `range`, or `absent` where there is no such field.
    pub(super) fn integer(&self, name: &str, absent: i64, range: RangeInclusive<i64>) -> Result<i64, ConfigError> {
        let Some(value) = self.field(name) else { return Ok(absent) };
        let reason = "an integer of a model's usual size is expected";
        value.as_i64().filter(|integer| range.contains(integer)).ok_or_else(|| self.refusal(name, value, reason))
    }

    /// A finite number above 0, or `absent` where there is no such field.
    pub(super) fn positive(&self, name: &str, absent: f64) -> Result<f64, ConfigError> {
        self.field(name).map_or(Ok(absent), |value| self.positive_value(name, value))
    }

    /// `value`, found under `name`, as a finite number above 0.
    pub(super) fn positive_value(&self, name: &str, value: &Value) -> Result<f64, ConfigError> {
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        number.ok_or_else(|| self.refusal(name, value, "a positive finite number is expected"))
    }

    /// A truth value; absent and `null` are false, as in the reference.
    pub(super) fn flag(&self, name: &str) -> Result<bool, ConfigError> {
        let Some(value) = self.set(name) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.refusal(name, value, "true or false is expected"))
    }

    /// Why the field is refused; the value is cut to a readable length.
    pub(super) fn refusal(&self, field: &str, value: &Value, reason: &'static str) -> ConfigError {
        let value = value.to_string().chars().take(120).collect();
        ConfigError::Unsupported { path: self.path.clone(), field: field.to_owned(), value, reason }
    }
}
