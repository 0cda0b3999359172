//! The forward pass against transformers' outputs, and the weights hash against published checkpoints.

use std::path::Path;

use base64::Engine as _;
use grail_model::{Checkpoint, Kind, LoadOptions, Mode, Model, Precision, Proof, Prover, Sequence, Tensor, startup};
use grail_protocol::sketch::{distance, tolerance};
use serde_json::Value;

use crate::report::{Case, Cases, Report, json};

/// Sequences of one padded batch (grail-protocol 5).
const BATCH: usize = 16;
/// Absolute tolerance of f32 hidden states, which reach several hundred.
const HIDDEN_F32: f64 = 2e-3;
/// Tolerance of bf16 hidden states, as a share of the row's largest magnitude.
const HIDDEN_BF16: f64 = 0.03;
/// Tolerances of log-probabilities and logits in f32.
const LOGPROB_F32: f64 = 1e-3;
/// Median tolerance of log-probabilities in bf16.
const LOGPROB_BF16: f64 = 0.1;
/// Least share of a sequence's positions whose bf16 sketches are the reference's. The protocol's tolerance says nothing here: unrelated
/// sketches of this size meet it nearly always, and one in a thousand is equal.
const SKETCHES_BF16: f64 = 0.5;
/// Logits in bf16: two units in the last place at the size of logits that the vectors hold, at least.
const LOGIT_BF16: f64 = 0.5;

/// Every `grail/model-*` folder, and the hash of every undamaged FULL checkpoint.
pub fn run(report: &mut Report) {
    startup(Some(2));
    for folder in report.folders("grail", |name| name.starts_with("model-")) {
        report.check(&folder, forward);
    }
    for chain in report.folders("checkpoints", |_| true) {
        for (path, hash) in published(report.root(), &chain) {
            report.check(&path, |directory, cases| {
                cases.case("weights_hash", || {
                    let got = Checkpoint::open(directory).and_then(|checkpoint| checkpoint.weights_hash());
                    let got = got.map_err(|error| error.to_string())?;
                    if got == hash { Ok(()) } else { Err(format!("got {got}, want {hash}")) }
                });
            });
        }
    }
}

/// FULL checkpoint folders of a chain with the hash its publisher computed.
fn published(root: &Path, chain: &str) -> Vec<(String, String)> {
    let expect = root.join(chain).join("expect.json");
    if !expect.is_file() {
        return Vec::new();
    }
    let expect = json(&expect);
    let windows = expect["windows"].as_object().cloned().unwrap_or_default();
    let full = |(name, window): (&String, &Value)| {
        let hash = expect["published_state"][name.as_str()]["weights_hash_xxh3_128"].as_str()?;
        let path = format!("{chain}/bucket/grail/checkpoints/checkpoint-{window}/FULL");
        root.join(&path).is_dir().then(|| (path, hash.to_owned()))
    };
    windows.iter().filter_map(full).collect()
}

struct Expected<'a> {
    tokens: Vec<u32>,
    prompt_length: usize,
    row: &'a Value,
    wide: bool,
}

fn forward(folder: &Path, cases: &mut Cases) {
    let outputs = json(&folder.join("outputs.json.gz"));
    let wide = outputs["dtype"].as_str().is_some_and(|dtype| dtype.contains("32"));
    let precision = if wide { Precision::F32 } else { Precision::Bf16 };
    let options = LoadOptions { device: grail_model::Device::Cpu, precision };
    let model = match Model::load(folder, options) {
        Ok(model) => model,
        Err(error) => return cases.case("load", || Err(error.to_string())),
    };
    let r_vec = integers(&outputs["r_vec"]);
    let expected: Vec<Expected> = outputs["sequences"].as_array().expect("sequences").iter().map(|row| read(row, wide)).collect();
    let coefficients: [i8; 16] = std::array::from_fn(|index| r_vec[index] as i8);
    let sequences: Vec<Sequence> =
        expected.iter().map(|row| Sequence { tokens: &row.tokens, prompt_length: row.prompt_length, coefficients }).collect();
    let mut proofs: Vec<Proof> = Vec::new();
    if let Err(error) = Prover::new(&model, Mode::Exact, None).prove(&model, &sequences, None, &mut |_, proof| proofs.push(proof))
    {
        return cases.case("prove", || Err(error.to_string()));
    }
    for (first, (rows, proofs)) in (0..).step_by(BATCH).zip(expected.chunks(BATCH).zip(proofs.chunks(BATCH))) {
        compare_batch(&model, first, rows, proofs, cases);
    }
}

fn read(row: &Value, wide: bool) -> Expected<'_> {
    let tokens = integers(&row["tokens"]).into_iter().map(|token| u32::try_from(token).expect("a token id")).collect();
    Expected { tokens, prompt_length: row["prompt_length"].as_u64().expect("a prompt length") as usize, row, wide }
}

fn compare_batch(model: &Model, first: usize, rows: &[Expected], proofs: &[Proof], cases: &mut Cases) {
    let batch: Vec<&[u32]> = rows.iter().map(|row| row.tokens.as_slice()).collect();
    let hidden = model.hidden(&batch).expect("the forward pass runs");
    for (index, (row, proof)) in rows.iter().zip(proofs).enumerate() {
        let hidden = hidden.select(0, index as i64).narrow(0, 0, row.tokens.len() as i64);
        let logits = model.logits(&hidden).expect("the head runs");
        let (hidden, logits) = (matrix(&hidden), matrix(&logits));
        let name = |what: &str| format!("sequence {} {what}", first + index);
        let want_hidden = floats(&row.row["hidden_b64_f32le"]);
        cases.case(name("hidden"), || telling(&hidden, |hidden| row.hidden(hidden, &want_hidden)));
        cases.case(name("sketches"), || telling(&proof.sketches, |sketches| row.sketches(sketches, &want_hidden)));
        cases.case(name("completion_logprobs"), || telling(&proof.logprobs, |logprobs| row.logprobs(logprobs)));
        cases.case(name("argmax_tokens"), || telling(&logits, |logits| row.argmax(logits)));
        cases.case(name("logits"), || telling(&logits, |logits| row.logits(logits)));
    }
}

/// Judges values, one for each position, and whether the judgement tells anything: the same values one position on must fail it.
fn telling<T: Clone>(values: &[T], judge: impl Fn(&[T]) -> Case) -> Case {
    judge(values)?;
    if values.len() < 2 {
        return Ok(());
    }
    let mut turned = values.to_vec();
    turned.rotate_left(1);
    match judge(&turned) {
        Ok(()) => Err("the check passes the values of other positions too: it cannot fail".into()),
        Err(_) => Ok(()),
    }
}

impl Expected<'_> {
    fn logit_tolerance(&self) -> f64 {
        if self.wide { LOGPROB_F32 } else { LOGIT_BF16 }
    }

    fn hidden(&self, got: &[Vec<f32>], want: &[f32]) -> Case {
        let width = want.len() / self.tokens.len();
        for (position, (got, want)) in got.iter().zip(want.chunks(width)).enumerate() {
            let most = if self.wide { HIDDEN_F32 } else { HIDDEN_BF16 * largest(want) };
            let worst = worst(got, want);
            if worst > most || got.len() != want.len() {
                return Err(format!("position {position} differs by {worst}, allowed {most}"));
            }
        }
        Ok(())
    }

    fn sketches(&self, got: &[u32], hidden: &[f32]) -> Case {
        let row = self.row;
        let want = if row["sketches_lowest_index_tiebreak"].is_array() { "sketches_lowest_index_tiebreak" } else { "sketches" };
        let want = integers(&row[want]);
        if got.len() != want.len() {
            return Err(format!("{} sketches, want {}", got.len(), want.len()));
        }
        let width = hidden.len() / self.tokens.len();
        let mut equal = 0;
        for (position, (&got, want)) in got.iter().zip(want).enumerate() {
            let want = u32::try_from(want).expect("a sketch");
            let exact = self.wide && !borderline(&hidden[position * width..(position + 1) * width]);
            let allowed = if exact { 0 } else { tolerance(position) };
            if distance(got, want) > allowed {
                return Err(format!("position {position}: got {got}, want {want}, allowed distance {allowed}"));
            }
            equal += usize::from(got == want);
        }
        let share = equal as f64 / got.len() as f64;
        if share < SKETCHES_BF16 {
            return Err(format!(
                "{:.1} % of the sketches are the reference's, at least {SKETCHES_BF16} of all must be",
                share * 100.0
            ));
        }
        Ok(())
    }

    fn logprobs(&self, got: &[f32]) -> Case {
        let want: Vec<f64> = self.row["completion_logprobs"].as_array().expect("log-probabilities").iter().map(number).collect();
        if got.len() != want.len() {
            return Err(format!("{} log-probabilities, want {}", got.len(), want.len()));
        }
        let mut differences: Vec<f64> = got.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).abs()).collect();
        differences.sort_by(f64::total_cmp);
        let (judged, allowed) = match (differences.len(), self.wide) {
            (0, _) => return Ok(()),
            (count, true) => (differences[count - 1], LOGPROB_F32),
            (count, false) => (differences[count / 2], LOGPROB_BF16),
        };
        if judged <= allowed { Ok(()) } else { Err(format!("differ by {judged}, allowed {allowed}")) }
    }

    /// The reference's choice must be ours, or as good as ours.
    fn argmax(&self, logits: &[Vec<f32>]) -> Case {
        for (position, (row, want)) in logits.iter().zip(integers(&self.row["argmax_tokens"])).enumerate() {
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let chosen = row[usize::try_from(want).expect("a token id")];
            if f64::from(best - chosen) > self.logit_tolerance() {
                return Err(format!("position {position}: token {want} has logit {chosen}, the largest is {best}"));
            }
        }
        Ok(())
    }

    fn logits(&self, logits: &[Vec<f32>]) -> Case {
        let tops = self.row["top1_logits_f32"].as_array().cloned().unwrap_or_default();
        for (position, (row, want)) in logits.iter().zip(&tops).enumerate() {
            let best = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            if (best - number(want)).abs() > self.logit_tolerance() {
                return Err(format!("position {position}: largest logit {best}, want {want}"));
            }
        }
        let first = floats(&self.row["first_row_logits_b64_f32le"]);
        let worst = worst(&logits[0], &first);
        if worst <= self.logit_tolerance() { Ok(()) } else { Err(format!("the first row differs by {worst}")) }
    }
}

/// Whether noise of the f32 tolerance may change the sketch: a value next to a bucket's edge, or next to the 16/17 border.
fn borderline(hidden: &[f32]) -> bool {
    let mut magnitudes: Vec<f64> = hidden.iter().map(|value| f64::from(value.abs())).collect();
    magnitudes.sort_by(|one, other| other.total_cmp(one));
    let edges = (1..=7).map(|bucket| (1.25 * f64::from(bucket)).exp2() - 1.0);
    let near_edge = edges.into_iter().any(|edge| magnitudes[..16].iter().any(|value| (value - edge).abs() <= HIDDEN_F32));
    near_edge || magnitudes.get(16).is_some_and(|next| magnitudes[15] - next <= 2.0 * HIDDEN_F32)
}

fn integers(value: &Value) -> Vec<i64> {
    value.as_array().expect("a list").iter().map(|item| item.as_i64().expect("an integer")).collect()
}

/// A number, or one of the written-out non-finite ones.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| match value["$f"].as_str() {
        Some("inf") => f64::INFINITY,
        Some("-inf") => f64::NEG_INFINITY,
        _ => f64::NAN,
    })
}

fn floats(value: &Value) -> Vec<f32> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().expect("base64")).expect("base64");
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn matrix(tensor: &Tensor) -> Vec<Vec<f32>> {
    Vec::<Vec<f32>>::try_from(tensor.to_kind(Kind::Float).contiguous()).expect("a matrix")
}

fn worst(got: &[f32], want: &[f32]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    got.iter().zip(want).map(|(got, want)| f64::from((got - want).abs())).fold(0.0, f64::max)
}

fn largest(row: &[f32]) -> f64 {
    row.iter().map(|value| f64::from(value.abs())).fold(0.0, f64::max)
}
