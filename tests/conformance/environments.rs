//! Vectors of environments: tasks, prompts, reading answers and rewards.

use std::path::Path;

use grail_environments::{ChatTokenizer, Environment, EnvironmentId, Message, Prompt, ThinkingMode, gsm8k, math, row_index};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::report::{Case, Cases, Report, bytes, json, json_lines};

mod math_rules;

const REWARD_TOLERANCE: f64 = 1e-12;

/// Checks every file of `env/` that concerns environments.
pub fn run(report: &mut Report) {
    report.check("env/protocol_tags.json", protocol_tags);
    report.check("env/system_prompt.instructed.txt", |path, cases| {
        cases.equal("bytes", ThinkingMode::Instructed.system_prompt().as_bytes(), bytes(path).as_slice());
    });
    report.check("env/system_prompt.native.txt", |path, cases| {
        cases.equal("bytes", ThinkingMode::Native.system_prompt().as_bytes(), bytes(path).as_slice());
    });
    report.check("env/chat_template.instructed.jinja", |path, cases| {
        let installed = ThinkingMode::Instructed.installed_template().unwrap_or_default();
        cases.equal("bytes", installed.as_bytes(), bytes(path).as_slice());
    });
    report.check("env/chat_template.native-example.jinja", |path, cases| {
        cases.case("compiles and renders", || {
            let chat = chat(folder(path), ThinkingMode::Native)?;
            chat.prompt_ids("Why?", ThinkingMode::Native).map(drop).map_err(said)
        });
    });
    report.check("env/tokenizer.json", |path, cases| {
        cases.case("loads and decodes what it encodes", || {
            let chat = chat(folder(path), ThinkingMode::Instructed)?;
            let text = "Tom has 12 apples, caf\u{e9} \u{1F600}.\n<|im_end|>";
            same("text", chat.encode(text).and_then(|ids| chat.decode(&ids)).map_err(said)?.as_str(), text)
        });
    });
    report.check("env/tokenizer_facts.json", tokenizer_facts);
    report.check("env/real_size_splits.json", real_size_splits);
    report.check("env/dataset_rows.json", dataset_rows);
    report.check("env/dataset_splits_expected.json", dataset_splits);
    report.check("env/task_index.jsonl", task_index);
    report.check("env/task_selection_misc.json", task_selection);
    report.check("env/env_params_cases.json", env_params);
    report.check("env/prompts.jsonl", prompts);
    report.check("env/gsm8k_golden.jsonl", |path, cases| {
        for case in json_lines(path) {
            cases.equal(&case["text"], gsm8k::gold(text(&case, "text")).as_str(), text(&case, "golden"));
        }
    });
    report.check("env/gsm8k_normalize.jsonl", |path, cases| {
        for case in json_lines(path) {
            cases.equal(&case["s"], gsm8k::normalise(text(&case, "s")).as_str(), text(&case, "out"));
        }
    });
    report.check("env/gsm8k_answers.jsonl", gsm8k_answers);
    math_rules::check(report);
    skip_later_rules(report);
}

fn skip_later_rules(report: &mut Report) {
    for file in ["code_rows.json", "code_execution.jsonl"] {
        report.skip(&format!("env/{file}"), "the code environments are not built");
    }
    for file in ["sat_problems.jsonl", "sat_rewards.jsonl"] {
        report.skip(&format!("env/{file}"), "sat is not built (optional)");
    }
    report.skip("env/copycat.jsonl", "detecting copycats belongs to a validator, which is not built");
    report.skip("env/weights.jsonl", "setting weights belongs to a validator, which is not built");
    report.skip("env/benchmark_projection.json", "the benchmark's projection is not built");
    report.skip("env/log_lines.json", "the log lines are checked where they are written");
}

fn protocol_tags(path: &Path, cases: &mut Cases) {
    for (name, want) in json(path).as_object().into_iter().flatten() {
        let Ok(mode) = name.parse::<ThinkingMode>() else {
            cases.case(name, || Err("the mode is unknown".into()));
            continue;
        };
        let (tags, prompt) = (mode.tags(), mode.system_prompt());
        let template = mode.installed_template();
        let facts = json!({
            "thinking_open": tags.thinking_open,
            "thinking_close": tags.thinking_close,
            "solution_open": tags.solution_open,
            "solution_close": tags.solution_close,
            "use_custom_template": template.is_some(),
            "enable_thinking": mode.enables_thinking(),
            "system_prompt_file": format!("system_prompt.{mode}.txt"),
            "system_prompt_sha256": sha256(prompt),
            "system_prompt_chars": prompt.chars().count(),
            "chat_template_sha256": template.map(sha256),
        });
        for (fact, want) in want.as_object().into_iter().flatten() {
            cases.equal(format!("{name} {fact}"), &facts[fact], want);
        }
    }
}

fn tokenizer_facts(path: &Path, cases: &mut Cases) {
    let facts = json(path);
    cases.case("eos, padding and size", || {
        let chat = chat(folder(path), ThinkingMode::Instructed)?;
        same("eos_token_id", u64::from(chat.eos_token_id()), number(&facts, "eos_token_id"))?;
        if let Some(pad) = facts["pad_token"].as_str() {
            same("pad_token_id", chat.token_id(pad).map(u64::from), facts["pad_token_id"].as_u64())?;
        }
        same("vocab_size", Some(chat.vocab_size() as u64), facts["vocab_size"].as_u64().or(Some(chat.vocab_size() as u64)))
    });
}

fn real_size_splits(path: &Path, cases: &mut Cases) {
    for (name, indices) in json(path).as_object().into_iter().flatten() {
        if name == "math_val_indices_per_subset" {
            cases.case(name, || math_rules::real_size_splits(&json(path)["math_subset_sizes_assumed"], indices));
        }
        // Lists of other environments stand in the same file.
        let Some(rows) = name.strip_prefix("gsm8k_val_indices_of_").and_then(|rows| rows.parse().ok()) else { continue };
        let got = gsm8k::validation_indices(rows);
        let want: Vec<u64> = indices.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        cases.equal(name, got.into_iter().map(|index| index as u64).collect::<Vec<_>>(), want);
    }
}

fn dataset_rows(path: &Path, cases: &mut Cases) {
    cases.case("gsm8k rows are read from JSON lines", || {
        let data = written(path)?;
        let dataset = grail_environments::Dataset::open(data.path()).map_err(said)?;
        for source in gsm8k_sources(path) {
            let split = match text(&source, "split") {
                "train" => grail_environments::dataset::SourceSplit::Train,
                _ => grail_environments::dataset::SourceSplit::Test,
            };
            let rows = dataset.rows(split, ["answer", "question"]).map_err(said)?;
            let want: Vec<[&str; 2]> =
                array(&source["rows"]).iter().map(|row| [text(row, "answer"), text(row, "question")]).collect();
            same(split.as_str(), rows.iter().map(|row| [row[0].as_str(), row[1].as_str()]).collect::<Vec<_>>(), want)?;
        }
        Ok(())
    });
}

fn dataset_splits(path: &Path, cases: &mut Cases) {
    for (split, rows) in json(path)["math"].as_object().into_iter().flatten() {
        cases.case(format!("math {split}"), || math_rules::split(folder(path), split, array(rows)));
    }
    for (split, rows) in json(path)["gsm8k"].as_object().into_iter().flatten() {
        cases.case(format!("gsm8k {split}"), || {
            let environment = vector_environment(folder(path), "gsm8k", &json!({"split": split}))?;
            let want: Vec<&str> = array(rows).iter().map(|row| row.as_str().unwrap_or_else(|| text(row, "question"))).collect();
            let got: Vec<String> =
                (0..environment.size()).map(|row| environment.task_by_id(&format!("{row}")).user_message).collect();
            same("questions", got.iter().map(String::as_str).collect::<Vec<_>>(), want)
        });
    }
}

fn task_index(path: &Path, cases: &mut Cases) {
    // The sizes of the real data sets. math shares gsm8k's rule; the other environments' rule is not built.
    let sizes = [("gsm8k/train", 7223), ("gsm8k/val", 250), ("gsm8k/test", 1319), ("math/train", 7000), ("math/val", 500)];
    for case in json_lines(path) {
        for (name, rows) in sizes {
            let Some(want) = case[name].as_u64() else { continue };
            cases.equal(format!("{name} {}", case["seed"]), row_index(seed(&case), rows) as u64, want);
        }
    }
}

fn task_selection(path: &Path, cases: &mut Cases) {
    for case in array(&json(path)) {
        // Filters by level and subject are arguments that the protocol never gives.
        if case["level"].is_null() && case["subject"].is_null() && case["id"].is_string() && case["seed"].is_i64() {
            cases.case(format!("math seed {}", case["seed"]), || math_rules::chosen(folder(path), case));
        }
        let Some(want) = case["gsm8k_id"].as_str() else { continue };
        cases.case(&case["task_id"], || {
            let environment = vector_environment(folder(path), "gsm8k", &json!({}))?;
            same("id", environment.task_by_id(text(case, "task_id")).id.as_str(), want)
        });
    }
}

fn env_params(path: &Path, cases: &mut Cases) {
    for case in array(&json(path)) {
        let id = text(case, "env_id");
        cases.case(format!("{id} {}", case["env_params"]), || {
            let split = id.parse::<EnvironmentId>().and_then(|id| id.split(&case["env_params"]));
            same("accepted", split.is_ok(), case["ok"] == true)?;
            let Some(want) = case["sha256_ids"].as_str() else { return Ok(()) };
            // Prompts of the environments that are not built cannot be made; their parameters are judged all the same.
            if !is_built(id) {
                return Ok(());
            }
            let mode = mode(case)?;
            let environment = vector_environment(folder(path), id, &case["env_params"])?;
            let prompt = Prompt::of_seed(&environment, &chat(folder(path), mode)?, mode, seed(case)).map_err(said)?;
            same("tokens", prompt.ids.len() as u64, case["n_tokens"].as_u64().unwrap_or(prompt.ids.len() as u64))?;
            same("digest of the ids", sha256(&format!("{:?}", prompt.ids)).as_str(), want)
        });
    }
}

fn prompts(path: &Path, cases: &mut Cases) {
    let chats = ThinkingMode::ALL.map(|mode| (mode, chat(folder(path), mode)));
    for case in json_lines(path) {
        let name = format!("{} {} {} {}", case["env_id"], case["env_params"], case["thinking_mode"], case["seed"]);
        cases.case(name, || {
            let mode = mode(&case)?;
            let chat = chats.iter().find(|(of, _)| *of == mode).and_then(|(_, chat)| chat.as_ref().ok());
            prompt(folder(path), chat.ok_or("its tokenizer or template is not in the folder")?, mode, &case)
        });
    }
}

fn prompt(folder: &Path, chat: &ChatTokenizer, mode: ThinkingMode, case: &Value) -> Case {
    let messages: Vec<Message> =
        array(&case["messages"]).iter().map(|message| Message::new(text(message, "role"), text(message, "content"))).collect();
    let ids: Vec<u32> = array(&case["token_ids"]).iter().filter_map(|id| id.as_u64()?.try_into().ok()).collect();
    let rendered = chat.render(&messages, mode).map_err(said)?;
    same("rendered", rendered.as_str(), text(case, "rendered"))?;
    same("ids", &chat.encode(&rendered).map_err(said)?, &ids)?;
    same("decoded", chat.decode(&ids).map_err(said)?.as_str(), text(case, "rendered"))?;
    if let [_, user] = messages.as_slice() {
        same("ids from the user message", &chat.prompt_ids(&user.content, mode).map_err(said)?, &ids)?;
    }
    if !is_built(text(case, "env_id")) || !folder.join("dataset_rows.json").exists() {
        return Ok(());
    }
    let environment = vector_environment(folder, text(case, "env_id"), &case["env_params"])?;
    let prompt = Prompt::of_seed(&environment, chat, mode, seed(case)).map_err(said)?;
    if let Some(want) = case["task_meta"]["task_id"].as_str() {
        same("task id", prompt.task.id.as_str(), want)?;
    }
    same("ids from the seed", &prompt.ids, &ids)
}

fn gsm8k_answers(path: &Path, cases: &mut Cases) {
    for (line, case) in json_lines(path).iter().enumerate() {
        cases.case(format!("line {}", line + 1), || gsm8k_answer(case));
    }
}

fn gsm8k_answer(case: &Value) -> Case {
    let (completion, gold, mode) = (text(case, "completion"), text(case, "gold_field"), mode(case)?);
    let parsed = gsm8k::parse(completion, mode);
    let facts = json!({
        "answer_text": parsed.answer_text,
        "has_thinking": parsed.has_thinking,
        "has_answer": parsed.has_answer,
        "trailing_after_answer": parsed.trailing_after_answer,
        "is_numeric_only": parsed.is_numeric_only,
    });
    for (fact, want) in case["parsed"].as_object().into_iter().flatten() {
        same(fact, &facts[fact], want)?;
    }
    let evaluation = gsm8k::evaluate(gold, completion, mode);
    same("success", evaluation.success, case["success"] == true)?;
    math_rules::components(&evaluation, case)?;
    if let Some(want) = case["gold_answer"].as_str() {
        same("gold", gsm8k::normalise(&gsm8k::gold(gold)), gsm8k::normalise(want))?;
    }
    if let Some(want) = case["pred_answer"].as_str() {
        same("prediction", gsm8k::normalise(&parsed.answer_text), gsm8k::normalise(want))?;
    }
    Ok(())
}

/// The tokenizer of the vectors with a mode's template; its configuration is what `tokenizer_facts.json` says.
fn chat(folder: &Path, mode: ThinkingMode) -> Result<ChatTokenizer, String> {
    let facts_path = folder.join("tokenizer_facts.json");
    let facts = if facts_path.exists() { json(&facts_path) } else { json!({"eos_token": "<|im_end|>"}) };
    let config = json!({"eos_token": facts["eos_token"], "pad_token": facts["pad_token"]});
    let template = match mode {
        ThinkingMode::Instructed => "chat_template.instructed.jinja",
        ThinkingMode::Native => "chat_template.native-example.jinja",
    };
    let file = |name: &str| std::fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"));
    ChatTokenizer::from_files(&file("tokenizer.json")?, config.to_string().as_bytes(), Some(&file(template)?)).map_err(said)
}

fn is_built(id: &str) -> bool {
    EnvironmentId::BUILT.iter().any(|built| built.as_str() == id)
}

/// An environment over the raw rows of the vectors, or over invented ones where they are missing.
fn vector_environment(folder: &Path, id: &str, env_params: &Value) -> Result<Environment, String> {
    let data = written(&folder.join("dataset_rows.json"))?;
    Environment::open(id, env_params, data.path()).map_err(said)
}

/// A folder in the data sets' layout with the gsm8k and math rows of `dataset_rows.json`.
fn written(path: &Path) -> Result<tempfile::TempDir, String> {
    let data = tempfile::tempdir().map_err(said)?;
    let sources = if path.exists() { gsm8k_sources(path) } else { invented_sources() };
    for source in sources {
        write_rows(data.path(), &source)?;
    }
    if path.exists() {
        math_rules::write(path, &data.path().join("math"))?;
    }
    Ok(data)
}

/// A source's rows as JSON lines, in the file of its split.
fn write_rows(folder: &Path, source: &Value) -> Case {
    let lines: String = array(&source["rows"]).iter().map(|row| format!("{row}\n")).collect();
    std::fs::create_dir_all(folder).map_err(said)?;
    std::fs::write(folder.join(format!("{}.jsonl", text(source, "split"))), lines).map_err(said)
}

fn gsm8k_sources(path: &Path) -> Vec<Value> {
    array(&json(path)).iter().filter(|source| text(source, "dataset").ends_with("gsm8k")).cloned().collect()
}

fn invented_sources() -> Vec<Value> {
    let row = |row: usize| json!({"question": format!("Q{row}"), "answer": format!("#### {row}")});
    let rows: Vec<Value> = (0..300).map(row).collect();
    ["train", "test"].map(|split| json!({"split": split, "rows": rows})).to_vec()
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn mode(case: &Value) -> Result<ThinkingMode, String> {
    case["thinking_mode"].as_str().unwrap_or("instructed").parse().map_err(said)
}

/// Environment seeds are taken modulo 2^32.
fn seed(case: &Value) -> u32 {
    let seed = case["seed"].as_i64().unwrap_or_else(|| panic!("seed is no integer: {case}"));
    seed.rem_euclid(1 << 32) as u32
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("`{key}` is no text"))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("`{key}` is no number"))
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Case {
    let brief = crate::report::brief;
    if got == want { Ok(()) } else { Err(format!("{what}: got {}, want {}", brief(&got), brief(&want))) }
}

fn near(what: &str, got: f64, want: &Value) -> Case {
    let close = want.as_f64().is_some_and(|want| (got - want).abs() <= REWARD_TOLERANCE);
    if close { Ok(()) } else { Err(format!("{what}: got {got}, want {want}")) }
}
