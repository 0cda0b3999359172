//! Hidden states and logits equal to the last bit with what transformers computes on the same libtorch, for every family, type,
//! attention and kind of batch; and proofs made of them. The cases are listed in `outputs.py`, which runs transformers.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use grail_model::{Attention, Device, Kind, LoadOptions, Mode, Model, Precision, Proof, Prover, Sequence, Tensor, startup};
use grail_protocol::sketch::sketch;
use safetensors::SafeTensors;
use serde::Deserialize;

/// Sequences that are padded and computed together (GRAIL protocol 5).
const CHUNK: usize = 16;
/// Sketch coefficients of the proofs, as a beacon could give them.
const COEFFICIENTS: [i8; 16] = [-127, -90, -61, -33, -14, -6, -2, -1, 1, 3, 7, 15, 34, 62, 91, 127];
/// Prompt tokens of sequences that have as many.
const PROMPT: usize = 3;

type Outcome<T = ()> = Result<T, String>;

#[derive(Deserialize)]
struct Case {
    name: String,
    precisions: Vec<String>,
    attentions: Vec<String>,
    batches: std::collections::BTreeMap<String, Vec<Vec<u32>>>,
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".venv-reference/bin/python");
    if !root.join(".venv-reference/complete").is_file() {
        println!(
            "SKIPPED transformers: nothing is compared with it, .venv-reference is not there (scripts/setup.py --reference)."
        );
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("OMP_WAIT_POLICY").is_none() {
        return again_without_spinning();
    }
    let folder = tempfile::tempdir().expect("a folder for the models");
    let failed = match transformers(&python, folder.path()) {
        Ok(cases) => {
            startup(Some(2));
            cases.iter().map(|case| compare(folder.path(), case)).sum()
        }
        Err(why) => {
            println!("FAILED: {why}");
            1
        }
    };
    println!("{failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Waiting threads spin by default, which on a machine that does other work costs more than all the arithmetic; libtorch reads
/// the switch before `main`.
#[allow(clippy::disallowed_methods)]
fn again_without_spinning() -> ExitCode {
    let program = std::env::current_exe().expect("the path of this test");
    let ended = Command::new(program).env("OMP_WAIT_POLICY", "passive").status().expect("this test starts once more");
    if ended.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[allow(clippy::disallowed_methods)]
fn transformers(python: &Path, folder: &Path) -> Outcome<Vec<Case>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transformers/outputs.py");
    let ended = Command::new(python)
        .arg(script)
        .arg(folder)
        .env("OMP_WAIT_POLICY", "passive")
        .status()
        .map_err(|error| error.to_string())?;
    if !ended.success() {
        return Err(format!("transformers ended with {ended}; its message is above"));
    }
    let text = std::fs::read(folder.join("models.json")).map_err(|error| error.to_string())?;
    let cases: Vec<Case> = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if cases.is_empty() { Err("transformers wrote no models".to_owned()) } else { Ok(cases) }
}

/// Prints a line per type and batch; returns how many differ.
fn compare(folder: &Path, case: &Case) -> usize {
    let mut failed = 0;
    let asked = case.precisions.iter().flat_map(|precision| case.attentions.iter().map(move |kind| (precision, kind)));
    for (precision, kind) in asked {
        let expected = folder.join(&case.name).join(format!("outputs-{precision}-{kind}.safetensors"));
        let loaded = load(&folder.join(&case.name), precision)
            .and_then(|model| Ok((model.with_attention(kind.parse::<Attention>()?), Expected::read(&expected)?)));
        for (batch, sequences) in &case.batches {
            let outcome = loaded.as_ref().map_err(String::clone).and_then(|(model, expected)| {
                let chunks = expected.chunks(batch, sequences)?;
                forward(model, &chunks)?;
                proofs(model, sequences, &chunks)
            });
            failed += usize::from(outcome.is_err());
            let verdict = outcome.map_or_else(|why| format!("FAILED: {why}"), |()| "equal".to_owned());
            println!("{:18} {precision:4} {kind:5} {batch:8} {verdict}", case.name);
        }
    }
    failed
}

fn load(directory: &Path, precision: &str) -> Outcome<Model> {
    let options = LoadOptions { device: Device::Cpu, precision: precision.parse::<Precision>()? };
    Model::load(directory, options).map_err(|error| error.to_string())
}

/// What transformers computed with one model in one type.
struct Expected {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// What transformers computed of sequences that were padded together: `[B, L, hidden]` and `[B, L, vocabulary]`.
struct Chunk<'a> {
    sequences: &'a [Vec<u32>],
    hidden: Tensor,
    logits: Tensor,
}

impl Expected {
    fn read(path: &Path) -> Outcome<Self> {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path: path.to_path_buf(), bytes })
    }

    fn chunks<'a>(&self, batch: &str, sequences: &'a [Vec<u32>]) -> Outcome<Vec<Chunk<'a>>> {
        let starts = (0..sequences.len()).step_by(CHUNK);
        let chunk = |(start, sequences)| {
            let tensor = |what: &str| self.tensor(&format!("{batch}.{start}.{what}"));
            Ok(Chunk { sequences, hidden: tensor("hidden")?, logits: tensor("logits")? })
        };
        starts.zip(sequences.chunks(CHUNK)).map(chunk).collect()
    }

    fn tensor(&self, name: &str) -> Outcome<Tensor> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {name}: {error}", self.path.display());
        let file = SafeTensors::deserialize(&self.bytes).map_err(|error| failed(&error))?;
        let view = file.tensor(name).map_err(|error| failed(&error))?;
        let kind = match view.dtype() {
            safetensors::Dtype::F32 => Kind::Float,
            safetensors::Dtype::BF16 => Kind::BFloat16,
            safetensors::Dtype::F16 => Kind::Half,
            other => return Err(failed(&other)),
        };
        let shape: Vec<i64> = view.shape().iter().map(|&side| side as i64).collect();
        Tensor::f_from_data_size(view.data(), &shape, kind).map_err(|error| failed(&error))
    }
}

fn forward(model: &Model, chunks: &[Chunk]) -> Outcome {
    for (number, chunk) in chunks.iter().enumerate() {
        let rows: Vec<&[u32]> = chunk.sequences.iter().map(Vec::as_slice).collect();
        let hidden = model.hidden(&rows).map_err(|error| error.to_string())?;
        let logits = model.logits(&hidden).map_err(|error| error.to_string())?;
        for (what, got, want) in [("hidden", hidden, &chunk.hidden), ("logits", logits, &chunk.logits)] {
            for (row, tokens) in rows.iter().enumerate() {
                // What is computed at padding is nobody's business.
                let real = |tensor: &Tensor| tensor.select(0, row as i64).narrow(0, 0, tokens.len() as i64);
                let place = number * CHUNK + row;
                equal_bits(&real(&got), &real(want)).map_err(|why| format!("{what} of sequence {place}: {why}"))?;
            }
        }
    }
    Ok(())
}

fn equal_bits(got: &Tensor, want: &Tensor) -> Outcome {
    if got.kind() != want.kind() || got.size() != want.size() {
        return Err(format!("{:?} {:?}, want {:?} {:?}", got.kind(), got.size(), want.kind(), want.size()));
    }
    let bits = |tensor: &Tensor| {
        let integer = if tensor.kind() == Kind::Float { Kind::Int } else { Kind::Int16 };
        tensor.contiguous().view_dtype(integer)
    };
    let differing = bits(got).not_equal_tensor(&bits(want)).sum(Kind::Int64).int64_value(&[]);
    if differing == 0 {
        return Ok(());
    }
    let most = (got.to_kind(Kind::Double) - want.to_kind(Kind::Double)).abs().max().double_value(&[]);
    Err(format!("{differing} of {} values differ, the most by {most:e}", got.numel()))
}

/// Proofs come in the given order, from chunks of 16 in the given order: each sketch is the protocol's rule on transformers'
/// hidden states, each log-probability that of transformers' logits.
fn proofs(model: &Model, tokens: &[Vec<u32>], chunks: &[Chunk]) -> Outcome {
    let prompt = |tokens: &Vec<u32>| PROMPT.min(tokens.len() - 1);
    let sequences: Vec<Sequence> =
        tokens.iter().map(|tokens| Sequence { tokens, prompt_length: prompt(tokens), coefficients: COEFFICIENTS }).collect();
    let mut proofs: Vec<(usize, Proof)> = Vec::new();
    let mut prover = Prover::new(model, Mode::Exact, None);
    let proved = prover.prove(model, &sequences, None, &mut |index, proof| proofs.push((index, proof)));
    proved.map_err(|error| error.to_string())?;
    if !proofs.iter().map(|(index, _)| *index).eq(0..sequences.len()) {
        return Err("the proofs are not one per sequence in order".to_owned());
    }
    for (index, proof) in &proofs {
        let (chunk, row) = (&chunks[index / CHUNK], (index % CHUNK) as i64);
        let (hidden, logits) = (chunk.hidden.select(0, row), chunk.logits.select(0, row));
        let checked = check_proof(proof, &sequences[*index], &hidden, &logits);
        checked.map_err(|why| format!("proof of sequence {index}: {why}"))?;
    }
    Ok(())
}

fn check_proof(proof: &Proof, sequence: &Sequence, hidden: &Tensor, logits: &Tensor) -> Outcome {
    let length = sequence.tokens.len();
    let sketches: Option<Vec<u32>> = (0..length as i64).map(|position| sketch_of(&hidden.select(0, position))).collect();
    if sketches.as_ref() != Some(&proof.sketches) {
        return Err("the sketches are not those of transformers' hidden states".to_owned());
    }
    if proof.logprobs.len() != length - sequence.prompt_length {
        return Err(format!("{} log-probabilities", proof.logprobs.len()));
    }
    let first = sequence.prompt_length.max(1);
    let all = logits.to_kind(Kind::Float).log_softmax(-1, None);
    for (position, got) in (first..length).zip(&proof.logprobs[first - sequence.prompt_length..]) {
        let want = all.double_value(&[position as i64 - 1, i64::from(sequence.tokens[position])]);
        if f64::from(*got) != want {
            return Err(format!("log-probability {got} at position {position}, want {want}"));
        }
    }
    Ok(())
}

/// The protocol's scalar rule on one hidden state; widening to f32 changes neither a value nor an order.
fn sketch_of(hidden: &Tensor) -> Option<u32> {
    let values = Vec::<f32>::try_from(hidden.to_kind(Kind::Float).contiguous()).ok()?;
    sketch(&values, &COEFFICIENTS).ok()
}
