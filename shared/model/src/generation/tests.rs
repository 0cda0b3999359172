//! The engine against the plain forward pass.

use safetensors::Dtype;
use tch::Device;

use super::*;
use crate::config::Architecture;
use crate::fixtures;
use crate::model::{LoadOptions, Model, Precision};

fn load(directory: &std::path::Path) -> Model {
    Model::load(directory, LoadOptions { device: Device::Cpu, precision: Precision::F32 }).unwrap()
}

fn engine(seed: u64, max_running: usize) -> (tempfile::TempDir, Engine) {
    engine_of(Architecture::Qwen2, seed, max_running)
}

fn engine_of(architecture: Architecture, seed: u64, max_running: usize) -> (tempfile::TempDir, Engine) {
    let directory = fixtures::checkpoint_of(&fixtures::family(architecture), seed, Dtype::F32);
    let engine = Engine::new(load(directory.path()), vec![2], "first", EngineOptions { max_running, seed: 7 }).unwrap();
    (directory, engine)
}

fn greedy(prompt: &[u32], max_new_tokens: usize) -> Request {
    let sampling = Sampling { temperature: 0.0, max_new_tokens: Some(max_new_tokens), ignore_eos: true, ..Sampling::default() };
    Request { prompt: prompt.to_vec(), sampling }
}

/// Greedy decoding by the full forward pass, one whole sequence per token.
fn by_full_forward(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let hidden = model.hidden(&[&tokens]).unwrap();
        let logits = model.logits(&hidden.narrow(1, tokens.len() as i64 - 1, 1)).unwrap();
        tokens.push(u32::try_from(logits.argmax(-1, false).int64_value(&[0, 0])).unwrap());
    }
    tokens.split_off(prompt.len())
}

fn run(engine: &mut Engine) -> Vec<Finished> {
    let mut finished = Vec::new();
    while !engine.is_idle() {
        finished.extend(engine.step().unwrap());
    }
    finished.sort_by_key(|finished| finished.ticket);
    finished
}

#[test]
fn greedy_decoding_is_the_argmax_of_the_full_forward_while_rows_join_and_leave() {
    for architecture in [Architecture::Qwen2, Architecture::Qwen3, Architecture::Llama] {
        joins_and_leaves(architecture);
    }
}

fn joins_and_leaves(architecture: Architecture) {
    let (directory, mut engine) = engine_of(architecture, 11, 3);
    let model = load(directory.path());
    let prompts: [&[u32]; 6] = [&[5, 6, 7], &[9], &[5, 6, 7], &[50, 40, 30, 20, 10, 3, 4], &[80; 20], &[1, 90]];
    let counts = [9, 30, 2, 12, 1, 25];
    let mut tickets: Vec<Ticket> = Vec::new();
    let mut finished = Vec::new();
    for (prompt, count) in prompts.iter().zip(counts) {
        tickets.push(engine.submit(greedy(prompt, count)).unwrap());
        finished.extend(engine.step().unwrap());
    }
    finished.extend(run(&mut engine));
    finished.sort_by_key(|finished| finished.ticket);
    for (((finished, prompt), count), ticket) in finished.iter().zip(prompts).zip(counts).zip(tickets) {
        assert_eq!((finished.ticket, &finished.reason), (ticket, &FinishReason::Length));
        assert_eq!(finished.output, by_full_forward(&model, prompt, count), "{architecture:?}, prompt {prompt:?}");
    }
}

#[test]
fn the_cache_grows_past_its_first_size() {
    let (directory, mut engine) = engine(12, 2);
    let model = load(directory.path());
    engine.submit(greedy(&[4, 5], 126)).unwrap();
    engine.submit(greedy(&[6], 100)).unwrap();
    let finished = run(&mut engine);
    assert_eq!(finished[0].output, by_full_forward(&model, &[4, 5], 126));
    assert_eq!(finished[1].output, by_full_forward(&model, &[6], 100));
}

#[test]
fn a_stop_id_ends_the_output_and_is_part_of_it() {
    let (_directory, mut engine) = engine(13, 4);
    engine.submit(greedy(&[4, 5, 6], 20)).unwrap();
    let free = run(&mut engine).remove(0).output;
    let stop = free[7];
    let first = free.iter().position(|&token| token == stop).unwrap();
    let mut request = greedy(&[4, 5, 6], 20);
    request.sampling.stop_token_ids = vec![stop];
    engine.submit(request).unwrap();
    let stopped = run(&mut engine).remove(0);
    assert_eq!(stopped.output, free[..=first]);
    assert_eq!(stopped.reason, FinishReason::Stop { matched: stop });
}

#[test]
fn seeds_repeat_and_differ() {
    let (_directory, mut engine) = engine(14, 4);
    for seed in [1, 1, 2] {
        let sampling = Sampling { seed: Some(seed), max_new_tokens: Some(24), ignore_eos: true, ..Sampling::default() };
        engine.submit(Request { prompt: vec![3, 4], sampling }).unwrap();
    }
    let finished = run(&mut engine);
    assert_eq!(finished[0].output, finished[1].output);
    assert_ne!(finished[0].output, finished[2].output);
}

#[test]
fn abort_returns_what_is_there_and_leaves_the_others() {
    let (directory, mut engine) = engine(15, 2);
    let model = load(directory.path());
    let aborted = engine.submit(greedy(&[4, 5], 40)).unwrap();
    let kept = engine.submit(greedy(&[6, 7], 10)).unwrap();
    let waiting = engine.submit(greedy(&[8], 10)).unwrap();
    (0..3).for_each(|_| drop(engine.step().unwrap()));
    assert_eq!(engine.abort(aborted, "gone").unwrap().unwrap().output.len(), 3);
    assert_eq!(engine.abort(waiting, "gone").unwrap().unwrap().output.len(), 0);
    assert_eq!(engine.abort(aborted, "gone").unwrap(), None);
    let finished = run(&mut engine);
    assert_eq!((finished.len(), finished[0].ticket), (1, kept));
    assert_eq!(finished[0].output, by_full_forward(&model, &[6, 7], 10));
}

#[test]
fn a_request_that_crosses_a_reload_says_which_weights_sampled_what() {
    let (directory, mut engine) = engine(16, 2);
    let second = fixtures::checkpoint(17, Dtype::F32);
    let (before, after) = (load(directory.path()), load(second.path()));
    engine.submit(greedy(&[4, 5, 6], 8)).unwrap();
    (0..3).for_each(|_| drop(engine.step().unwrap()));
    engine.reload(second.path(), vec![2], "second").unwrap();
    let finished = run(&mut engine).remove(0);
    let mut want = by_full_forward(&before, &[4, 5, 6], 3);
    want.extend(by_full_forward(&after, &[&[4, 5, 6], want.as_slice()].concat(), 5));
    assert_eq!(finished.output, want);
    let spans: Vec<_> = finished.versions.iter().map(|span| (&*span.version, span.start, span.end)).collect();
    assert_eq!(spans, [("first", 0, 3), ("second", 3, 8)]);
}

#[test]
fn bad_requests_are_refused_by_field() {
    let (_directory, mut engine) = engine(18, 2);
    let bad = |change: fn(&mut Request)| {
        let mut request = greedy(&[4], 4);
        change(&mut request);
        request
    };
    let cases = [
        (bad(|request| request.prompt.clear()), "input_ids"),
        (bad(|request| request.prompt.push(96)), "outside the vocabulary of 96"),
        (bad(|request| request.sampling.max_new_tokens = Some(128)), "exceed the context of 128"),
        (bad(|request| request.sampling.temperature = -0.1), "temperature"),
        (bad(|request| request.sampling.temperature = f64::NAN), "temperature"),
        (bad(|request| request.sampling.top_p = 0.0), "top_p"),
        (bad(|request| request.sampling.top_k = Some(0)), "top_k"),
        (bad(|request| request.sampling.repetition_penalty = 0.0), "repetition_penalty"),
    ];
    for (request, word) in cases {
        let error = engine.submit(request).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    engine.submit(greedy(&[4], 0)).unwrap();
    let finished = run(&mut engine).remove(0);
    assert_eq!((finished.output.len(), finished.reason), (0, FinishReason::Length));
}

/// Weights that compute NaN wherever token 90 has been: only its embedding has the one channel that the MLP blows up.
fn overflowing_at_90(directory: &std::path::Path) {
    const CHANNEL: usize = 5;
    let document = fixtures::family(Architecture::Llama);
    let mut tensors = fixtures::weights(directory, &document, 21, Dtype::F32);
    for (name, (_, shape, bytes)) in &mut tensors {
        let columns = shape.last().copied().unwrap_or(1);
        let mut set = |row: usize, column: usize, value: f32| {
            let at = 4 * (row * columns + column);
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        let rows = if shape.len() == 2 { shape[0] } else { 1 };
        if name.contains("embed_tokens") {
            (0..rows).for_each(|row| set(row, CHANNEL, f32::from(u8::from(row == 90))));
        } else if name.contains("gate_proj.weight") || name.contains("up_proj.weight") {
            (0..rows).for_each(|row| set(row, CHANNEL, 1e30));
        } else if name.contains("o_proj.weight") || name.contains("down_proj.weight") {
            (0..columns).for_each(|column| set(CHANNEL, column, 0.0));
        } else if name.contains("o_proj.bias") || name.contains("down_proj.bias") {
            set(0, CHANNEL, 0.0);
        }
    }
    fixtures::write(&directory.join("model.safetensors"), &tensors);
}

#[test]
fn a_row_that_overflowed_leaves_nothing_to_the_next_one_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    overflowing_at_90(directory.path());
    let model = load(directory.path());
    let mut engine = Engine::new(load(directory.path()), vec![2], "first", EngineOptions { max_running: 3, seed: 7 }).unwrap();
    let long: Vec<u32> = (0..40).map(|at| if at == 20 { 90 } else { at }).collect();
    for place in 0..3 {
        // The overflowing one among others: it leaves at once, and whoever moves or comes into its place is shorter.
        for at in 0..3 {
            engine.submit(greedy(if at == place { &long } else { &[4, 5, 6] }, 12)).unwrap();
        }
        engine.submit(greedy(&[7, 8], 12)).unwrap();
        let finished = run(&mut engine);
        for (at, finished) in finished.iter().enumerate() {
            if at == place {
                assert!(matches!(&finished.reason, FinishReason::Abort { message } if message.contains("NaN")), "{finished:?}");
            } else {
                let prompt: &[u32] = if at == 3 { &[7, 8] } else { &[4, 5, 6] };
                assert_eq!(finished.output, by_full_forward(&model, prompt, 12), "{at}, overflowed was {place}");
            }
        }
    }
}

#[test]
fn a_good_update_after_overflowing_weights_serves_as_if_they_had_never_been() {
    let (bad, good) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let document = fixtures::config();
    let mut tensors = fixtures::weights(bad.path(), &document, 22, Dtype::F32);
    let norm = tensors.get_mut("model.layers.0.input_layernorm.weight").unwrap();
    norm.2 = norm.2.chunks(4).flat_map(|_| 1e38f32.to_le_bytes()).collect();
    fixtures::write(&bad.path().join("model.safetensors"), &tensors);
    fixtures::write(&good.path().join("model.safetensors"), &fixtures::weights(good.path(), &document, 23, Dtype::F32));
    let mut engine = Engine::new(load(bad.path()), vec![2], "bad", EngineOptions { max_running: 2, seed: 7 }).unwrap();
    let long: Vec<u32> = (0..60).collect();
    for prompt in [&long[..], &[4, 5]] {
        engine.submit(greedy(prompt, 30)).unwrap();
    }
    let finished = run(&mut engine);
    let aborted = |finished: &Finished| matches!(&finished.reason, FinishReason::Abort { message } if message.contains("NaN"));
    assert!(finished.iter().all(aborted), "{finished:?}");
    // And one that is in the middle when the update comes.
    engine.submit(greedy(&long, 30)).unwrap();
    engine.reload(good.path(), vec![2], "good").unwrap();
    engine.submit(greedy(&[4, 5], 30)).unwrap();
    let model = load(good.path());
    for (finished, prompt) in run(&mut engine).iter().zip([&long[..], &[4, 5]]) {
        assert_eq!(finished.output, by_full_forward(&model, prompt, 30));
    }
}
