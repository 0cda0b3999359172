//! Rendering a chat template as transformers does: which variables it sees.
//!
//! Everything about the language is in [`crate::jinja`].

use super::Message;
use super::config::SpecialTokens;
use crate::ThinkingMode;
use crate::jinja::{Template, Variable};

/// A compiled template with its special-token variables.
pub(super) struct ChatTemplate {
    template: Template,
    variables: Vec<(String, Variable)>,
}

impl ChatTemplate {
    /// Compiles a template, or says what is wrong with it.
    pub(super) fn new(source: &str, tokens: &SpecialTokens) -> Result<Self, String> {
        Ok(Self { template: Template::new(source)?, variables: variables(tokens) })
    }

    /// Renders a conversation with `add_generation_prompt`, or says why not.
    pub(super) fn render<'a>(&self, messages: impl Iterator<Item = &'a Message>, mode: ThinkingMode) -> Result<String, String> {
        let mut variables = self.variables.clone();
        variables.push(("messages".into(), Variable::List(messages.map(message).collect())));
        variables.push(("add_generation_prompt".into(), Variable::Bool(true)));
        if mode.enables_thinking() {
            variables.push(("enable_thinking".into(), Variable::Bool(true)));
        }
        self.template.render(&variables)
    }
}

/// Every variable that does not depend on the conversation. transformers passes tools and documents even where there are
/// none, and templates ask `tools is not none`.
fn variables(tokens: &SpecialTokens) -> Vec<(String, Variable)> {
    let text = |text: &String| Variable::Text(text.clone());
    let mut variables: Vec<_> = tokens.named.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    if !tokens.additional.is_empty() {
        variables.push(("additional_special_tokens".into(), Variable::List(tokens.additional.iter().map(text).collect())));
    }
    variables.push(("tools".into(), Variable::None));
    variables.push(("documents".into(), Variable::None));
    variables
}

fn message(message: &Message) -> Variable {
    let parts = [("role", &message.role), ("content", &message.content)];
    Variable::Dict(parts.map(|(name, text)| (name.to_owned(), Variable::Text(text.clone()))).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message], mode: ThinkingMode) -> Result<String, String> {
        let tokens = SpecialTokens { named: vec![("bos_token".into(), "<s>".into())], additional: vec!["<a>".into()] };
        ChatTemplate::new(source, &tokens)?.render(messages.iter(), mode)
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
            ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "steps"),
            ("{% for a in range(5000) %}{{ 'xxxxxxxxxx' * 100 }}{% endfor %}", "longer than"),
            ("{% include 'other' %}", "include"),
            ("{% if %}", "expected an expression"),
        ] {
            let error = user(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
