//! The gate on real signed rows: whole windows pass, every kind of damage is held back.

use grail_protocol::advantage::advantages;
use grail_protocol::binding::Binding;
use grail_protocol::commitment::hash_sketches;
use grail_protocol::derivation::{challenge_text, hash_tokens};
use grail_protocol::keys::Hotkey;
use grail_protocol::row::{Commit, Commitments, ModelReference, Rollout};
use grail_store::window_file::{WindowMetadata, encode_group, splice};

use super::*;

const HASH: &str = "0x837511b40caa15ab18f504d83fbab6b52e443339632c0f0ea70d87bb106a79f8";

pub(crate) fn judge(hotkey: &Hotkey) -> Judge {
    Judge {
        hotkey: hotkey.address().into(),
        scheme: hotkey.scheme(),
        window: 600,
        block_hash: HASH.into(),
        checkpoint_window: 570,
        vocab_size: 1000,
        max_positions: 4096,
    }
}

fn metadata(hotkey: &Hotkey) -> WindowMetadata {
    WindowMetadata { wallet: hotkey.address().into(), window_start: 600, timestamp: 1.5 }
}

pub(crate) fn rows(hotkey: &Hotkey, group: i64) -> Vec<WindowRow> {
    rows_of(hotkey, group, 50)
}

/// Rows of so many tokens, which hardly can be compressed.
pub(crate) fn rows_of(hotkey: &Hotkey, group: i64, length: u32) -> Vec<WindowRow> {
    let rewards: Vec<f64> = (0..16).map(|place| f64::from(place % 3)).collect();
    advantages(&rewards)
        .into_iter()
        .zip(rewards)
        .zip(0..)
        .map(|((advantage, reward), place)| row(hotkey, group * 16 + place, length, reward, advantage))
        .collect()
}

fn row(hotkey: &Hotkey, nonce: i64, length: u32, total_reward: f64, advantage: f64) -> WindowRow {
    let mixed = |place: u32| {
        (nonce as u32)
            .wrapping_mul(4096)
            .wrapping_add(place)
            .wrapping_mul(2_654_435_761)
            .rotate_left(15)
            .wrapping_mul(2_246_822_519)
    };
    let tokens: Vec<i32> = (0..length).map(|place| (mixed(place) % 1000) as i32).collect();
    let sketches: Vec<u32> = (0..length).map(|place| mixed(place) >> 2).collect();
    let binding = Binding {
        tokens_hash: &hash_tokens(&tokens),
        randomness: &HASH[2..],
        model_name: "m",
        layer_index: -1,
        commitments_hash: &hash_sketches(&sketches),
    };
    let challenge = challenge_text(HASH, nonce);
    WindowRow {
        window_start: 600,
        block: 603,
        nonce,
        block_hash: HASH.into(),
        randomness: HASH[2..].into(),
        use_drand: false,
        rollout_group: nonce / 16,
        rollout_index: (nonce % 16) as i32,
        total_in_group: 16,
        checkpoint_window: 570,
        commit: Commit {
            signature: hex::encode(hotkey.sign(&binding.digest().unwrap())),
            tokens,
            commitments: Commitments::Sketches(sketches),
            proof_version: "v5".into(),
            model: ModelReference { name: "m".into(), layer_index: -1 },
            beacon: serde_json::json!({ "randomness": &HASH[2..] }),
            rollout: Rollout {
                total_reward,
                advantage,
                success: false,
                token_logprobs: (0..length).map(|place| -0.5 - mixed(place) as f32 / 1e10).collect(),
                prompt_length: 10,
                completion_length: length as i32 - 10,
            },
        },
        timestamp: 1.5,
        signature: hex::encode(hotkey.sign(challenge.as_bytes())),
        challenge,
        hotkey: hotkey.address().into(),
    }
}

fn encoded(hotkey: &Hotkey, group: i64) -> Bytes {
    encode_group(&metadata(hotkey), &rows(hotkey, group)).unwrap().into()
}

#[test]
fn judged_groups_make_a_file_that_passes_and_that_the_full_look_accepts_too() {
    let hotkey = Hotkey::from_uri("//Alice").unwrap();
    let judge = judge(&hotkey);
    let files: Vec<Bytes> = [0, 3, 1_000_500].map(|group| encoded(&hotkey, group)).to_vec();
    let judged: Vec<JudgedGroup> = files.iter().map(|file| judge.judge_group(file).unwrap()).collect();
    assert_eq!(judged[1].nonces, (48..64).collect::<Vec<_>>());
    let file = Bytes::from(splice(&metadata(&hotkey), &files).unwrap());
    judge.judge_file(&file, &judged).unwrap();
    assert_eq!(judge.judge_rows(file).unwrap().len(), 48);
}

#[test]
fn a_file_that_is_not_what_was_judged_is_held_back() {
    let hotkey = Hotkey::from_uri("//Alice").unwrap();
    let judge = judge(&hotkey);
    let files: Vec<Bytes> = [0, 1, 2].map(|group| encoded(&hotkey, group)).to_vec();
    let judged: Vec<JudgedGroup> = files.iter().map(|file| judge.judge_group(file).unwrap()).collect();
    let held_back = |metadata: &WindowMetadata, files: &[Bytes], judged: &[JudgedGroup], word: &str| {
        let file = Bytes::from(splice(metadata, files).unwrap());
        let doubt = judge.judge_file(&file, judged).unwrap_err().to_string();
        assert!(doubt.contains(word), "{word:?} is missing in {doubt}");
    };
    let own = metadata(&hotkey);
    held_back(&own, &files[..2], &judged, "number of groups");
    held_back(&own, &[files[0].clone(), files[2].clone(), files[1].clone()], &judged, "group 1");
    let twice = [&files[..], &files[..1]].concat();
    let judged_twice = [&judged[..], &judged[..1]].concat();
    held_back(&own, &twice, &judged_twice, "nonce");
    held_back(&WindowMetadata { wallet: "5Other".into(), ..own.clone() }, &files, &judged, "wallet");
    held_back(&WindowMetadata { window_start: 630, ..own }, &files, &judged, "window_start");
    let whole = Bytes::from(splice(&metadata(&hotkey), &files).unwrap());
    let mut damaged = whole.to_vec();
    damaged[900] ^= 1;
    assert!(matches!(judge.judge_file(&damaged.into(), &judged), Err(Doubt::Changed { .. })));
    assert!(judge.judge_file(&whole.slice(..whole.len() - 1), &judged).is_err());
}

#[test]
fn a_group_that_a_validator_would_refuse_is_held_back() {
    let hotkey = Hotkey::from_uri("//Alice").unwrap();
    let judge = judge(&hotkey);
    let spoilt = |spoil: fn(&mut Vec<WindowRow>)| {
        let mut rows = rows(&hotkey, 2);
        spoil(&mut rows);
        let file = encode_group(&metadata(&hotkey), &rows).unwrap();
        judge.judge_group(&file.into()).unwrap_err()
    };
    assert!(matches!(spoilt(|rows| rows.truncate(15)), Doubt::Structure(StructureFailure::GroupSize { .. })));
    assert!(matches!(spoilt(|rows| rows[3].nonce = rows[2].nonce), Doubt::Structure(StructureFailure::DuplicateNonce { .. })));
    assert!(matches!(spoilt(|rows| rows[3].nonce = 9000), Doubt::Head { row: 3, .. }));
    assert!(matches!(spoilt(|rows| rows[0].checkpoint_window = 540), Doubt::Head { row: 0, .. }));
    assert!(matches!(spoilt(|rows| rows[1].commit.tokens[20] = 1000), Doubt::Commit { row: 1, .. }));
    assert!(matches!(spoilt(|rows| rows[1].commit.tokens[20] += 1), Doubt::Proof { row: 1, .. }));
    assert!(matches!(spoilt(|rows| rows[7].commit.rollout.advantage += 0.1), Doubt::Group { group: 2, .. }));
    // What a validator's comparisons do not see.
    for no_number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let spoilt = |spoil: &dyn Fn(&mut WindowRow)| {
            let mut rows = rows(&hotkey, 2);
            rows.iter_mut().for_each(spoil);
            let file = encode_group(&metadata(&hotkey), &rows).unwrap();
            judge.judge_group(&file.into()).unwrap_err().to_string()
        };
        let told = |what: &str, doubt: String| assert!(doubt.contains(what) && doubt.contains("no finite number"), "{doubt}");
        told("timestamp", spoilt(&|row| row.timestamp = no_number));
        told("total_reward", spoilt(&|row| row.commit.rollout.total_reward = no_number));
        told("advantage", spoilt(&|row| row.commit.rollout.advantage = no_number));
        told("a log-probability", spoilt(&|row| row.commit.rollout.token_logprobs[20] = no_number as f32));
    }
    let member = |reward: f64| GroupMember { reward, advantage: 0.0, environment_seed: None };
    assert!(
        advantages_follow(&[1.0; 16].map(member)) && !advantages_follow(&[1e308; 16].map(member)),
        "a mean beyond all numbers"
    );
    let two = [rows(&hotkey, 2), rows(&hotkey, 3)].concat();
    let file = encode_group(&metadata(&hotkey), &two).unwrap();
    assert!(matches!(judge.judge_group(&file.into()), Err(Doubt::NotOneGroup { row_groups: 1, groups: 2 })));
}
