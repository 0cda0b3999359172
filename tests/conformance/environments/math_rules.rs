//! Vectors of math: rows, gold answers, equivalence and rewards.

use std::path::Path;

use grail_environments::math::{Equivalence, equivalence, first_boxed, last_boxed, normalised, validation_indices};

use super::*;

pub(super) fn check(report: &mut Report) {
    report.check("env/math_boxed.jsonl", |path, cases| {
        for case in json_lines(path) {
            let content = text(&case, "text");
            let last = case["env_fallback_last_match"].as_str();
            cases.equal(
                format!("first of {content}"),
                first_boxed(content).unwrap_or_default(),
                text(&case, "dataset_load_first_match"),
            );
            cases.equal(format!("last of {content}"), last_boxed(content), last);
        }
    });
    report.check("env/math_equivalence.jsonl", |path, cases| {
        for case in json_lines(path) {
            let (prediction, gold) = (text(&case, "pred"), text(&case, "gold"));
            cases.case(format!("{prediction} | {gold}"), || {
                same("prediction", normalised(prediction).as_deref(), case["pred_norm"].as_str())?;
                same("gold", normalised(gold).as_deref(), case["gold_norm"].as_str())?;
                let want = if case["equal"] == true { Equivalence::Equal } else { Equivalence::NotEqual };
                same("equivalence", equivalence(prediction, gold), want)
            });
        }
    });
    report.check("env/math_answers.jsonl", |path, cases| {
        for (line, case) in json_lines(path).iter().enumerate() {
            cases.case(format!("line {}", line + 1), || answer(case));
        }
    });
}

fn answer(case: &Value) -> Case {
    let (completion, mode) = (text(case, "completion"), mode(case)?);
    let (answer, solution) = (text(&case["payload"], "answer"), text(&case["payload"], "solution"));
    let parsed = math::parse(completion, mode);
    let facts = json!({
        "answer_text": parsed.answer_text,
        "has_thinking": parsed.has_thinking,
        "has_answer": parsed.has_answer,
        "trailing_after_answer": parsed.trailing_after_answer,
    });
    for (fact, want) in case["parsed"].as_object().into_iter().flatten() {
        same(fact, &facts[fact], want)?;
    }
    if let Some(want) = case["gold_answer"].as_str() {
        same("gold", math::gold(answer, solution).as_str(), want)?;
    }
    let evaluation = math::evaluate(answer, solution, completion, mode).map_err(said)?;
    same("success", evaluation.success, case["success"] == true)?;
    components(&evaluation, case)
}

/// The reward and its parts.
pub(super) fn components(evaluation: &grail_environments::Evaluation, case: &Value) -> Case {
    near("reward", evaluation.reward, &case["reward"])?;
    for (name, want) in case["components"].as_object().into_iter().flatten() {
        let index = name.trim_start_matches('r').parse::<usize>().map_err(|_| format!("the component {name} is unknown"))?;
        let component = evaluation.components.get(index).ok_or_else(|| format!("there is no component {name}"))?;
        near(name, component.value, want)?;
    }
    Ok(())
}

pub(super) fn real_size_splits(sizes: &Value, want: &Value) -> Case {
    let sizes: Vec<usize> = math::CONFIGS.iter().map(|config| number(sizes, config) as usize).collect();
    for (config, indices) in math::CONFIGS.iter().zip(validation_indices(&sizes)) {
        let want: Vec<u64> = array(&want[config]).iter().filter_map(Value::as_u64).collect();
        same(config, indices.into_iter().map(|index| index as u64).collect::<Vec<_>>(), want)?;
    }
    Ok(())
}

/// Writes the configurations of the vectors' rows, one folder each.
pub(super) fn write(rows: &Path, folder: &Path) -> Case {
    for source in array(&json(rows)).iter().filter(|source| text(source, "dataset").ends_with("hendrycks_math")) {
        write_rows(&folder.join(text(source, "config")), source)?;
    }
    Ok(())
}

pub(super) fn split(folder: &Path, split: &str, want: &[Value]) -> Case {
    let data = written(&folder.join("dataset_rows.json"))?;
    let split = if split == "val" {
        grail_environments::Split::Val
    } else if split == "test" {
        grail_environments::Split::Test
    } else {
        grail_environments::Split::Train
    };
    let rows = math::problems(&data.path().join("math"), split).map_err(said)?;
    let got: Vec<Value> = rows
        .iter()
        .map(|row| json!({"problem": row.problem, "answer": row.answer, "subject": row.subject, "level": row.level}))
        .collect();
    same("rows", got.len(), want.len())?;
    for (got, want) in got.iter().zip(want) {
        for (field, want) in want.as_object().into_iter().flatten().filter(|(field, _)| !got[field.as_str()].is_null()) {
            same(field, &got[field], want)?;
        }
    }
    Ok(())
}

pub(super) fn chosen(folder: &Path, case: &Value) -> Case {
    let environment = vector_environment(folder, "math", &json!({}))?;
    same("rows", environment.size() as u64, number(case, "size"))?;
    same("id", environment.task(seed(case)).id.as_str(), text(case, "id"))
}
