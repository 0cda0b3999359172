//! From one JSON text to Python's form of it, losing nothing: `json.dumps(json.loads(text))`. Needed where a foreign file
//! may hold integers beyond 64 bits or non-finite floats, which a [`serde_json::Value`] cannot carry.

use super::{Style, write_float, write_text};

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 64;

/// A text is not JSON as Python reads it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The JSON text is wrong at byte {position}: {expected}.")]
pub struct JsonTextError {
    /// Offset in bytes.
    pub position: usize,
    /// What should have been there.
    pub expected: &'static str,
}

/// The same document in the given style. Numbers with a point or an exponent are floats, all others integers of any size;
/// of repeated keys the last one counts.
///
/// # Errors
/// [`JsonTextError`] with the place where the text stops being JSON, or is nested deeper than 64 levels.
pub fn rewrite(text: &str, style: Style) -> Result<String, JsonTextError> {
    let mut reader = Reader { text, position: 0, style };
    let mut output = String::with_capacity(text.len());
    reader.value(&mut output, 0)?;
    reader.blanks();
    if reader.position == text.len() { Ok(output) } else { reader.wrong("nothing may follow the document") }
}

struct Reader<'a> {
    text: &'a str,
    position: usize,
    style: Style,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.position..]
    }

    fn wrong<T>(&self, expected: &'static str) -> Result<T, JsonTextError> {
        Err(JsonTextError { position: self.position, expected })
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.position += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.position += token.len();
        }
        found
    }

    fn value(&mut self, output: &mut String, depth: usize) -> Result<(), JsonTextError> {
        if depth > MAX_DEPTH {
            return self.wrong("nested too deeply");
        }
        self.blanks();
        if let Some(word) = ["null", "true", "false", "NaN", "Infinity", "-Infinity"].into_iter().find(|word| self.take(word)) {
            output.push_str(word);
            return Ok(());
        }
        match self.rest().bytes().next() {
            Some(b'{') => self.object(output, depth),
            Some(b'[') => self.list(output, depth),
            Some(b'"') => {
                let text = self.string()?;
                write_text(&text, output);
                Ok(())
            }
            _ => self.number(output),
        }
    }

    fn list(&mut self, output: &mut String, depth: usize) -> Result<(), JsonTextError> {
        self.position += 1;
        output.push('[');
        self.blanks();
        let mut first = true;
        while !self.take("]") {
            if !first {
                if !self.take(",") {
                    return self.wrong("a comma or the end of the list is due");
                }
                output.push_str(self.style.comma());
            }
            first = false;
            self.value(output, depth + 1)?;
            self.blanks();
        }
        output.push(']');
        Ok(())
    }

    fn object(&mut self, output: &mut String, depth: usize) -> Result<(), JsonTextError> {
        self.position += 1;
        let mut entries: Vec<(String, String)> = Vec::new();
        self.blanks();
        while !self.take("}") {
            if !entries.is_empty() && !self.take(",") {
                return self.wrong("a comma or the end of the object is due");
            }
            self.entry(&mut entries, depth)?;
            self.blanks();
        }
        self.write_entries(entries, output);
        Ok(())
    }

    fn entry(&mut self, entries: &mut Vec<(String, String)>, depth: usize) -> Result<(), JsonTextError> {
        self.blanks();
        let key = self.string()?;
        self.blanks();
        if !self.take(":") {
            return self.wrong("a colon is due");
        }
        let mut value = String::new();
        self.value(&mut value, depth + 1)?;
        match entries.iter_mut().find(|(known, _)| *known == key) {
            Some(entry) => entry.1 = value,
            None => entries.push((key, value)),
        }
        Ok(())
    }

    fn write_entries(&self, mut entries: Vec<(String, String)>, output: &mut String) {
        if self.style.sorted {
            entries.sort_unstable();
        }
        output.push('{');
        for (index, (key, value)) in entries.into_iter().enumerate() {
            if index > 0 {
                output.push_str(self.style.comma());
            }
            write_text(&key, output);
            output.push_str(self.style.colon());
            output.push_str(&value);
        }
        output.push('}');
    }

    fn string(&mut self) -> Result<String, JsonTextError> {
        if !self.rest().starts_with('"') {
            return self.wrong("a string is due");
        }
        let mut escaped = false;
        let end = self.rest().bytes().skip(1).position(|byte| {
            let closes = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            closes
        });
        let Some(length) = end.map(|end| end + 2) else { return self.wrong("the string does not end") };
        let Ok(text) = serde_json::from_str(&self.rest()[..length]) else { return self.wrong("the string is not legal") };
        self.position += length;
        Ok(text)
    }

    fn number(&mut self, output: &mut String) -> Result<(), JsonTextError> {
        let is_number = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E');
        let length = self.rest().bytes().take_while(|byte| is_number(*byte)).count();
        let lexeme = &self.rest()[..length];
        let Ok(number) = serde_json::from_str::<serde_json::Number>(lexeme) else { return self.wrong("a value is due") };
        if lexeme.contains(['.', 'e', 'E']) {
            write_float(number.as_f64().unwrap_or(f64::NAN), output);
        } else {
            output.push_str(if lexeme == "-0" { "0" } else { lexeme });
        }
        self.position += length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::python_json::{CANONICAL, DEFAULT, to_string};

    #[test]
    fn keeps_what_a_value_would_lose() {
        let text = r#" {"b": [1180591620717411303424, -0, 1e16, NaN], "a": {"x": "\u00e9\"", "x": []} } "#;
        assert_eq!(rewrite(text, CANONICAL).unwrap(), r#"{"a":{"x":[]},"b":[1180591620717411303424,0,1e+16,NaN]}"#);
    }

    #[test]
    fn refuses_what_is_not_json() {
        for text in ["", "[1,", "[1 2]", "{\"a\" 1}", "{,}", "[1]x", "\"a", "01", "é", &"[".repeat(100)] {
            assert!(rewrite(text, CANONICAL).is_err(), "{text}");
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec((".{0,4}", inner), 0..5)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_the_writer_of_values(value in values()) {
            for style in [CANONICAL, DEFAULT] {
                prop_assert_eq!(rewrite(&value.to_string(), style).unwrap(), to_string(&value, style));
            }
        }
    }
}
