//! What bf16 does to greedy ids: two engines add up in another order, and where two tokens are nearly as likely, 8 bits of mantissa
//! put one or the other first. Everything behind that token differs as well.

use grail_engines::Engine;

use crate::rig::{Installed, Rig, checkpoint, complete};

const TOKENS: u64 = 48;
/// Share of next tokens, each after the same ids, that engines computing in bf16 must agree on.
const NEXT_AGREES: f64 = 0.9;

fn prompts() -> Vec<Vec<u32>> {
    (0..16u32).map(|seed| (0..4 + 7 * seed).map(|place| 5 + (place * 37 + 101 * seed + 11) % 600).collect()).collect()
}

async fn all(engine: Engine, url: &str) -> Vec<Vec<u32>> {
    let mut completions = Vec::new();
    for prompt in prompts() {
        completions.push(complete(engine, url, &prompt, TOKENS).await.unwrap().ids);
    }
    completions
}

/// Ids that are equal at the same place, completions that are equal as a whole; of the longer of each pair.
fn agreement(one: &[Vec<u32>], other: &[Vec<u32>]) -> String {
    let equal: usize =
        one.iter().zip(other).map(|(one, other)| one.iter().zip(other).filter(|(one, other)| one == other).count()).sum();
    let ids: usize = one.iter().zip(other).map(|(one, other)| one.len().max(other.len())).sum();
    let whole = one.iter().zip(other).filter(|(one, other)| one == other).count();
    format!("{:.1} % of ids, {whole} of {} completions whole", 100.0 * equal as f64 / ids as f64, one.len())
}

/// The share of places at which the server's next token after the same ids is the one of `completions`.
async fn next_tokens(engine: Engine, url: &str, completions: &[Vec<u32>]) -> f64 {
    let (mut equal, mut asked) = (0, 0);
    for (prompt, completion) in prompts().iter().zip(completions) {
        for place in 0..completion.len() {
            let ids = [&prompt[..], &completion[..place]].concat();
            let next = complete(engine, url, &ids, 1).await.unwrap().ids;
            equal += usize::from(next[0] == completion[place]);
            asked += 1;
        }
    }
    equal as f64 / asked as f64
}

/// Greedy ids of the embedded engine and of the server in bf16, beside the embedded engine's in f32.
pub async fn in_bf16(server: Installed) -> String {
    let mut ours = Vec::new();
    for dtype in ["f32", "bf16"] {
        let mut rig = Rig::embedded(dtype).await;
        let (url, _) = rig.serving(0, &checkpoint("checkpoint-a")).await;
        ours.push(all(rig.engine, &url).await);
    }
    let mut rig = Rig::computing(server, "bf16", &[]).await;
    let (url, _) = rig.serving(0, &checkpoint("checkpoint-a")).await;
    let theirs = all(rig.engine, &url).await;
    let next = next_tokens(rig.engine, &url, &ours[1]).await;
    assert!(next >= NEXT_AGREES, "only {next:.3} of next tokens agree: that is more than rounding");
    format!(
        "bf16, embedded against {}: {}; next tokens after the same ids: {:.1} %; embedded bf16 against f32: {}",
        server.name(),
        agreement(&ours[1], &theirs),
        100.0 * next,
        agreement(&ours[1], &ours[0])
    )
}
