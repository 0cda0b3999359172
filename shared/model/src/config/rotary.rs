//! The rotary embedding that a configuration asks for, in the older spelling (`rope_theta` beside `rope_scaling`) and the
//! newer one (`rope_parameters` with everything in it).

use serde_json::{Map, Value};

use super::ConfigError;
use super::document::Document;

/// The default of the reference's three configuration classes.
const THETA: f64 = 10_000.0;

/// The rotary embedding: its base, and what is done to its frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// The base, above 0.
    pub theta: f64,
    /// How the frequencies are stretched for longer contexts.
    pub scaling: RotaryScaling,
}

/// `rope_type` and its parameters, all finite and above 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RotaryScaling {
    /// `default`: not at all.
    Unscaled,
    /// `linear`: all frequencies are divided.
    Linear {
        /// By this.
        factor: f64,
    },
    /// `llama3`: low frequencies are divided, high ones kept, those between interpolated.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_positions / low_frequency_factor` are low frequencies.
        low_frequency_factor: f64,
        /// Wavelengths below `original_positions / high_frequency_factor` are high ones; above `low_frequency_factor`.
        high_frequency_factor: f64,
        /// The context that the model was first trained for, in tokens.
        original_positions: f64,
    },
}

const SPELLINGS: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// Reads whichever spelling is there; where both are, they must agree, because libraries differ in which one they follow.
pub(super) fn read(document: &Document) -> Result<Rotary, ConfigError> {
    let mut theta = document.set("rope_theta").map(|_| document.positive("rope_theta", THETA)).transpose()?;
    let mut scaling = None;
    for name in SPELLINGS {
        let Some(value) = document.set(name) else { continue };
        let parameters = value.as_object().ok_or_else(|| document.refusal(name, value, "an object is expected"))?;
        if let Some(inner) = parameters.get("rope_theta") {
            agree(document, name, value, &mut theta, document.positive_value(name, inner)?)?;
        }
        agree(document, name, value, &mut scaling, Reader { document, name, value, parameters }.scaling()?)?;
    }
    Ok(Rotary { theta: theta.unwrap_or(THETA), scaling: scaling.unwrap_or(RotaryScaling::Unscaled) })
}

fn agree<T: PartialEq>(
    document: &Document,
    name: &str,
    value: &Value,
    known: &mut Option<T>,
    found: T,
) -> Result<(), ConfigError> {
    if known.as_ref().is_some_and(|known| *known != found) {
        return Err(document.refusal(name, value, "it disagrees with what config.json says elsewhere of the rotary embedding"));
    }
    *known = Some(found);
    Ok(())
}

struct Reader<'a> {
    document: &'a Document,
    name: &'static str,
    value: &'a Value,
    parameters: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn scaling(&self) -> Result<RotaryScaling, ConfigError> {
        match self.kind()? {
            "default" => {
                self.only(&[])?;
                Ok(RotaryScaling::Unscaled)
            }
            "linear" => {
                self.only(&["factor"])?;
                Ok(RotaryScaling::Linear { factor: self.number("factor")? })
            }
            "llama3" => self.llama3(),
            _ => Err(self.refusal("only the rope types default, linear and llama3 are computed")),
        }
    }

    fn llama3(&self) -> Result<RotaryScaling, ConfigError> {
        self.only(&["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])?;
        let (low, high) = (self.number("low_freq_factor")?, self.number("high_freq_factor")?);
        if high <= low {
            return Err(self.refusal("high_freq_factor must be above low_freq_factor"));
        }
        Ok(RotaryScaling::Llama3 {
            factor: self.number("factor")?,
            low_frequency_factor: low,
            high_frequency_factor: high,
            original_positions: self.number("original_max_position_embeddings")?,
        })
    }

    /// `rope_type`, once spelled `type`.
    fn kind(&self) -> Result<&str, ConfigError> {
        let named = ["rope_type", "type"].map(|key| self.parameters.get(key));
        let text = |value: &Value| value == named[0].or(named[1]).unwrap_or(&Value::Null);
        match named[0].or(named[1]).and_then(Value::as_str) {
            Some(kind) if named.into_iter().flatten().all(text) => Ok(kind),
            None if named == [None, None] && self.name == "rope_parameters" => Ok("default"),
            _ => Err(self.refusal("rope_type must name one type")),
        }
    }

    fn only(&self, keys: &[&str]) -> Result<(), ConfigError> {
        let known = |key: &String| ["rope_type", "type", "rope_theta"].contains(&key.as_str()) || keys.contains(&key.as_str());
        let reason = "it holds a parameter that its rope_type does not have";
        if self.parameters.keys().all(known) { Ok(()) } else { Err(self.refusal(reason)) }
    }

    fn number(&self, key: &str) -> Result<f64, ConfigError> {
        let number = self.parameters.get(key).and_then(Value::as_f64).filter(|number| number.is_finite() && *number > 0.0);
        number.ok_or_else(|| self.refusal("each parameter of its rope_type must be there, positive and finite"))
    }

    fn refusal(&self, reason: &'static str) -> ConfigError {
        self.document.refusal(self.name, self.value, reason)
    }
}
