//! Randomness, sketches, commitments: what must agree to the bit.

use grail_protocol::commitment::hash_sketches;
use grail_protocol::python_json::{CANONICAL, DEFAULT, SPACED_SORTED, number::python_int, text::rewrite};
use grail_protocol::python_random::PythonRandom;
use grail_protocol::row::Commitments;
use grail_protocol::{challenge, derivation, hexadecimal, prf, sketch, window};
use half::bf16;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::values::{binary, bytes, integers, items, magnitude, size, sizes, text};
use crate::report::{Case, Cases, Report, bytes as file_bytes, json, json_lines};

pub fn run(report: &mut Report) {
    report.check("grail/prf.json", |path, cases| prfs(&json(path), cases));
    report.check("grail/python_random.json", |path, cases| generators(&json(path), cases));
    report.check("grail/r_vec.json", |path, cases| coefficients(&json(path), cases));
    report.check("grail/indices.json", |path, cases| positions(&json(path), cases));
    report.check("grail/bucket.json", |path, cases| buckets(&json(path), cases));
    report.check("grail/commitments.json.gz", |path, cases| sketches(&json(path), cases));
    report.check("grail/commitment_hash.json", |path, cases| {
        commitment_hashes(&json(path), &String::from_utf8(file_bytes(path)).expect("UTF-8"), cases);
    });
    report.check("grail/tolerance.json", |path, cases| comparisons(&json(path), cases));
    report.check("env/sketch_tolerance.json", |path, cases| tolerances(&json(path), cases));
    report.check("grail/randomness.json", |path, cases| randomness(&json(path), cases));
    report.check("env/window_randomness.jsonl", |path, cases| window_randomness(&json_lines(path), cases));
    report.check("grail/derivations.json", |path, cases| derivations(&json(path), cases));
    report.check("env/env_seed.jsonl", |path, cases| seeds(&json_lines(path), "hotkey", cases));
    report.check("env/completion_digest.jsonl", |path, cases| digests(&json_lines(path), cases));
}

fn prfs(file: &Value, cases: &mut Cases) {
    let run = |case: &Value| {
        let parts: Vec<Vec<u8>> = items(&case["parts_hex"]).iter().map(bytes).collect();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let length = usize::try_from(case["out_bytes"].as_i64().expect("a length")).map_err(|error| error.to_string())?;
        prf::prf(&bytes(&case["label_hex"]), &parts, length).map_err(|error| error.to_string())
    };
    for (index, case) in items(&file["cases"]).iter().enumerate() {
        cases.equal(index, run(case).map(hex::encode), Ok(text(&case["output_hex"]).to_owned()));
    }
    for (index, case) in items(&file["errors"]).iter().enumerate() {
        cases.equal(format!("error {index}"), run(case).is_err(), true);
    }
}

fn generators(file: &Value, cases: &mut Cases) {
    for (index, case) in items(&file["cases"]).iter().enumerate() {
        let fresh = || match text(&case["seed_kind"]) {
            "bytes" => PythonRandom::from_bytes(&bytes(&case["seed"])),
            _ => PythonRandom::from_magnitude(&magnitude(text(&case["seed"]))),
        };
        let name = |what: &str| format!("{index} {what}");
        let mut random = fresh();
        let words: Vec<i64> = items(&case["u32"]).iter().map(|_| i64::from(random.next_u32())).collect();
        cases.equal(name("u32"), words, integers(&case["u32"]));
        let mut random = fresh();
        let widths = items(&case["getrandbits_widths"]).iter();
        let bits: Vec<usize> = widths.map(|width| random.getrandbits(size(width) as u32) as usize).collect();
        cases.equal(name("getrandbits"), bits, sizes(&case["getrandbits"]));
        for (bound, want) in case["randbelow"].as_object().into_iter().flatten() {
            let mut random = fresh();
            let got: Vec<usize> =
                sizes(want).iter().map(|_| random.randbelow(bound.parse().expect("a bound")) as usize).collect();
            cases.equal(name(bound), got, sizes(want));
        }
        let mut shuffled: Vec<usize> = (0..40).collect();
        fresh().shuffle(&mut shuffled);
        cases.equal(name("shuffle"), shuffled, sizes(&case["shuffle_range40"]));
        for (key, want) in case["sample_range_n,k_unsorted"].as_object().into_iter().flatten() {
            let (population, count) = key.split_once(',').expect("n,k");
            let got = fresh().sample(population.parse().expect("n"), count.parse().expect("k"));
            cases.equal(name(key), got, sizes(want));
        }
    }
}

fn coefficients(file: &Value, cases: &mut Cases) {
    let run = |randomness: &Value| sketch::coefficients(text(randomness)).map(|values| values.map(i64::from).to_vec());
    for case in items(&file["cases"]) {
        let name = text(&case["randomness"]);
        let normalised = hexadecimal::randomness_bytes(name);
        cases.equal(format!("{name} bytes"), normalised.map(hex::encode).ok().as_deref(), case["normalized_bytes_hex"].as_str());
        cases.equal(name, run(&case["randomness"]), Ok(integers(&case["r_vec"])));
    }
    for case in items(&file["errors"]) {
        cases.equal(text(&case["randomness"]), run(&case["randomness"]).is_err(), true);
    }
    let empty = &file["empty_string"];
    if empty["ok"].is_array() {
        cases.equal("empty", run(&empty["randomness"]), Ok(integers(&empty["ok"])));
    }
}

fn positions(file: &Value, cases: &mut Cases) {
    for (index, case) in items(&file["cases"]).iter().enumerate() {
        let tokens = ruled_tokens(case);
        let hash = derivation::hash_tokens(&tokens);
        if let Some(want) = case["tokens_sha256"].as_str() {
            cases.equal(format!("{index} tokens hash"), hex::encode(hash), want.to_owned());
        }
        if let Some(want) = case["seed_material_hex"].as_str() {
            let seed = challenge::open_seed(&hash, text(&case["randomness"])).map(hex::encode);
            cases.equal(format!("{index} seed"), seed, Ok(want.to_owned()));
        }
        cases.equal(index, opened(case, &tokens), Ok(sizes(&case["indices"])));
    }
    for (index, case) in items(&file["errors"]).iter().enumerate() {
        cases.equal(format!("error {index}"), opened(case, &integers(&case["tokens"])).is_err(), true);
    }
}

fn opened(case: &Value, tokens: &[i64]) -> Result<Vec<usize>, String> {
    let [start, end, count] = ["start", "end", "k"].map(|key| usize::try_from(case[key].as_i64().expect("an integer")));
    let number = |number: Result<usize, std::num::TryFromIntError>| number.map_err(|error| error.to_string());
    challenge::open_positions(tokens, text(&case["randomness"]), number(start)?, number(end)?, number(count)?)
        .map_err(|error| error.to_string())
}

/// Long sequences are given by a rule.
fn ruled_tokens(case: &Value) -> Vec<i64> {
    if case["tokens"].is_array() {
        return integers(&case["tokens"]);
    }
    let [count, factor, addend] = ["n_tokens", "mul", "add"].map(|key| case[key].as_i64().expect("an integer"));
    (0..count).map(|i| (i * i * factor + i * 7 + addend) % 151_936).collect()
}

fn buckets(file: &Value, cases: &mut Cases) {
    let bits = |value: &Value| u32::from_str_radix(text(value), 16).expect("hex");
    for case in items(&file["thresholds"]) {
        let bucket = case["bucket"].as_i64().expect("a bucket");
        let (f32_bits, bf16_bits) = (bits(&case["smallest_f32_bits"]), bits(&case["smallest_bf16_bits"]) as u16);
        let single = [f32_bits, f32_bits - 1].map(|bits| i64::from(sketch::bucket(f32::from_bits(bits))));
        cases.equal(format!("f32 edge of {bucket}"), single, [bucket, bucket - 1]);
        let half = [bf16_bits, bf16_bits - 1].map(|bits| i64::from(sketch::bucket(bf16::from_bits(bits))));
        cases.equal(format!("bf16 edge of {bucket}"), half, [bucket, bucket - 1]);
    }
    for case in items(&file["cases"]) {
        let got = i64::from(sketch::bucket(f32::from_bits(bits(&case["f32_bits"]))));
        cases.equal(text(&case["f32_bits"]), Some(got), case["scalar"].as_i64());
    }
}

fn sketches(file: &Value, cases: &mut Cases) {
    for (index, case) in items(&file["cases"]).iter().enumerate() {
        let name = format!("{index} {}", case["name"]);
        let coefficients = sketch::coefficients(text(&case["randomness"])).expect("hex");
        cases.equal(format!("{name} r_vec"), coefficients.map(i64::from).to_vec(), integers(&case["r_vec"]));
        let hidden = binary(&case["hidden_b64_f32le"]);
        let rows = hidden.chunks(size(&case["hidden_dim"]));
        for (position, (row, want)) in rows.zip(items(&case["positions"])).enumerate() {
            let rounded: Vec<bf16> = row.iter().copied().map(bf16::from_f32).collect();
            cases.case(format!("{name} position {position}"), || match text(&case["dtype"]) {
                "bf16" => one_sketch(&rounded, &coefficients, want),
                _ => one_sketch(row, &coefficients, want),
            });
        }
    }
}

fn one_sketch<A: sketch::Activation>(hidden: &[A], coefficients: &sketch::Coefficients, want: &Value) -> Case {
    let got = sketch::sketch(hidden, coefficients).map_err(|error| error.to_string())?;
    let largest = sketch::largest_activations(hidden).map_err(|error| error.to_string())?;
    let buckets: Vec<i64> = largest.iter().map(|index| i64::from(sketch::bucket(hidden[*index]))).collect();
    if want["sketch_lowest_index_tiebreak"].as_u64() != Some(u64::from(got)) {
        return Err(format!("got {got}, want {}", want["sketch_lowest_index_tiebreak"]));
    }
    // At a tie the reference's own choice of positions is unspecified.
    if want["tie_at_boundary"] == Value::Bool(true) {
        return Ok(());
    }
    let agree = largest.to_vec() == sizes(&want["topk_indices_sorted"]) && buckets == integers(&want["buckets"]);
    if agree { Ok(()) } else { Err(format!("positions {largest:?}, buckets {buckets:?}")) }
}

fn commitment_hashes(file: &Value, raw: &str, cases: &mut Cases) {
    // Integers beyond 64 bits survive only in the text, so the cases are read from it.
    let whole = rewrite(raw, DEFAULT).expect("the file is JSON");
    let marker = "\"commitments\": ";
    let starts = whole.match_indices(marker).map(|(position, _)| position + marker.len());
    for (index, (case, start)) in items(&file["cases"]).iter().zip(starts).enumerate() {
        let end = whole[start..].find(", \"compact_json\"").expect("the key after the commitments");
        let commitments = &whole[start..start + end];
        let styled = |style| rewrite(commitments, style).expect("JSON");
        let hash = |text: &str| hex::encode(Sha256::digest(text));
        for (style, key) in
            [(CANONICAL, "compact_json"), (DEFAULT, "parquet_column_string"), (SPACED_SORTED, "spaced_sorted_json")]
        {
            cases.equal(format!("{index} {key}"), Some(styled(style).as_str()), case[key].as_str());
        }
        cases.equal(format!("{index} hash"), Some(hash(&styled(CANONICAL)).as_str()), case["hash_commitments_hex"].as_str());
        cases.equal(format!("{index} spaced"), Some(hash(&styled(SPACED_SORTED)).as_str()), case["spaced_sha256_hex"].as_str());
        if let Commitments::Sketches(sketches) = Commitments::from(case["commitments"].clone()) {
            cases.equal(
                format!("{index} streamed"),
                Some(hex::encode(hash_sketches(&sketches)).as_str()),
                case["hash_commitments_hex"].as_str(),
            );
        }
    }
}

fn comparisons(file: &Value, cases: &mut Cases) {
    tolerances(&file["tolerance"], cases);
    for (index, case) in items(&file["compare"]).iter().enumerate() {
        let sketch_of = |key: &str| u32::try_from(size(&case[key])).expect("a sketch");
        let distance = sketch::distance(sketch_of("validator_sketch"), sketch_of("miner_sketch"));
        cases.equal(format!("compare {index}"), Some(i64::from(distance)), case["mod_diff"].as_i64());
        let valid = distance <= sketch::tolerance(size(&case["position"]));
        cases.equal(format!("compare {index} valid"), Some(valid), case["valid"].as_bool());
    }
    for (index, case) in items(&file["out_of_range_miner_sketch_REFERENCE_ACCEPTS"]).iter().enumerate() {
        let commitment = serde_json::json!({ "sketch": case["miner_sketch"] });
        cases.equal(format!("out of range {index} is refused"), sketch::claimed_sketch(&commitment), None);
    }
}

fn tolerances(list: &Value, cases: &mut Cases) {
    for case in items(list) {
        let position = size(&case["position"]);
        cases.equal(position, Some(u64::from(sketch::tolerance(position))), case["tolerance"].as_u64());
    }
}

fn randomness(file: &Value, cases: &mut Cases) {
    for (index, case) in items(&file["cases"]).iter().enumerate() {
        let (hash, drand) = (text(&case["block_hash"]), text(&case["drand_randomness"]));
        let got = [
            derivation::miner_randomness(hash, Some(drand)),
            derivation::miner_randomness(hash, None),
            derivation::validator_randomness(hash, Some(drand)),
            derivation::validator_randomness(hash, None),
        ];
        let want = [
            &case["miner_with_drand"]["randomness"],
            &case["miner_without_drand"]["randomness"],
            &case["validator_with_drand"],
            &case["validator_without_drand"],
        ];
        cases.equal(index, got.map(Value::from), want.map(Value::clone));
    }
    let raised = &file["miner_when_drand_call_raises"];
    if raised.is_object() {
        let got = derivation::miner_randomness(text(&raised["window_block_hash"]), None);
        cases.equal("drand raises", Some(got.as_str()), raised["randomness"].as_str());
    }
    for case in items(&file["quicknet_round_at_time"]) {
        let round = derivation::drand_round(case["timestamp"].as_i64().expect("seconds"));
        cases.equal(format!("round at {}", case["timestamp"]), Some(round), case["round"].as_i64());
    }
    for case in items(&file["window_start"]) {
        let start = window::window_start(case["block"].as_u64().expect("a block"));
        cases.equal(format!("window of {}", case["block"]), Some(start), case["window_start"].as_u64());
    }
}

fn window_randomness(lines: &[Value], cases: &mut Cases) {
    for (index, case) in lines.iter().enumerate() {
        let hash = text(&case["current_window_hash"]);
        let drand = case["drand_randomness"].as_str();
        cases.equal(index, Some(derivation::validator_randomness(hash, None).as_str()), case["validator_no_drand"].as_str());
        cases.equal(index, Some(derivation::miner_randomness(hash, None).as_str()), case["miner_no_drand"].as_str());
        if let Some(both) = case["with_drand_both_roles"].as_str() {
            let got = [derivation::validator_randomness(hash, drand), derivation::miner_randomness(hash, drand)];
            cases.equal(index, got, [both.to_owned(), both.to_owned()]);
        }
    }
}

fn derivations(file: &Value, cases: &mut Cases) {
    seeds(items(&file["env_seed"]), "wallet", cases);
    for case in items(&file["nonce"]) {
        let (group, index) = (case["group"].as_i64().expect("a group"), size(&case["rollout_index"]) as u32);
        cases.equal(format!("nonce {group} {index}"), derivation::nonce(group, index), case["nonce"].as_i64());
    }
    for (index, case) in items(&file["hash_tokens"]).iter().enumerate() {
        let hash = hex::encode(derivation::hash_tokens(&integers(&case["tokens"])));
        cases.equal(format!("tokens {index}"), Some(hash.as_str()), case["sha256"].as_str());
    }
    digests(items(&file["completion_digest"]), cases);
}

fn seeds(list: &[Value], hotkey: &str, cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let problem = case["problem_index"].as_i64().expect("an index");
        let seed = derivation::environment_seed(text(&case[hotkey]), text(&case["window_hash"]), problem);
        cases.equal(format!("seed {index}"), Some(u64::from(seed)), case["seed"].as_u64());
    }
}

fn digests(list: &[Value], cases: &mut Cases) {
    for (index, case) in list.iter().enumerate() {
        let digest = derivation::completion_digest(&integers(&case["tokens"]), python_int(&case["prompt_length"]));
        cases.equal(format!("digest {index}"), digest.as_deref(), case["digest"].as_str());
    }
}
