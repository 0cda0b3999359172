//! Whole rollouts and whole windows, with the forward pass of the model that the vectors were made with.

use std::path::Path;

use grail_model::{Device, ExamineTerms, LoadOptions, Mode, Model, Precision, Prover, Sequence};
use grail_protocol::keys::KeyScheme;
use grail_protocol::python_json::canonical_hash;
use grail_protocol::sketch::coefficients;
use grail_protocol::validation::distribution::Sampling;
use grail_protocol::validation::head::RowHead;
use grail_protocol::validation::pipeline::{Admitted, Examination, RowContext, RowVerdict, check_row};
use grail_protocol::validation::sequence::max_context;
use grail_protocol::validation::structure::FileHead;
use grail_protocol::validation::window::{Judge, Row, WindowContext, WindowVerdict, judge};
use serde_json::{Map, Value, json};

use super::values::{float, integers, items, sizes, text, with_words};
use crate::report::{Case, Cases, Report, json as document};

/// How far a log-probability deviation may be from the reference's, absolute and as a share.
const DEVIATION: (f64, f64) = (2e-3, 1e-2);
/// The same for distribution metrics.
const METRIC: (f64, f64) = (1e-4, 1e-3);

pub fn run(report: &mut Report) {
    with_model(report, "grail/verify_cases.json.gz", |examiner, file, _, cases| {
        for case in items(&file["cases"]) {
            cases.case(text(&case["name"]), || rollout(examiner, case));
        }
    });
    with_model(report, "grail/window_cases.json", |examiner, file, path, cases| {
        let base = with_words(&document(&path.with_file_name("window.json.gz"))["after"]);
        for case in items(&file["cases"]) {
            cases.case(text(&case["name"]), || window(examiner, file, &base, case));
        }
    });
}

/// Runs a check with the model that its file names, if the set has it.
fn with_model(report: &mut Report, path: &str, check: impl FnOnce(&Examiner, &Value, &Path, &mut Cases)) {
    let full = report.root().join(path);
    let folder = full.exists().then(|| full.with_file_name(text(&document(&full)["model"])));
    if folder.is_some_and(|folder| !folder.is_dir()) {
        report.skip(path, "the model that it names is not in this folder");
        return;
    }
    report.check(path, |path, cases| {
        let file = document(path);
        match Examiner::load(&path.with_file_name(text(&file["model"]))) {
            Ok(examiner) => check(&examiner, &file, path, cases),
            Err(error) => cases.case("model", || Err(error)),
        }
    });
}

struct Examiner {
    model: Model,
    config: Value,
}

impl Examiner {
    fn load(folder: &Path) -> Result<Self, String> {
        let options = LoadOptions { device: Device::Cpu, precision: Precision::F32 };
        let model = Model::load(folder, options).map_err(|error| error.to_string())?;
        Ok(Self { model, config: document(&folder.join("config.json")) })
    }

    /// One sequence at a time, as the vectors were made.
    fn examine(&self, rollout: &Admitted<'_>, context: &RowContext<'_>) -> Result<Examination, String> {
        let (prompt_length, _) = rollout.lengths.ok_or("the lengths do not add up")?;
        let tokens: Vec<u32> = rollout.tokens.iter().map(|token| u32::try_from(*token).expect("an id")).collect();
        let coefficients = coefficients(rollout.randomness).map_err(|error| error.to_string())?;
        let sampling = Sampling::from_json(context.generation_params);
        let terms = ExamineTerms {
            temperature: f64::from(sampling.temperature),
            repetition_penalty: f64::from(sampling.repetition_penalty),
            eos_token_id: u32::try_from(context.eos_token.unwrap_or(0)).expect("an id"),
        };
        let mut examination = Examination::default();
        let sequence = Sequence { tokens: &tokens, prompt_length, coefficients };
        let mut prover = Prover::new(&self.model, Mode::Exact, None);
        let outcome = prover.prove(&self.model, &[sequence], Some(&terms), &mut |_, proof| {
            let examined = proof.examined.expect("an examination");
            examination = Examination {
                sketches: proof.sketches,
                logprobs: proof.logprobs,
                eos_probability: examined.eos_probability,
                probabilities: examined.probabilities,
            };
        });
        outcome.map(|()| examination).map_err(|error| error.to_string())
    }

    /// Everything but the texts that differ per case.
    fn context<'a>(&self, case: &'a Value, hotkey: &'a str) -> RowContext<'a> {
        RowContext {
            scheme: KeyScheme::Sr25519,
            hotkey,
            challenge_randomness: text(&case["challenge_randomness"]),
            vocabulary: self.config["vocab_size"].as_u64().expect("a vocabulary"),
            max_context: max_context(&self.config),
            eos_token: case["eos_token_id"].as_i64(),
            generation_params: &case["generation_params"],
            checkpoint_window: case["validator_checkpoint_window"].as_i64(),
        }
    }
}

fn rollout(examiner: &Examiner, case: &Value) -> Case {
    let context = examiner.context(case, text(&case["prover_address"]));
    let prompt = integers(&case["env_stub"]["prompt_ids"]);
    let reward = float(&case["env_stub"]["reward"]);
    let commit = with_words(&case["commit"]);
    let verdict = check_row(&context, &commit, &prompt, |rollout| examiner.examine(rollout, &context), &|_| Ok(Some(reward)));
    // What the reference accepts against better judgement, a strict verifier may refuse.
    if case["reference_quirk"] == Value::Bool(true) && !verdict.is_valid() {
        return Ok(());
    }
    same_verdict(&verdict, &case["expected"])?;
    same_measurements(&verdict, &case["expected"])
}

fn same_verdict(verdict: &RowVerdict, expected: &Value) -> Case {
    let checks: Map<String, Value> =
        verdict.results.iter().map(|(check, passed)| (check.key().to_owned(), json!(passed))).collect();
    let soft: Vec<&str> = verdict.soft_failures().into_iter().map(|check| check.key()).collect();
    let got = json!({
        "hard_valid": verdict.is_valid(),
        "checks": checks,
        "first_failed_hard": verdict.first_failed_hard().map(|check| check.key()),
        "soft_failed": soft,
    });
    differing(&got, expected).map_or(Ok(()), |difference| Err(format!("{difference} ({:?})", verdict.failure)))
}

/// The first key that is expected to be something else.
fn differing(got: &Value, expected: &Value) -> Option<String> {
    let keys = got.as_object()?.iter();
    let wrong = keys.filter(|(key, _)| expected.get(key).is_some()).find(|(key, got)| expected[key.as_str()] != **got);
    wrong.map(|(key, got)| format!("{key}: got {got}, want {}", expected[key.as_str()]))
}

fn same_measurements(verdict: &RowVerdict, expected: &Value) -> Case {
    let measured = &verdict.diagnostics;
    let opened: Vec<usize> = measured.opened.iter().map(|opened| opened.position).collect();
    if !opened.is_empty() && expected["challenged_indices"].is_array() && opened != sizes(&expected["challenged_indices"]) {
        return Err(format!("opened {opened:?}"));
    }
    if let Some(deviation) = measured.logprobs {
        close("logprob_median_dev", deviation.median, &expected["logprob_median_dev"], DEVIATION)?;
    }
    let Some(metrics) = measured.distribution else { return Ok(()) };
    let wanted = &expected["distribution_metrics"];
    for (key, got) in [("mean", metrics.mean), ("median", metrics.median), ("q10", metrics.q10), ("min", metrics.min)] {
        close(key, got, &wanted[key], METRIC)?;
    }
    Ok(())
}

fn close(name: &str, got: f64, want: &Value, (absolute, relative): (f64, f64)) -> Case {
    if want.is_null() {
        return Ok(());
    }
    let want = float(want);
    let close = got == want || (got - want).abs() <= absolute + relative * want.abs();
    if close { Ok(()) } else { Err(format!("{name}: got {got}, want {want}")) }
}

struct Stub<'a> {
    examiner: &'a Examiner,
    context: RowContext<'a>,
    file: &'a Value,
}

impl Judge for Stub<'_> {
    fn prompt(&mut self, _group: i64) -> Result<Vec<i64>, String> {
        Ok(integers(&self.file["env_stub_prompt_ids"]))
    }

    fn examine(&mut self, _row: usize, rollout: &Admitted<'_>) -> Result<Examination, String> {
        self.examiner.examine(rollout, &self.context)
    }

    fn evaluate(&self, _group: i64, completion: &[i64]) -> Result<Option<f64>, String> {
        let known = items(&self.file["env_stub_rewards"]).iter();
        let found =
            known.map(|entry| (integers(&entry["completion_tokens"]), &entry["reward"])).find(|(tokens, _)| tokens == completion);
        found.map(|(_, reward)| Some(float(reward))).ok_or_else(|| "the stub does not know this completion".to_owned())
    }
}

fn window(examiner: &Examiner, file: &Value, base: &Value, case: &Value) -> Case {
    let mut content = base.clone();
    for operation in items(&case["ops"]) {
        apply(&mut content, items(&operation["path"]), &with_words(&operation["value"]))?;
    }
    let context = WindowContext {
        window_start: file["window"].as_i64().expect("a window"),
        block_hash: text(&case["window_hash"]),
        row: examiner.context(file, text(&case["expected_hotkey"])),
    };
    let head = FileHead { wallet: content["wallet"].as_str(), window_start: content["window_start"].as_i64() };
    let rows: Vec<Row> =
        items(&content["inferences"]).iter().map(|row| Row { head: RowHead::from_value(row), commit: &row["commit"] }).collect();
    let mut stub = Stub { examiner, context: context.row, file };
    let verdict = judge(&context, &head, &rows, |row| canonical_hash(rows[row].commit), &mut stub);
    let (got, rejected) = match verdict {
        Ok(verdict) => (summary(&verdict), verdict.account.rejection().is_some()),
        Err(failure) => (json!({"structure": {"valid": false, "reason": failure.reason()}, "accepted": false}), true),
    };
    if case["reference_quirk"] == Value::Bool(true) && rejected {
        return Ok(());
    }
    differing(&got, &case["expected"]).map_or(Ok(()), Err)
}

fn summary(verdict: &WindowVerdict) -> Value {
    let account = &verdict.account;
    let rejection = account.rejection();
    let soft: Map<String, Value> =
        account.soft_failures().iter().map(|(check, count)| (check.key().to_owned(), json!(count))).collect();
    let group = rejection.is_some_and(|rejection| !rejection.is_hard() && !rejection.is_soft());
    json!({
        "structure": {"valid": true},
        "hard_failure": rejection.is_some_and(|rejection| rejection.is_hard()),
        "soft_gate": rejection.is_some_and(|rejection| rejection.is_soft()),
        "failure_reason": rejection.and_then(|rejection| rejection.reason()),
        "valid_count": account.valid(),
        "checked_count": account.checked(),
        "invalid_sig": account.invalid_signatures(),
        "processing_err": account.processing_errors(),
        "soft_failures": soft,
        "unique": account.unique(),
        "grpo_groups_valid": !group,
        "accepted": rejection.is_none(),
    })
}

/// Sets the value at a path, or removes it.
fn apply(target: &mut Value, path: &[Value], value: &Value) -> Result<(), String> {
    let (last, parents) = path.split_last().ok_or("an operation without a path")?;
    let parent = parents.iter().try_fold(target, |target, step| child(target, step)).ok_or("no such path")?;
    let delete = value.as_str() == Some("$delete");
    match (parent, last) {
        (Value::Array(list), Value::Number(index)) => {
            let index = index.as_u64().and_then(|index| usize::try_from(index).ok()).filter(|index| *index < list.len());
            let index = index.ok_or("no such item")?;
            if delete { drop(list.remove(index)) } else { list[index] = value.clone() }
        }
        (Value::Object(object), Value::String(key)) if delete => drop(object.remove(key)),
        (Value::Object(object), Value::String(key)) => drop(object.insert(key.clone(), value.clone())),
        _ => return Err("no such path".to_owned()),
    }
    Ok(())
}

fn child<'a>(value: &'a mut Value, step: &Value) -> Option<&'a mut Value> {
    match step {
        Value::Number(index) => value.get_mut(usize::try_from(index.as_u64()?).ok()?),
        Value::String(key) => value.get_mut(key.as_str()),
        _ => None,
    }
}
