//! The host that is simulated: curves, lengths and what goes wrong, from a TOML file.

use serde::Deserialize;

/// The host that is taken without `--host`: 8 A100, one server over four of them and four proof workers.
pub const DEFAULT: &str = include_str!("../../../config/simulate/8xa100.toml");

/// Why a host cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The text is no such file.
    #[error("The host file is not understood: {0}")]
    Form(#[from] toml::de::Error),
    /// A value no host has.
    #[error("The host file says {key} = {value}; give {want}.")]
    Value {
        /// The key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it may be.
        want: &'static str,
    },
}

/// A host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// What is printed above the figures.
    pub name: String,
    /// Generation side.
    pub generation: Generation,
    /// Prompts and completions.
    pub lengths: Lengths,
    /// Proof side.
    pub proof: Proof,
    /// The window's file.
    pub upload: Upload,
    /// What varies.
    pub jitter: Jitter,
    /// What breaks.
    pub failures: Failures,
    /// The schedule's settings.
    pub schedule: Settings,
}

/// Generation side.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Servers; requests go to the least loaded one.
    pub replicas: usize,
    /// GPUs of each.
    pub gpus: usize,
    /// Requests in flight and tokens per second of one server, both rising.
    pub throughput: Vec<(f64, f64)>,
    /// Prompt tokens per second; decoding stands still meanwhile.
    pub prefill_tokens_per_second: f64,
    /// Requests that one server works on; more wait.
    pub max_running: usize,
    /// Seconds at the beginning of a window until everybody holds its weights.
    pub weights_seconds: f64,
}

/// Prompts and completions, in tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lengths {
    /// Mean prompt.
    pub prompt: f64,
    /// Log-normal spread of prompts.
    pub prompt_sigma: f64,
    /// Mean completion, before the limits.
    pub completion: f64,
    /// Log-normal spread between groups: some problems are longer.
    pub group_sigma: f64,
    /// Log-normal spread within a group.
    pub completion_sigma: f64,
    /// Shortest completion.
    pub shortest: f64,
    /// Longest: `max_tokens` of the checkpoint.
    pub longest: f64,
}

/// Proof side.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Workers, one GPU each.
    pub workers: usize,
    /// Tokens (prompts and completions) per second of one worker.
    pub tokens_per_second: f64,
    /// Seconds per group beside: signing, encoding, judging, the disk.
    pub group_seconds: f64,
}

/// The window's file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// Seconds per rollout of putting the file together.
    pub closing_seconds_per_rollout: f64,
    /// Seconds that an upload takes whatever its size.
    pub seconds: f64,
    /// Bytes of one rollout.
    pub bytes_per_rollout: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
}

/// What varies: log-normal spreads with mean 1.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jitter {
    /// Of a server's speed, anew each window.
    pub generation_sigma: f64,
    /// Of a group's proof.
    pub proof_sigma: f64,
    /// Of an upload.
    pub upload_sigma: f64,
    /// Seconds by which a block is early or late (normal).
    pub block_seconds: f64,
    /// Chance of a block that comes one block late.
    pub skipped_block: f64,
}

/// What breaks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failures {
    /// Chance per window and server that it dies.
    pub server: f64,
    /// Seconds until it serves again.
    pub server_seconds: f64,
    /// Chance per window and worker that it dies.
    pub worker: f64,
    /// Seconds until it proves again.
    pub worker_seconds: f64,
    /// Chance that an upload must be done again.
    pub upload: f64,
}

/// The schedule's settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `schedule.confidence`.
    pub confidence: f64,
    /// `schedule.safety_blocks`.
    pub safety_blocks: f64,
    /// `generation.groups_in_flight`: a number, 0 for "auto".
    pub groups_in_flight: u32,
    /// `generation.max_concurrent`.
    pub max_concurrent: usize,
}

impl Host {
    /// Reads and judges a host.
    ///
    /// # Errors
    /// The first thing that no host has.
    pub fn read(text: &str) -> Result<Self, HostError> {
        let host: Self = toml::from_str(text)?;
        host.judge()?;
        Ok(host)
    }

    fn judge(&self) -> Result<(), HostError> {
        let Self { generation, lengths, proof, upload, jitter, failures, schedule, .. } = self;
        for (key, count) in [
            ("generation.replicas", generation.replicas),
            ("generation.gpus", generation.gpus),
            ("generation.max_running", generation.max_running),
            ("proof.workers", proof.workers),
            ("schedule.max_concurrent", schedule.max_concurrent),
        ] {
            check(key, count as f64, (1.0..=1e5).contains(&(count as f64)), "1 to 100000")?;
        }
        for (key, value) in [
            ("generation.prefill_tokens_per_second", generation.prefill_tokens_per_second),
            ("lengths.prompt", lengths.prompt),
            ("lengths.completion", lengths.completion),
            ("lengths.shortest", lengths.shortest),
            ("proof.tokens_per_second", proof.tokens_per_second),
            ("upload.bytes_per_second", upload.bytes_per_second),
        ] {
            check(key, value, value.is_finite() && value >= 1.0, "a number of at least 1")?;
        }
        check("lengths.longest", lengths.longest, (lengths.shortest..=1e6).contains(&lengths.longest), "shortest to 1000000")?;
        for (key, value) in [
            ("generation.weights_seconds", generation.weights_seconds),
            ("proof.group_seconds", proof.group_seconds),
            ("upload.closing_seconds_per_rollout", upload.closing_seconds_per_rollout),
            ("upload.seconds", upload.seconds),
            ("upload.bytes_per_rollout", upload.bytes_per_rollout),
            ("jitter.block_seconds", jitter.block_seconds),
            ("failures.server_seconds", failures.server_seconds),
            ("failures.worker_seconds", failures.worker_seconds),
            ("schedule.safety_blocks", schedule.safety_blocks),
        ] {
            check(key, value, value.is_finite() && value >= 0.0, "a number of at least 0")?;
        }
        for (key, value) in [
            ("lengths.prompt_sigma", lengths.prompt_sigma),
            ("lengths.group_sigma", lengths.group_sigma),
            ("lengths.completion_sigma", lengths.completion_sigma),
            ("jitter.generation_sigma", jitter.generation_sigma),
            ("jitter.proof_sigma", jitter.proof_sigma),
            ("jitter.upload_sigma", jitter.upload_sigma),
            ("jitter.skipped_block", jitter.skipped_block),
            ("failures.server", failures.server),
            ("failures.worker", failures.worker),
            ("failures.upload", failures.upload),
            ("schedule.confidence", schedule.confidence),
        ] {
            check(key, value, (0.0..=2.0).contains(&value), "0 to 2 (a chance: 0 to 1)")?;
        }
        let curve = &generation.throughput;
        let rising = curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1)
            && curve.iter().all(|(load, rate)| load.is_finite() && *load >= 1.0 && *rate > 0.0 && rate.is_finite());
        if curve.is_empty() || !rising {
            let want = "pairs of requests in flight (from 1) and tokens per second, both rising";
            return Err(HostError::Value { key: "generation.throughput", value: format!("{curve:?}"), want });
        }
        Ok(())
    }
}

fn check(key: &'static str, value: f64, good: bool, want: &'static str) -> Result<(), HostError> {
    if good { Ok(()) } else { Err(HostError::Value { key, value: value.to_string(), want }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_judged_before_they_are_simulated() {
        Host::read(DEFAULT).unwrap();
        let broken = [
            ("replicas = 1", "replicas = 0", "generation.replicas"),
            ("workers = 4", "workers = 4\nunknown = 1", "unknown"),
            ("[[1, ", "[[1000, 5.0], [1, ", "throughput"),
            ("confidence = ", "confidence = 1", "confidence"),
        ];
        for (good, bad, word) in broken {
            assert!(DEFAULT.contains(good), "{good}");
            let error = Host::read(&DEFAULT.replace(good, bad)).unwrap_err().to_string();
            assert!(error.contains(word), "{good}: {error}");
        }
    }
}
