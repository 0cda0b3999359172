//! Templates that transformers rendered, and whether we render the same.
//!
//! `data/chat_cases.jsonl` is made by `scripts/chat_cases.py`. What transformers refuses must be refused; what it renders
//! must be rendered to the byte, or be known to be refused: nothing may ever be rendered differently.

use serde_json::Value;

use super::{Template, Variable};

const CASES: &str = include_str!("../../data/chat_cases.jsonl");

fn variables(messages: &Value) -> Vec<(String, Variable)> {
    let text = |value: &Value| Variable::Text(value.as_str().unwrap().to_owned());
    let message =
        |message: &Value| Variable::Dict(["role", "content"].map(|name| (name.to_owned(), text(&message[name]))).to_vec());
    let messages = messages.as_array().unwrap().iter().map(message).collect();
    [
        ("messages", Variable::List(messages)),
        ("tools", Variable::None),
        ("documents", Variable::None),
        ("add_generation_prompt", Variable::Bool(true)),
        ("eos_token", Variable::Text("<|im_end|>".into())),
        ("pad_token", Variable::Text("<|endoftext|>".into())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

#[test]
fn templates_render_as_transformers_renders_them_or_not_at_all() {
    let mut lines = CASES.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let variables = variables(&lines.next().unwrap()["messages"]);
    let (mut equal, mut wrong) = (0, Vec::new());
    for case in lines {
        let template = case["template"].as_str().unwrap();
        let ours = Template::new(template).and_then(|template| template.render(&variables));
        let expected = case["rendered"].as_str().filter(|_| case["refused"] != true);
        match (&ours, expected) {
            (Ok(ours), Some(expected)) if ours == expected => equal += 1,
            (Err(_), None) => {}
            _ => wrong.push(format!("{template:?}: {ours:?}, expected {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(equal > 1000, "only {equal} cases are rendered");
}

#[test]
fn deep_templates_are_refused_and_do_not_overflow_a_small_stack() {
    let deep = [
        format!("{{{{ {}1{} }}}}", "(".repeat(500), ")".repeat(500)),
        format!("{{{{ {}1{} }}}}", "[".repeat(500), "]".repeat(500)),
        format!("{{{{ {} }}}}", vec!["1"; 500].join(" + ")),
        format!("{{{{ {}1 }}}}", "not ".repeat(500)),
        format!("{{{{ 1{} }}}}", "|string".repeat(500)),
        format!("{}{}", "{% if 1 %}".repeat(500), "{% endif %}".repeat(500)),
        "{% set ns = namespace(a=[]) %}{% for i in range(5000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}".to_owned(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
        "{% set ns = namespace(a=[]) %}{% for i in range(5000) %}{% set ns.a = ns.a|map('string') %}{% endfor %}".to_owned(),
    ];
    // As deep as is allowed: brackets within chains of operators.
    let allowed = (0..19).fold("1".to_owned(), |inner, _| format!("({inner}){}", " + 1".repeat(40)));
    let run = move || {
        for template in deep {
            let refused = Template::new(&template).and_then(|template| template.render(&[])).unwrap_err();
            assert!(
                refused.contains("deep") || refused.contains("in a row") || refused.contains("around each other"),
                "{refused}"
            );
        }
        assert_eq!(Template::new(&format!("{{{{ {allowed} }}}}")).unwrap().render(&[]).unwrap(), "761");
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
}

#[test]
fn endless_and_huge_templates_are_refused() {
    for (template, why) in [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for a in range(99999) %}{{ 'x' * 100 }}{% endfor %}", "longer than"),
        ("{{ 'x' * 10 ** 12 }}", "longer than"),
        ("{{ [1] * 10 ** 12 }}", "items"),
        ("{{ 'a\\nb'|indent(10 ** 9) }}", "longer than"),
        ("{{ 'x'.center(10 ** 9) }}", "longer than"),
        ("{{ '%999999d' % 1 }}", "not supported"),
        ("{{ range(10 ** 9)|list }}", "range"),
        (
            "{% set ns = namespace(a='x' * 1000) %}{% for a in range(9999) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
            "longer than",
        ),
    ] {
        let refused = Template::new(template).and_then(|template| template.render(&[])).unwrap_err();
        assert!(refused.contains(why), "{template}: {refused}");
    }
}
