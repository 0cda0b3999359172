//! Input validation and the verdict over a miner: schema, structure, sampling values, order, gates, estimates.

use grail_protocol::generation_params::{GenerationParams, missing_metadata};
use grail_protocol::validation::Check;
use grail_protocol::validation::head::RowHead;
use grail_protocol::validation::pipeline::RowVerdict;
use grail_protocol::validation::schema::check_schema;
use grail_protocol::validation::soft::cutoff;
use grail_protocol::validation::structure::{Expected, FileHead, check_structure};
use grail_protocol::validation::verdict::{MinerAccount, WindowMetrics};
use serde_json::{Map, Value, json};

use super::values::{items, size, text};
use crate::report::{Cases, Report, json as document, json_lines};

pub fn run(report: &mut Report) {
    report.check("env/schema.jsonl", |path, cases| schemas(&json_lines(path), cases));
    report.check("env/file_structure.jsonl", |path, cases| structures(&json_lines(path), cases));
    report.check("env/generation_params.jsonl", |path, cases| sampling_values(&json_lines(path), cases));
    report.check("env/pipeline_order.json", |path, cases| order(&document(path), cases));
    report.check("env/soft_cutoffs.json", |path, cases| cutoffs(&document(path), cases));
    report.check("env/miner_verdict.jsonl", |path, cases| verdicts(&json_lines(path), cases));
    report.check("env/estimates.jsonl", |path, cases| estimates(&json_lines(path), cases));
}

fn schemas(list: &[Value], cases: &mut Cases) {
    // The oversize case is described, not written out: a completion of one token more than the cap.
    for case in list {
        let oversize = || sized_commit(8193);
        let commit = case.get("commit").filter(|commit| !commit.is_null()).cloned().unwrap_or_else(oversize);
        cases.equal(text(&case["name"]), Some(check_schema(&commit).is_ok()), case["pass"].as_bool());
    }
}

fn sized_commit(completion: usize) -> Value {
    let tokens = completion + 5;
    json!({
        "tokens": vec![1; tokens], "commitments": vec![json!({}); tokens], "proof_version": "v5",
        "model": {"name": "x", "layer_index": -1}, "signature": "ab", "beacon": {"randomness": "ab"},
        "rollout": {"prompt_length": 5, "completion_length": completion, "success": true, "total_reward": 1.0, "advantage": 0.0},
    })
}

fn structures(list: &[Value], cases: &mut Cases) {
    for case in list {
        let file = &case["file"];
        let expected = Expected {
            hotkey: text(&case["expected_hotkey"]),
            window_start: case["window"].as_i64().expect("a window"),
            block_hash: text(&case["window_hash"]),
        };
        let head = FileHead { wallet: file["wallet"].as_str(), window_start: file["window_start"].as_i64() };
        let outcome = check_structure(&expected, &head, items(&file["inferences"]).iter().map(RowHead::from_value));
        let reason = outcome.err().map(|failure| failure.reason());
        cases.equal(text(&case["name"]), reason, case["result"]["reason"].as_str());
    }
}

fn sampling_values(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let params = &case["generation_params"];
        let read = GenerationParams::from_json(params);
        cases.equal(format!("{index} ok"), Some(read.is_ok()), case["ok"].as_bool());
        if let (Ok(read), Some(true)) = (&read, case["ok"].as_bool()) {
            let got = json!([read.max_new_tokens, read.temperature, read.top_p, read.top_k, read.repetition_penalty]);
            let keys = ["max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty"];
            cases.equal(index, got, keys.iter().map(|key| case[*key].clone()).collect());
        }
        if let (Err(error), Some(message)) = (&read, case["message"].as_str()) {
            let keys = ["max_tokens", "temperature", "top_p", "top_k", "repetition_penalty"];
            // The reference lists all keys behind a semicolon; before it stands the one at fault.
            let named = keys.iter().find(|key| message.split(';').next().is_some_and(|start| start.contains(*key)));
            let error = error.to_string();
            cases.equal(format!("{index} key"), named.is_none_or(|key| error.contains(*key)), true);
        }
        for metadata in items(&case["validate_metadata"]) {
            let missing = missing_metadata(metadata["env_id"].as_str(), metadata["thinking_mode"].as_str(), params);
            cases.equal(format!("{index} metadata"), json!(missing), metadata["missing"].clone());
        }
    }
}

fn order(list: &Value, cases: &mut Cases) {
    cases.equal("number of checks", Check::ORDER.len(), items(list).len());
    for (check, want) in Check::ORDER.into_iter().zip(items(list)) {
        cases.equal(check, check.key(), text(&want["check_name"]));
        let severity = if check.soft_threshold().is_some() { "soft" } else { "hard" };
        cases.equal(format!("{check} severity"), severity, text(&want["severity"]));
        cases.equal(format!("{check} threshold"), check.soft_threshold(), want["soft_threshold"].as_f64());
    }
}

fn cutoffs(list: &Value, cases: &mut Cases) {
    for case in items(list) {
        let planned = size(&case["planned"]);
        for check in [Check::Reward, Check::Distribution] {
            let got = cutoff(check, planned).map(|cutoff| cutoff as u64);
            cases.equal(format!("{planned} {check}"), got, case[check.key()].as_u64());
        }
    }
}

fn verdicts(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let planned = size(&case["planned"]);
        let mut account = MinerAccount::new(planned);
        for failed in items(&case["failed_checks_per_rollout"]) {
            account.on_rollout(&verdict_of(failed), None, true);
        }
        let rejection = account.rejection();
        let got = json!({
            "stopped_after": account.checked(),
            "valid": account.valid(),
            "hard_failure": rejection.is_some_and(|rejection| rejection.is_hard()),
            "soft_gate": rejection.is_some_and(|rejection| rejection.is_soft()),
            "failure_reason": rejection.and_then(|rejection| rejection.reason()),
        });
        let keys = got.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        let want: Map<String, Value> = keys.into_iter().map(|key| (key.clone(), case[&key].clone())).collect();
        cases.equal(index, got, Value::Object(want));
        let counts: Map<String, Value> =
            account.soft_failures().iter().map(|(check, count)| (check.key().to_owned(), json!(count))).collect();
        // Key order carries nothing.
        let same = case["soft_failures"]
            .as_object()
            .is_some_and(|want| want.len() == counts.len() && want.iter().all(|(key, count)| counts.get(key) == Some(count)));
        cases.equal(format!("{index} soft failures {counts:?}"), same, true);
    }
}

/// Only false keys are listed, `_missing` names those that never ran.
fn verdict_of(failed: &Value) -> RowVerdict {
    let missing: Vec<&str> = items(&failed["_missing"]).iter().map(text).collect();
    let ran = Check::ORDER.into_iter().filter(|check| !missing.contains(&check.key()));
    let results = ran.map(|check| (check, failed[check.key()] != Value::Bool(false))).collect();
    RowVerdict { results, ..RowVerdict::default() }
}

fn estimates(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let [total, checked, valid, unique, successful] =
            ["total", "checked", "valid", "unique", "successful"].map(|key| size(&case[key]));
        let metrics = WindowMetrics::estimated(total, checked, valid, unique, successful);
        let got = json!({
            "valid": metrics.valid, "checked": metrics.checked, "total": metrics.total,
            "estimated_valid": metrics.estimated_valid, "successful": metrics.successful,
            "estimated_successful": metrics.estimated_successful, "unique": metrics.unique,
            "estimated_unique": metrics.estimated_unique, "prompt_valid": metrics.prompt_valid,
            "prompt_mismatch": metrics.prompt_mismatch, "had_failure": u8::from(metrics.had_failure),
        });
        let wrong = case["metrics"].as_object().into_iter().flatten().find(|(key, want)| &got[key.as_str()] != *want);
        cases.equal(index, wrong.map(|(key, want)| format!("{key}: got {}, want {want}", got[key.as_str()])), None);
    }
}
