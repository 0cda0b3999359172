//! Chat templates, rendered as transformers renders them.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use grail_environments::{Message, ThinkingMode, chat};
use serde_json::Value;

use crate::report::{Case, Cases, Report, brief, json};

/// The configuration whose special tokens the vectors were made with.
const CONFIGURATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/checkpoint-a/tokenizer_config.json");

/// Checks `env/chat_templates.json`.
pub fn run(report: &mut Report) {
    report.check("env/chat_templates.json", chat_templates);
}

fn chat_templates(path: &Path, cases: &mut Cases) {
    let document = json(path);
    let base = json(Path::new(CONFIGURATION));
    for case in document["cases"].as_array().into_iter().flatten() {
        cases.case(&case["name"], || chat_template(case, &document["messages"], base.clone()));
    }
}

fn chat_template(case: &Value, messages: &Value, mut config: Value) -> Case {
    for (name, value) in case["tokenizer_config_overrides"].as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    if let Some(template) = case.get("tokenizer_config_chat_template") {
        config["chat_template"] = template.clone();
    }
    let file = match case.get("chat_template_jinja_base64").and_then(Value::as_str) {
        Some(encoded) => Some(STANDARD.decode(encoded).map_err(|error| error.to_string())?),
        None => None,
    };
    let messages = case.get("messages").unwrap_or(messages);
    let messages: Vec<Message> = messages.as_array().into_iter().flatten().map(message).collect();
    let mode: ThinkingMode = case["thinking_mode"].as_str().unwrap_or("instructed").parse().map_err(|_| "unknown mode")?;
    let rendered = chat::render(config.to_string().as_bytes(), file.as_deref(), &messages, mode);
    match (rendered, case["rendered"].as_str(), case["error"].as_str()) {
        (Ok(got), Some(want), None) if got == want => Ok(()),
        (Ok(got), Some(want), None) => Err(format!("got {}, want {}", brief(&got), brief(&want))),
        (Err(_), None, Some(_)) => Ok(()),
        (Err(error), Some(_), None) => Err(format!("refused: {error}")),
        (Ok(got), None, Some(want)) => Err(format!("got {}, want an error ({want})", brief(&got))),
        _ => Err("the case says neither what is rendered nor that it is an error".to_owned()),
    }
}

fn message(message: &Value) -> Message {
    let text = |name: &str| message[name].as_str().unwrap_or_default();
    Message::new(text("role"), text("content"))
}
