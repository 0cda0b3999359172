//! The canonical JSON of a typed commit, streamed: equal byte for byte to writing the value that a reader of the file
//! restores, where log-probabilities are `f32` widened to `f64` (grail-protocol 6.3).

use sha2::{Digest, Sha256};

use super::{Buffered, CANONICAL, Sink, write_float, write_integer, write_list, write_text, write_value};
use crate::row::{Commit, Commitments, Rollout};

/// SHA-256 of the canonical JSON of a commit, without building the text.
#[must_use]
pub fn hash_commit(commit: &Commit) -> [u8; 32] {
    let mut hasher = Buffered::new(Sha256::new());
    write_commit(commit, &mut hasher);
    hasher.into_inner().finalize().into()
}

/// Writes the canonical JSON of a commit: keys sorted, no spaces.
pub fn write_commit(commit: &Commit, sink: &mut impl Sink) {
    sink.write(r#"{"beacon":"#);
    write_value(&commit.beacon, CANONICAL, sink);
    sink.write(r#","commitments":"#);
    write_commitments(&commit.commitments, sink);
    sink.write(r#","model":{"layer_index":"#);
    write_integer(i64::from(commit.model.layer_index), sink);
    sink.write(r#","name":"#);
    write_text(&commit.model.name, sink);
    sink.write(r#"},"proof_version":"#);
    write_text(&commit.proof_version, sink);
    sink.write(r#","rollout":"#);
    write_rollout(&commit.rollout, sink);
    sink.write(r#","signature":"#);
    write_text(&commit.signature, sink);
    sink.write(r#","tokens":"#);
    write_list(commit.tokens.iter(), CANONICAL, sink, |token, sink| write_integer(i64::from(*token), sink));
    sink.write("}");
}

fn write_rollout(rollout: &Rollout, sink: &mut impl Sink) {
    sink.write(r#"{"advantage":"#);
    write_float(rollout.advantage, sink);
    sink.write(r#","completion_length":"#);
    write_integer(i64::from(rollout.completion_length), sink);
    sink.write(r#","prompt_length":"#);
    write_integer(i64::from(rollout.prompt_length), sink);
    sink.write(r#","success":"#);
    sink.write(if rollout.success { "true" } else { "false" });
    sink.write(r#","token_logprobs":"#);
    write_list(rollout.token_logprobs.iter(), CANONICAL, sink, |logprob, sink| write_float(f64::from(*logprob), sink));
    sink.write(r#","total_reward":"#);
    write_float(rollout.total_reward, sink);
    sink.write("}");
}

/// Writes the canonical JSON of commitments.
pub fn write_commitments(commitments: &Commitments, sink: &mut impl Sink) {
    match commitments {
        Commitments::Sketches(sketches) => write_sketches(sketches, sink),
        Commitments::Other(value) => write_value(value, CANONICAL, sink),
    }
}

/// Writes `[{"sketch":n},…]`. A window holds millions of sketches, so each is one piece.
pub fn write_sketches(sketches: &[u32], sink: &mut impl Sink) {
    let mut piece = [0; PIECE_BYTES];
    sink.write("[");
    for (index, sketch) in sketches.iter().enumerate() {
        let comma = usize::from(index > 0);
        sink.write(sketch_piece(&mut piece, *sketch).get(1 - comma..).unwrap_or_default());
    }
    sink.write("]");
}

const PIECE_START: &[u8] = br#",{"sketch":"#;
/// The start, ten digits and the closing brace.
const PIECE_BYTES: usize = PIECE_START.len() + 10 + 1;

/// `,{"sketch":n}`, filled from the end.
fn sketch_piece(piece: &mut [u8; PIECE_BYTES], sketch: u32) -> &str {
    let mut start = PIECE_BYTES - 1;
    piece[start] = b'}';
    let mut rest = sketch;
    loop {
        start -= 1;
        // A decimal digit, so nothing is cut.
        piece[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    start -= PIECE_START.len();
    piece[start..start + PIECE_START.len()].copy_from_slice(PIECE_START);
    std::str::from_utf8(&piece[start..]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::python_json::{number::float_value, to_string};
    use crate::row::ModelReference;

    fn commit_strategy() -> impl Strategy<Value = Commit> {
        let numbers = (any::<f64>(), any::<f64>(), any::<bool>(), any::<i32>(), any::<i32>());
        let lists = (
            proptest::collection::vec(any::<i32>(), 0..20),
            proptest::collection::vec(any::<u32>(), 0..20),
            proptest::collection::vec(any::<f32>(), 0..20),
        );
        (numbers, lists, ".{0,12}", ".{0,12}", any::<Option<i32>>()).prop_map(|(numbers, lists, name, text, odd)| Commit {
            tokens: lists.0,
            commitments: odd.map_or(Commitments::Sketches(lists.1), |odd| json!([{"b": odd, "a": text}]).into()),
            proof_version: "v5".into(),
            model: ModelReference { name, layer_index: numbers.3 },
            signature: text.clone(),
            beacon: json!({"randomness": text, "a": 1.5}),
            rollout: Rollout {
                total_reward: numbers.0,
                advantage: numbers.1,
                success: numbers.2,
                token_logprobs: lists.2,
                prompt_length: numbers.3,
                completion_length: numbers.4,
            },
        })
    }

    fn is_finite(commit: &Commit) -> bool {
        let rollout = &commit.rollout;
        rollout.total_reward.is_finite() && rollout.advantage.is_finite() && rollout.token_logprobs.iter().all(|l| l.is_finite())
    }

    proptest! {
        #[test]
        fn a_typed_commit_writes_what_its_value_writes(commit in commit_strategy()) {
            let mut streamed = String::new();
            write_commit(&commit, &mut streamed);
            if is_finite(&commit) {
                prop_assert_eq!(&streamed, &to_string(&commit.to_value(), CANONICAL));
            }
            prop_assert_eq!(hash_commit(&commit), <[u8; 32]>::from(Sha256::digest(&streamed)));
        }
    }

    #[test]
    fn floats_that_are_not_finite_are_pythons_words() {
        let mut text = String::new();
        write_rollout(
            &Rollout {
                total_reward: f64::NAN,
                advantage: f64::NEG_INFINITY,
                success: true,
                token_logprobs: vec![f32::INFINITY, -0.0],
                prompt_length: 1,
                completion_length: 1,
            },
            &mut text,
        );
        let expected = r#"{"advantage":-Infinity,"completion_length":1,"prompt_length":1,"success":true,"token_logprobs":[Infinity,-0.0],"total_reward":NaN}"#;
        assert_eq!(text, expected);
        assert_eq!(float_value(f64::NAN), Value::from("NaN"));
    }
}
