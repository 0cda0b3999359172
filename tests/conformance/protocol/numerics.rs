//! Rules over floats: advantages, rewards, termination, log-probabilities, distributions.

use grail_protocol::advantage::advantages;
use grail_protocol::challenge::open_positions;
use grail_protocol::constants::CHALLENGE_K;
use grail_protocol::validation::distribution::{Metrics, Sampling, chosen_probabilities};
use grail_protocol::validation::group::{GroupMember, check_group};
use grail_protocol::validation::logprobs::{Deviation, LogprobFailure, check_logprobs, claimed_logprobs, log_probability};
use grail_protocol::validation::reward::is_close;
use grail_protocol::validation::termination::{LogitsDtype, check_termination, completion_limit, eos_probability};
use serde_json::{Value, json};

use super::values::{binary, float, floats, integers, items, near, size, sizes, text, with_words};
use crate::report::{Case, Cases, Report, json, json_lines};

/// Shares by which probabilities and log-probabilities may differ between mathematics libraries.
const RELATIVE: f64 = 1e-5;

pub fn run(report: &mut Report) {
    report.check("grail/advantages.json", |path, cases| normalised(items(&json(path)["cases"]), "advantages_py312", cases));
    report.check("env/advantages.jsonl", |path, cases| normalised(&json_lines(path), "advantages", cases));
    report.check("grail/grpo_group.json", |path, cases| groups(items(&json(path)["cases"]), cases));
    report.check("env/group_checks.jsonl", |path, cases| groups(&json_lines(path), cases));
    report.check("env/reward_checks.jsonl", |path, cases| rewards(&json_lines(path), cases));
    report.check("grail/termination.json", |path, cases| terminations(items(&json(path)["cases"]), cases));
    report.check("env/termination.jsonl", |path, cases| terminations(&json_lines(path), cases));
    report.check("grail/logprobs.json.gz", |path, cases| logprobs(items(&json(path)["cases"]), cases));
    report.check("env/logprob.jsonl", |path, cases| logprobs(&json_lines(path), cases));
    report.check("grail/distribution.json.gz", |path, cases| distributions(items(&json(path)["cases"]), cases));
    report.check("env/distribution.jsonl", |path, cases| distributions(&json_lines(path), cases));
}

fn normalised(list: &[Value], key: &str, cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let rewards = floats(&case["rewards"]);
        let (got, want) = (advantages(&rewards), floats(&case[key]));
        // Equal rewards leave a rounding residue that depends on how Python sums.
        let constant = rewards.windows(2).all(|pair| pair[0] == pair[1]);
        let agrees = |(got, want): (&f64, &f64)| match constant {
            true => got.abs() <= 2e-8 && want.abs() <= 2e-8,
            false => near(*got, *want, 1e-9),
        };
        let all = got.len() == want.len() && got.iter().zip(&want).all(agrees);
        cases.case(index, || if all { Ok(()) } else { Err(format!("got {got:?}, want {want:?}")) });
    }
}

fn groups(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let pairs = floats(&case["rewards"]).into_iter().zip(floats(&case["advantages"]));
        let seeds = items(&case["env_seeds"]);
        let member = |(place, (reward, advantage)): (usize, (f64, f64))| GroupMember {
            reward,
            advantage,
            environment_seed: seeds.get(place).cloned(),
        };
        let members: Vec<GroupMember> = pairs.enumerate().map(member).collect();
        let name = format!("{index} {}", if case["kind"].is_null() { &case["note"] } else { &case["kind"] });
        cases.equal(name, Some(check_group(&members).is_ok()), case["valid"].as_bool());
    }
}

fn rewards(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let close = is_close(float(&case["miner_reward"]), float(&case["env_reward"]));
        cases.equal(index, Some(close), case["pass"].as_bool());
    }
}

fn terminations(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let row = match case["logits_row_b64_f32le"].as_str() {
            Some(_) => binary(&case["logits_row_b64_f32le"]),
            None => floats(&case["penultimate_logits_as_float"]).into_iter().map(|logit| logit as f32).collect(),
        };
        let dtype = if text(&case["logits_dtype"]).starts_with("bf") { LogitsDtype::Bf16 } else { LogitsDtype::F32 };
        let eos = case["eos_token_id"].as_i64();
        let probability = eos.map_or(0.0, |eos| eos_probability(&row, usize::try_from(eos).expect("an id"), dtype));
        if eos.is_some() && !case["p_eos"].is_null() {
            let agrees = near(f64::from(probability), float(&case["p_eos"]), 1e-6);
            cases.case(format!("{index} p_eos"), || if agrees { Ok(()) } else { Err(format!("got {probability}")) });
        }
        let params = case.get("generation_params").cloned().unwrap_or_else(|| json!({"max_tokens": case["max_tokens"]}));
        let last = case["last_token"].as_i64().or_else(|| integers(&case["tokens"]).last().copied()).expect("a last token");
        let length = case["completion_length"].as_u64().expect("a length");
        let valid = check_termination(length, completion_limit(&params), last, eos, probability).is_ok();
        cases.equal(index, Some(valid), verdict(case));
    }
}

/// `valid` in one set, `pass` in the other.
fn verdict(case: &Value) -> Option<bool> {
    case["valid"].as_bool().or_else(|| case["pass"].as_bool())
}

fn logprobs(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let name = format!("{index} {}", if case["kind"].is_null() { &case["note"] } else { &case["kind"] });
        cases.case(name, || one_logprob(case));
    }
}

fn one_logprob(case: &Value) -> Case {
    let tokens = integers(&case["tokens"]);
    let start = size(&case["prompt_length"]);
    let end = start + size(&case["completion_length"]);
    let positions = open_positions(&tokens, text(&case["challenge_randomness"]), start, end, CHALLENGE_K).expect("positions");
    if !case["challenged_indices"].is_null() && positions != sizes(&case["challenged_indices"]) {
        return Err(format!("opened {positions:?}"));
    }
    let outcome = compare_logprobs(case, &tokens, &positions);
    let deviation = match &outcome {
        Ok(deviation) | Err(LogprobFailure::Median { deviation }) => Some(*deviation),
        Err(_) => None,
    };
    if Some(outcome.is_ok()) != verdict(case) {
        return Err(format!("got {outcome:?}, want {:?}", verdict(case)));
    }
    // Where a set gives no median, it says nothing about it; where NaN is among the claims, the reference's is left open.
    let open = case["median_dev"].is_null() || floats(&case["token_logprobs"]).iter().any(|claim| claim.is_nan());
    match (deviation, open) {
        (Some(deviation), false) if !near(deviation.median, float(&case["median_dev"]), RELATIVE) => {
            Err(format!("median {}, want {}", deviation.median, case["median_dev"]))
        }
        _ => Ok(()),
    }
}

fn compare_logprobs(case: &Value, tokens: &[i64], positions: &[usize]) -> Result<Deviation, LogprobFailure> {
    let claimed = claimed_logprobs(&with_words(case), tokens.len())?;
    let model: Vec<f64> = match case["model_logprobs_at_challenged"].is_array() {
        true => floats(&case["model_logprobs_at_challenged"]),
        false => positions.iter().map(|position| from_logits(case, tokens, *position)).collect(),
    };
    let opened = positions.iter().zip(model).map(|(position, model)| (*position, model, claimed[*position]));
    check_logprobs(&opened.collect::<Vec<_>>())
}

fn from_logits(case: &Value, tokens: &[i64], position: usize) -> f64 {
    let row: Vec<f32> = floats(&case["logits"][position - 1]).into_iter().map(|logit| logit as f32).collect();
    let token = usize::try_from(tokens[position]).expect("an id");
    f64::from(log_probability(&row, token).expect("an id of the row"))
}

fn distributions(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let tokens = integers(&case["tokens"]);
        let (logits, vocabulary) = logits_of(case, tokens.len());
        let sampling = Sampling::from_json(&case["generation_params"]);
        let got = chosen_probabilities(&tokens, size(&case["prompt_length"]), &logits, vocabulary, sampling).expect("shapes");
        cases.case(format!("{index} probabilities"), || all_near(&got, &floats(&case["probs"])));
        let metrics = Metrics::of(&got);
        cases.case(format!("{index} metrics"), || metrics_agree(metrics.as_ref(), case));
        let valid = metrics.is_some_and(|metrics| !metrics.suspicion().any());
        cases.equal(format!("{index} verdict"), Some(valid), verdict(case));
    }
}

fn logits_of(case: &Value, rows: usize) -> (Vec<f32>, usize) {
    if case["logits_b64_f32le"].is_string() {
        let logits = binary(&case["logits_b64_f32le"]);
        let vocabulary = case["vocab"].as_u64().map_or(logits.len() / rows, |vocabulary| vocabulary as usize);
        return (logits, vocabulary);
    }
    let logits: Vec<f32> = items(&case["logits"]).iter().flat_map(floats).map(|logit| logit as f32).collect();
    let vocabulary = items(&case["logits"][0]).len();
    (logits, vocabulary)
}

fn all_near(got: &[f32], want: &[f64]) -> Case {
    let close = |(got, want): (&f32, &f64)| (f64::from(*got) - want).abs() <= RELATIVE * want.abs() + 1e-12;
    if got.len() == want.len() && got.iter().zip(want).all(close) { Ok(()) } else { Err(format!("got {got:?}, want {want:?}")) }
}

fn metrics_agree(got: Option<&Metrics>, case: &Value) -> Case {
    let want = &case["metrics"];
    let Some(got) = got else {
        return if want.is_null() { Ok(()) } else { Err("insufficient, but metrics are expected".into()) };
    };
    let pairs = [
        (got.mean, &want["mean"]),
        (got.median, &want["median"]),
        (got.q10, &want["q10"]),
        (got.min, &want["min"]),
        (got.initial_q10, &case["initial_metrics"]["q10"]),
    ];
    let given = pairs.iter().filter(|(_, want)| !want.is_null());
    match given.clone().all(|(got, want)| (got - float(want)).abs() <= RELATIVE * float(want).abs() + 1e-12) {
        true => reasons_agree(got, &case["reasons"]),
        false => Err(format!("got {got:?}, want {want}")),
    }
}

fn reasons_agree(got: &Metrics, want: &Value) -> Case {
    let suspicion = got.suspicion();
    let pairs = [
        ("median_low", suspicion.median_low),
        ("min_low", suspicion.min_low),
        ("q10_low", suspicion.q10_low),
        ("q10_low_initial", suspicion.q10_low_initial),
    ];
    let wrong = pairs.iter().find(|(key, got)| want[*key].as_bool().is_some_and(|want| want != *got));
    wrong.map_or(Ok(()), |(key, got)| Err(format!("{key} is {got}")))
}
