//! The nine checks of one rollout, on its raw commit, in their order (grail-validation 4.6).
//!
//! ```text
//!  commit ─▶ admit: schema, tokens ─▶ (forward pass, by the caller) ─▶ finish: prompt, proof, termination,
//!            evaluation, reward (soft), logprobs, distribution (soft)
//! ```
//!
//! The first hard failure ends the walk; a soft one does not.

use serde_json::Value;

use super::logprobs::{Deviation, LogprobFailure, check_logprobs, claimed_logprobs};
use super::proof::{Opened, ProofFailure, check_claims, open};
use super::sequence::{check_prompt, check_tokens, lengths};
use super::termination::{check_termination, completion_limit};
use super::{Check, distribution, reward, schema};
use crate::challenge::open_positions;
use crate::constants::CHALLENGE_K;
use crate::keys::KeyScheme;
use crate::python_json::number::raw_float;

/// What a rollout is judged against.
#[derive(Clone, Copy, Debug)]
pub struct RowContext<'a> {
    /// Scheme of commit signatures; the network verifies sr25519.
    pub scheme: KeyScheme,
    /// The miner under validation.
    pub hotkey: &'a str,
    /// The validator's randomness, hex; it chooses the opened positions.
    pub challenge_randomness: &'a str,
    /// `vocab_size` of the model's configuration.
    pub vocabulary: u64,
    /// Context length of the model ([`super::sequence::max_context`]).
    pub max_context: u64,
    /// The tokenizer's end token; without one only full completions pass.
    pub eos_token: Option<i64>,
    /// `generation_params` of the checkpoint, raw.
    pub generation_params: &'a Value,
    /// Window of the loaded checkpoint, if known.
    pub checkpoint_window: Option<i64>,
}

/// What a forward pass over one sequence gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examination {
    /// One sketch per token of the whole sequence, with the coefficients of the **row's** beacon randomness.
    pub sketches: Vec<u32>,
    /// Raw log-probability of every completion token, natural log.
    pub logprobs: Vec<f32>,
    /// `softmax(logits[-2])[eos]` in the logits' dtype ([`super::termination::eos_probability`]).
    pub eos_probability: f32,
    /// Probability of every completion token with penalty and temperature ([`distribution::chosen_probabilities`]).
    pub probabilities: Vec<f32>,
}

/// What was measured on the way, for people and tools; a pass says little by itself (grail-validation 6).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diagnostics {
    /// The opened positions with their distances.
    pub opened: Vec<Opened>,
    /// Deviation of the log-probabilities.
    pub logprobs: Option<Deviation>,
    /// Metrics of the chosen-token probabilities.
    pub distribution: Option<distribution::Metrics>,
    /// Reward as recomputed.
    pub reward: Option<f64>,
}

/// The outcome of one rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowVerdict {
    /// The checks that ran, in order, with their outcome.
    pub results: Vec<(Check, bool)>,
    /// What the first hard failure was about.
    pub failure: Option<String>,
    /// What was measured.
    pub diagnostics: Diagnostics,
}

impl RowVerdict {
    /// The outcome of a check; `None` if it never ran.
    #[must_use]
    pub fn passed(&self, check: Check) -> Option<bool> {
        self.results.iter().find(|(ran, _)| *ran == check).map(|(_, passed)| *passed)
    }

    /// The first hard check that failed; one that never ran has failed.
    #[must_use]
    pub fn first_failed_hard(&self) -> Option<Check> {
        Check::ORDER.into_iter().find(|check| check.soft_threshold().is_none() && self.passed(*check) != Some(true))
    }

    /// Whether all hard checks passed.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.first_failed_hard().is_none()
    }

    /// The soft checks that failed; one that never ran has passed.
    #[must_use]
    pub fn soft_failures(&self) -> Vec<Check> {
        Check::ORDER.into_iter().filter(|check| check.soft_threshold().is_some() && self.passed(*check) == Some(false)).collect()
    }

    /// Records a check; `false` when a hard one failed and the walk must end.
    fn record<E: ToString>(&mut self, check: Check, outcome: Result<(), E>) -> bool {
        self.results.push((check, outcome.is_ok()));
        let Err(failure) = outcome else { return true };
        if check.soft_threshold().is_some() {
            return true;
        }
        self.failure = Some(failure.to_string());
        false
    }
}

/// A rollout that passed `schema` and `tokens`: a forward pass over its tokens is safe.
#[derive(Clone, Debug)]
pub struct Admitted<'a> {
    commit: &'a Value,
    /// All tokens, each in `[0, vocabulary)`.
    pub tokens: Vec<i64>,
    /// The lengths of prompt and completion, if they are integers and add up to the tokens; without them the prompt check
    /// fails, so no forward pass is needed.
    pub lengths: Option<(usize, usize)>,
    /// `beacon.randomness` of the row, hex.
    pub randomness: &'a str,
    verdict: RowVerdict,
}

/// The checks that need no model: schema and tokens.
///
/// # Errors
/// The verdict, boxed, if one of them fails.
pub fn admit<'a>(context: &RowContext<'_>, commit: &'a Value) -> Result<Admitted<'a>, Box<RowVerdict>> {
    let mut verdict = RowVerdict::default();
    if !verdict.record(Check::Schema, schema::check_schema(commit)) {
        return Err(Box::new(verdict));
    }
    match check_tokens(commit, context.vocabulary, context.max_context) {
        Ok(tokens) => {
            verdict.results.push((Check::Tokens, true));
            let sums = |(prompt, completion): &(usize, usize)| prompt.checked_add(*completion) == Some(tokens.len());
            let lengths = lengths(commit).ok().filter(sums);
            let randomness = commit["beacon"]["randomness"].as_str().unwrap_or_default();
            Ok(Admitted { commit, tokens, lengths, randomness, verdict })
        }
        Err(failure) => {
            verdict.record(Check::Tokens, Err(failure));
            Err(Box::new(verdict))
        }
    }
}

/// A reward computed again: none where nobody here can know it, an error where the environment raised one.
pub type Recomputed = Result<Option<f64>, String>;

/// All nine checks in one call, with the forward pass as a closure.
pub fn check_row(
    context: &RowContext<'_>,
    commit: &Value,
    prompt: &[i64],
    examine: impl FnOnce(&Admitted<'_>) -> Result<Examination, String>,
    evaluate: &dyn Fn(&[i64]) -> Recomputed,
) -> RowVerdict {
    match admit(context, commit) {
        Err(verdict) => *verdict,
        Ok(admitted) => {
            let examination = examine(&admitted);
            admitted.finish(context, Ok(prompt), examination.as_ref().map_err(String::as_str), evaluate)
        }
    }
}

impl Admitted<'_> {
    /// The seven checks after the forward pass. `prompt` is the canonical prompt, or why there is none; `evaluate` scores the
    /// completion's ids in the environment, or says that nobody here knows its reward. A forward pass that failed fails the proof.
    #[must_use]
    pub fn finish(
        mut self,
        context: &RowContext<'_>,
        prompt: Result<&[i64], &str>,
        examination: Result<&Examination, &str>,
        evaluate: &dyn Fn(&[i64]) -> Recomputed,
    ) -> RowVerdict {
        let mut verdict = std::mem::take(&mut self.verdict);
        self.walk(&mut verdict, context, prompt, examination, evaluate);
        verdict
    }

    /// Runs the checks until a hard one fails.
    fn walk(
        &self,
        verdict: &mut RowVerdict,
        context: &RowContext<'_>,
        prompt: Result<&[i64], &str>,
        examination: Result<&Examination, &str>,
        evaluate: &dyn Fn(&[i64]) -> Recomputed,
    ) -> Option<()> {
        let (prompt_length, completion_length) = self.prompt(verdict, prompt)?;
        let positions = open_positions(&self.tokens, context.challenge_randomness, prompt_length, self.tokens.len(), CHALLENGE_K);
        let examination = self.examined(examination, completion_length);
        let proof = self.proof(context, completion_length, &positions, examination.as_ref().copied(), verdict);
        verdict.record(Check::Proof, proof).then_some(())?;
        // The proof fails without both, so nothing is lost here.
        let (examination, positions) = (examination.ok()?, positions.ok()?);
        let ended = self.termination(context, completion_length, examination);
        verdict.record(Check::Termination, ended).then_some(())?;
        let reward = evaluate(&self.tokens[prompt_length..]);
        verdict.record(Check::Evaluation, reward.as_ref().map(drop)).then_some(())?;
        self.reward(verdict, reward.ok()?);
        let logprobs = self.logprobs(verdict, prompt_length, &positions, examination);
        verdict.record(Check::Logprobs, logprobs).then_some(())?;
        distribution_check(verdict, examination);
        Some(())
    }

    fn prompt(&self, verdict: &mut RowVerdict, canonical: Result<&[i64], &str>) -> Option<(usize, usize)> {
        let lengths = lengths(self.commit).map_err(|failure| failure.to_string());
        let outcome = lengths.clone().and_then(|(prompt, completion)| {
            let canonical = canonical.map_err(|why| format!("The canonical prompt is not available: {why}."))?;
            check_prompt(&self.tokens, prompt, completion, canonical).map_err(|failure| failure.to_string())
        });
        verdict.record(Check::Prompt, outcome).then_some(())?;
        lengths.ok()
    }

    /// The examination, if its shapes are those of this sequence.
    fn examined<'e>(
        &self,
        examination: Result<&'e Examination, &str>,
        completion_length: usize,
    ) -> Result<&'e Examination, ProofFailure> {
        let examination = examination.map_err(|why| ProofFailure::NotExamined { why: why.to_owned() })?;
        let fits = examination.sketches.len() == self.tokens.len()
            && examination.logprobs.len() == completion_length
            && examination.probabilities.len() == completion_length;
        let misfit = || ProofFailure::NotExamined { why: "its result is of another sequence's length".to_owned() };
        fits.then_some(examination).ok_or_else(misfit)
    }

    fn proof(
        &self,
        context: &RowContext<'_>,
        completion_length: usize,
        positions: &Result<Vec<usize>, crate::challenge::ChallengeError>,
        examination: Result<&Examination, &ProofFailure>,
        verdict: &mut RowVerdict,
    ) -> Result<(), ProofFailure> {
        check_claims(context.scheme, context.hotkey, self.commit, completion_length, context.checkpoint_window)?;
        let examination = examination.map_err(Clone::clone)?;
        let positions = positions.as_ref().map_err(|error| ProofFailure::NotExamined { why: error.to_string() })?;
        verdict.diagnostics.opened = open(self.commit, &examination.sketches, positions);
        match verdict.diagnostics.opened.iter().find(|opened| !opened.holds()) {
            None => Ok(()),
            Some(opened) => Err(ProofFailure::Sketch { opened: *opened }),
        }
    }

    fn termination(
        &self,
        context: &RowContext<'_>,
        completion_length: usize,
        examination: &Examination,
    ) -> Result<(), super::termination::TerminationFailure> {
        let limit = completion_limit(context.generation_params);
        let last = self.tokens.last().copied().unwrap_or(-1);
        check_termination(completion_length as u64, limit, last, context.eos_token, examination.eos_probability)
    }

    fn reward(&self, verdict: &mut RowVerdict, recomputed: Option<f64>) {
        // What nobody here can know is not held against the row: the check does not run.
        let Some(recomputed) = recomputed else { return };
        let claimed = self.commit["rollout"].get("total_reward").and_then(raw_float).unwrap_or(f64::NAN);
        verdict.diagnostics.reward = Some(recomputed);
        verdict.results.push((Check::Reward, reward::is_close(claimed, recomputed)));
    }

    fn logprobs(
        &self,
        verdict: &mut RowVerdict,
        prompt_length: usize,
        positions: &[usize],
        examination: &Examination,
    ) -> Result<(), LogprobFailure> {
        let claimed = claimed_logprobs(&self.commit["rollout"], self.tokens.len())?;
        let compare = |position: &usize| {
            let model = examination.logprobs.get(position.checked_sub(prompt_length)?)?;
            Some((*position, f64::from(*model), *claimed.get(*position)?))
        };
        let opened: Vec<(usize, f64, f64)> = positions.iter().filter_map(compare).collect();
        let outcome = check_logprobs(&opened);
        verdict.diagnostics.logprobs = match &outcome {
            Ok(deviation) | Err(LogprobFailure::Median { deviation }) => Some(*deviation),
            Err(_) => None,
        };
        outcome.map(drop)
    }
}

fn distribution_check(verdict: &mut RowVerdict, examination: &Examination) {
    let metrics = distribution::Metrics::of(&examination.probabilities);
    verdict.diagnostics.distribution = metrics;
    verdict.results.push((Check::Distribution, metrics.is_some_and(|metrics| !metrics.suspicion().any())));
}
