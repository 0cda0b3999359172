//! `vectors/sglang`: what servers are started with and sent, and what their answers mean. The stand-in that made the vectors
//! ran the reference; where the reference is wrong (a tensor-parallel setting it ignores, a success it does not read), the
//! check says what differs.

use std::path::Path;

use grail_engines::{Engine, Installed, ServerOptions, warm_up};
use grail_protocol::generation_params::GenerationParams;
use serde_json::Value;

use crate::client;
use crate::report::{Cases, Report};

/// Checks the whole folder.
pub fn run(report: &mut Report) {
    report.check("sglang/generate.json", |path, cases| {
        let file = load(path);
        requests(&file, Engine::Sglang, cases);
        client::requests(&file, cases);
    });
    report.check("sglang/vllm_completions.json", |path, cases| requests(&load(path), Engine::Vllm, cases));
    report.check("sglang/generation_params.json", |path, cases| params(&load(path), cases));
    report.check("sglang/launch.json", |path, cases| launch(&load(path), cases));
    report.check("sglang/readiness.json", |path, cases| readiness(&load(path), cases));
    report.check("sglang/weight_sync.json", client::weights);
}

fn load(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("the file can be read");
    serde_json::from_str(&text).expect("the file is JSON")
}

pub fn sampling(of: &Value) -> GenerationParams {
    let number = |key: &str| of[key].as_f64().expect("a number");
    GenerationParams {
        max_new_tokens: of["max_new_tokens"].as_u64().expect("a count"),
        temperature: number("temperature"),
        top_p: number("top_p"),
        top_k: of["top_k"].as_u64().map(|k| k as u32),
        repetition_penalty: number("repetition_penalty"),
    }
}

pub fn ids(of: &Value) -> Vec<u32> {
    of.as_array().into_iter().flatten().filter_map(Value::as_u64).map(|id| id as u32).collect()
}

/// The body on the wire, byte for byte, and what is made of the reply.
fn requests(file: &Value, engine: Engine, cases: &mut Cases) {
    let first = &file["cases"][0];
    for case in file["cases"].as_array().into_iter().flatten() {
        let name = case["case"].as_str().unwrap_or_default();
        // A miner never gives a seed.
        if let Some(body) = case["first_request"]["body"].as_str().filter(|_| case["seeds"].is_null()) {
            let sent: Value = serde_json::from_str(body).expect("a body");
            let prompt = ids(if engine == Engine::Sglang { &sent["input_ids"] } else { &sent["prompt"] });
            let of = if case["params"].is_object() { &case["params"] } else { &first["params"] };
            let params = if of.is_object() { sampling(of) } else { vllm_sampling(&sent) };
            let wanted = String::from_utf8(engine.request(&prompt, &params)).expect("text");
            cases.equal(format!("{name}: body"), wanted.as_str(), body);
        }
        if !case["response_example"].is_null() {
            let reply = engine.reply(case["response_example"].to_string().as_bytes(), 8192);
            let returned = case["returned"][0][0].as_array().map(|tokens| ids(&Value::Array(tokens.clone())));
            let prompt = if engine == Engine::Sglang { ids(&case["prompts"][0]) } else { vec![1, 2, 3] };
            // An empty completion, or an exception, is a refusal here: the group is dropped, as it is there.
            let want =
                returned.and_then(|tokens| tokens.strip_prefix(&prompt[..]).map(<[u32]>::to_vec)).filter(|ids| !ids.is_empty());
            cases.equal(format!("{name}: reply"), reply.ok().map(|reply| reply.ids), want);
        }
    }
}

fn vllm_sampling(sent: &Value) -> GenerationParams {
    let mut of = sent.clone();
    of["max_new_tokens"] = sent["max_tokens"].clone();
    sampling(&of)
}

fn params(file: &Value, cases: &mut Cases) {
    for (index, case) in file.as_array().into_iter().flatten().enumerate() {
        let read = GenerationParams::from_json(&case["generation_params"]).ok();
        let want = (case["ok"] == true).then(|| sampling(&case["result"]));
        cases.equal(index, read, want);
    }
}

fn launch(file: &Value, cases: &mut Cases) {
    for case in file["cases"].as_array().into_iter().flatten() {
        let name = case["case"].as_str().unwrap_or_default();
        let config = &case["pipeline_config"];
        let count = |key: &str| config[key].as_u64().expect("a count") as u32;
        let words = |key: &str| -> Vec<String> {
            case[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        for (engine, key, help) in [
            (Engine::Sglang, "sglang_argv", "--port --load-balance-method --disable-piecewise-cuda-graph --weight-version"),
            (Engine::Vllm, "vllm_argv", "--port --enable-sleep-mode"),
        ] {
            let mut want = words(key).split_off(1);
            let model = want.iter().position(|word| word.starts_with("--model")).map(|at| want[at + 1].clone()).expect("a model");
            let tokenizer = want.iter().position(|word| word == "--tokenizer").map(|at| want[at + 1].clone());
            // The release that the reference pins.
            let release = if engine == Engine::Sglang { "0.5.10" } else { "0.10.2" };
            let installed = Installed::read(engine, release, help).expect("a release");
            let options = ServerOptions {
                model,
                port: 30123,
                cpu: false,
                dtype: "auto".into(),
                tensor_parallel: count("vllm_tp"),
                memory_share: Some(config["gpu_memory_utilization"].as_f64().expect("a share")),
                context_length: count("max_model_len"),
                max_running: count("max_num_seqs"),
                disable_cuda_graph: false,
                tokenizer,
                weight_version: "default".into(),
                extra: Vec::new(),
            };
            let mut got = vec!["-m".to_owned(), engine.module().to_owned()];
            got.extend(installed.command(&options).expect("a command line"));
            if engine == Engine::Sglang {
                // The reference ignores its tensor-parallel setting, and never limits what runs.
                let at = want.iter().position(|word| word == "--tp-size").expect("--tp-size");
                want[at + 1] = count("vllm_tp").to_string();
                want.extend(["--max-running-requests".into(), count("max_num_seqs").to_string()]);
                want.extend(["--weight-version".into(), "default".into()]);
                // The reference lets code of a checkpoint run, which is left out here on purpose: it would run as the miner's
                // user, and no family that is mined needs any. This is the only flag that is left out.
                let at = want.iter().position(|word| word == "--trust-remote-code").expect("--trust-remote-code");
                want.remove(at);
            }
            cases.equal(format!("{name}: {key}"), got, want);
        }
        let extra = &case["vllm_env_extra"];
        for (variable, value) in grail_engines::environment(Engine::Vllm, false) {
            cases.equal(format!("{name}: {variable}"), Some(value), extra[variable].as_str());
        }
    }
}

fn readiness(file: &Value, cases: &mut Cases) {
    let asked = &file["requests"][1];
    let body: Value = asked["body"].as_str().and_then(|body| serde_json::from_str(body).ok()).expect("a body");
    let (path, ours) = warm_up(body["model"].as_str().expect("a model"));
    cases.equal("warm-up path", Some(path), asked["path"].as_str());
    cases.equal("warm-up body", ours, body);
}
