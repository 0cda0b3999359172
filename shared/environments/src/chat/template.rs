//! Rendering a chat template as transformers does: its Jinja flags, functions, filters and variables.
//!
//! The template comes from a checkpoint, so it gets no loader, a bounded number of instructions and a bounded output. The
//! engine has no file, network or attribute access to leave it by.

use std::collections::BTreeMap;
use std::io::Write;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, filters};

use super::Message;
use super::config::SpecialTokens;
use crate::ThinkingMode;

const NAME: &str = "chat_template";
/// Instructions that one rendering may take. A real template takes some thousand for a handful of messages.
const FUEL: u64 = 2_000_000;
/// Largest template and largest rendered prompt, in bytes.
const MAX_BYTES: usize = 4 << 20;

/// A compiled template with its special-token variables.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    variables: BTreeMap<String, Value>,
}

impl ChatTemplate {
    /// Compiles a template, or says what is wrong with it.
    pub(super) fn new(source: String, tokens: &SpecialTokens) -> Result<Self, String> {
        if source.len() > MAX_BYTES {
            return Err(format!("it has {} bytes, more than {MAX_BYTES}", source.len()));
        }
        let mut environment = Environment::new();
        environment.set_syntax(syntax()?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source).map_err(|error| sentence(&error))?;
        Ok(Self { environment, variables: variables(tokens) })
    }

    /// Renders a conversation with `add_generation_prompt`, or says why not.
    pub(super) fn render<'a>(&self, messages: impl Iterator<Item = &'a Message>, mode: ThinkingMode) -> Result<String, String> {
        let mut variables = self.variables.clone();
        variables.insert("messages".into(), messages.map(message_value).collect());
        variables.insert("add_generation_prompt".into(), true.into());
        if mode.enables_thinking() {
            variables.insert("enable_thinking".into(), true.into());
        }
        let template = self.environment.get_template(NAME).map_err(|error| sentence(&error))?;
        let mut output = Bounded(Vec::new());
        template.render_captured_to(Value::from(variables), &mut output).map_err(|error| sentence(&error))?;
        String::from_utf8(output.0).map_err(|error| error.to_string())
    }
}

/// Jinja's own syntax with the two flags that transformers sets.
fn syntax() -> Result<SyntaxConfig, String> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    syntax.map_err(|error| sentence(&error))
}

/// Every variable that does not depend on the conversation. transformers passes tools and documents even where there are
/// none, and templates ask `tools is not none`.
fn variables(tokens: &SpecialTokens) -> BTreeMap<String, Value> {
    let mut variables: BTreeMap<String, Value> =
        tokens.named.iter().map(|(name, text)| ((*name).to_owned(), Value::from(text.as_str()))).collect();
    if !tokens.additional.is_empty() {
        variables.insert("additional_special_tokens".into(), tokens.additional.iter().map(String::as_str).collect());
    }
    variables.insert("tools".into(), Value::from(()));
    variables.insert("documents".into(), Value::from(()));
    variables
}

fn message_value(message: &Message) -> Value {
    [("role", message.role.as_str()), ("content", message.content.as_str())]
        .into_iter()
        .map(|(name, text)| (name.to_owned(), Value::from(text)))
        .collect::<BTreeMap<String, Value>>()
        .into()
}

/// An error with its causes, in one line.
fn sentence(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The local date and time in Python's format language. It needs the local calendar, which the protocol's clock does not
/// know; a template that prints it makes prompts that differ from day to day on both sides alike.
fn strftime_now(format: &str) -> Result<String, Error> {
    let items: Vec<_> = chrono::format::StrftimeItems::new(format).collect();
    if items.contains(&chrono::format::Item::Error) {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know the format `{format}`")));
    }
    Ok(chrono::Local::now().format_with_items(items.iter()).to_string())
}

/// transformers' `tojson`: Python's separators and no HTML escapes, unlike Jinja's own.
fn tojson(value: &Value, indent: Option<Value>, arguments: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => arguments.get("indent")?,
    };
    if arguments.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson with ensure_ascii=true is not supported"));
    }
    arguments.assert_all_used()?;
    let escaped = filters::tojson(value, indent, Kwargs::from_iter(Vec::<(String, Value)>::new()))?;
    Ok(without_html_escapes(escaped.as_str().unwrap_or_default()))
}

/// Takes back the four escapes with which the engine makes JSON safe inside HTML.
fn without_html_escapes(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let escapes = [("\\u003c", "<"), ("\\u003e", ">"), ("\\u0026", "&"), ("\\u0027", "'")];
        let escape = &rest[at..];
        let taken = match escapes.iter().find(|(escaped, _)| escape.starts_with(escaped)) {
            Some((escaped, character)) => {
                plain.push_str(character);
                escaped.len()
            }
            // Any other escape is two characters at least; an escaped backslash must not begin the next one.
            None => {
                let taken = escape.chars().take(2).map(char::len_utf8).sum();
                plain.push_str(&escape[..taken]);
                taken
            }
        };
        rest = &escape[taken..];
    }
    plain.push_str(rest);
    plain
}

/// Collects output up to [`MAX_BYTES`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_BYTES {
            return Err(std::io::Error::other(format!("the prompt is longer than {MAX_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message], mode: ThinkingMode) -> Result<String, String> {
        let tokens = SpecialTokens { named: vec![("bos_token", "<s>".into())], additional: vec!["<a>".into()] };
        ChatTemplate::new(source.to_owned(), &tokens)?.render(messages.iter(), mode)
    }

    fn user(text: &str) -> Result<String, String> {
        render(text, &[Message::new("user", "a <b> & 'c' \\u003c é\n\"q\"")], ThinkingMode::Instructed)
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_trims_them() {
        assert_eq!(user("x\n  {% if true %}\ny\n  {% endif %}\nz\n").unwrap(), "x\ny\nz");
        assert_eq!(user("{%- for m in messages -%}\n {{- m.role }} {% endfor %}").unwrap(), "user ");
    }

    #[test]
    fn json_is_pythons() {
        assert_eq!(user("{{ messages[0].content | tojson }}").unwrap(), r#""a <b> & 'c' \\u003c é\n\"q\"""#);
        assert_eq!(user("{{ {'b': [1, none, true], 'a': {}} | tojson }}").unwrap(), r#"{"b": [1, null, true], "a": {}}"#);
        assert_eq!(user("{{ [1] | tojson(indent=2) }}").unwrap(), "[\n  1\n]");
    }

    #[test]
    fn variables_are_those_of_transformers() {
        let text =
            "{{ bos_token }}{{ additional_special_tokens[0] }}{{ eos_token is defined }}{% if tools is none %}N{% endif %}";
        assert_eq!(user(text).unwrap().to_lowercase(), "<s><a>falsen");
        let thinking = "{% if enable_thinking is defined and enable_thinking is true %}T{% else %}-{% endif %}";
        assert_eq!(render(thinking, &[], ThinkingMode::Instructed).unwrap(), "-");
        assert_eq!(render(thinking, &[], ThinkingMode::Native).unwrap(), "T");
    }

    #[test]
    fn templates_can_refuse_and_tell_the_date() {
        assert!(user("{{ raise_exception('roles must alternate') }}").unwrap_err().contains("roles must alternate"));
        let year = user("{{ strftime_now('%Y-%m-%d') }}").unwrap();
        assert!(year.len() == 10 && year.starts_with("20"), "{year}");
        assert!(user("{{ strftime_now('%!') }}").is_err());
    }

    #[test]
    fn templates_are_bounded() {
        for (text, why) in [
            ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "fuel"),
            ("{% for a in range(5000) %}{{ 'xxxxxxxxxx' * 100 }}{% endfor %}", "longer than"),
            ("{% include 'other' %}", "other"),
            ("{% if %}", "syntax"),
        ] {
            let error = user(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
