//! What the fakes compute instead of a forward pass.

use grail_link::message::{Examined, ProofJob, SequenceProof};
use grail_protocol::commitment::hash_sketches;
use grail_protocol::constants::PRIME_Q;
use rand::RngExt;

/// The proof of sequence `index` of `job`: sketches `[tokens]`, log-probabilities and probabilities `[completion]`. A function of
/// tokens, coefficients and weights only, so that every worker computes the same.
pub fn prove(job: &ProofJob, index: u32) -> Option<SequenceProof> {
    let sequence = job.sequences.get(index as usize)?;
    let seed = sequence
        .coefficients
        .iter()
        .fold(17_u64, |sum, value| sum.wrapping_mul(31).wrapping_add(u64::from(value.cast_unsigned())));
    let seed = job.revision.weights_hash.bytes().fold(seed, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let sketch = |state: &mut u64, token: &u32| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(*token) + 1);
        Some(((*state >> 32) % u64::from(PRIME_Q)) as u32)
    };
    let sketches: Vec<u32> = sequence.tokens.iter().scan(seed, sketch).collect();
    let completion = sequence.tokens.len().saturating_sub(sequence.prompt_length as usize);
    let examined = job.examine.map(|_| Examined { eos_probability: 0.9, probabilities: vec![0.8; completion] });
    Some(SequenceProof {
        job: job.id,
        index,
        commitments_hash: hash_sketches(&sketches),
        sketches,
        logprobs: vec![-0.25; completion],
        examined,
    })
}

/// A completion of `tokens` ids, or 40 to 60, that ends as a model's does. Ids below 16 are special in most vocabularies and are left out.
pub fn completion(tokens: Option<usize>, vocabulary: u32, end: u32) -> Vec<u32> {
    let mut random = rand::rng();
    let length = tokens.unwrap_or_else(|| random.random_range(40..60));
    let mut ids: Vec<u32> = (0..length).map(|_| random.random_range(16..vocabulary.max(17))).collect();
    ids.retain(|id| *id != end);
    ids.push(end);
    ids
}
