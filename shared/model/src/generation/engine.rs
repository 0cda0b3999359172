//! The engine: a queue, a batch, and one step at a time. It has no thread and no clock of its own.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tch::{Kind, TchError, Tensor};

use super::cache::{KvCache, Prefilled, Shape};
use super::request::{FinishReason, Finished, Request, RequestError, Ticket, VersionSpan};
use super::sampler::{self, Policies};
use crate::config::ModelConfig;
use crate::model::{Model, ReloadError};

/// Prefilled prompts that are kept: the 16 requests of a group come one by one and have the same prompt.
const KEPT_PREFILLS: usize = 4;

/// What the engine may hold at once.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Rows of the batch; further requests wait.
    pub max_running: usize,
    /// Seed of the random numbers of requests that bring none.
    pub seed: u64,
}

/// Why the engine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// libtorch failed, usually for want of memory.
    #[error("libtorch failed during generation: {0}; lower the number of running requests if memory ran out")]
    Torch(#[from] TchError),
}

/// Samples completions of a model for many requests at once.
pub struct Engine {
    model: Model,
    stop_token_ids: Vec<u32>,
    weight_version: Arc<str>,
    random: StdRng,
    max_running: usize,
    next_ticket: u64,
    queue: VecDeque<Row>,
    rows: Vec<Row>,
    cache: KvCache,
    /// `[max_running, vocabulary]` bool: tokens of prompt and output, by row.
    seen: Tensor,
    policies: Option<Policies>,
    prefills: VecDeque<Prefill>,
}

/// A request on its way.
struct Row {
    ticket: Ticket,
    request: Request,
    max_new_tokens: usize,
    random: StdRng,
    output: Vec<u32>,
    versions: Vec<VersionSpan>,
}

struct Prefill {
    tokens: Vec<u32>,
    cache: Prefilled,
    /// `[1, vocabulary]`: what follows the last token.
    logits: Tensor,
}

impl Row {
    fn finish(self, reason: FinishReason) -> Finished {
        Finished { ticket: self.ticket, output: self.output, reason, versions: self.versions }
    }

    fn push(&mut self, token: u32, version: &Arc<str>) {
        let end = self.output.len() + 1;
        self.output.push(token);
        match self.versions.last_mut() {
            Some(span) if span.version == *version => span.end = end,
            _ => self.versions.push(VersionSpan { version: version.clone(), start: end - 1, end }),
        }
    }

    /// Prompt and output so far: a retracted row begins again behind both.
    fn tokens(&self) -> Vec<u32> {
        [self.request.prompt.as_slice(), &self.output].concat()
    }
}

impl Engine {
    /// An engine over a loaded model. `stop_token_ids` are the model's own ([`crate::stop_token_ids`]).
    ///
    /// # Errors
    /// When the device has no room for the engine's state.
    pub fn new(
        model: Model,
        stop_token_ids: Vec<u32>,
        weight_version: &str,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let config = model.config();
        let max_running = options.max_running.max(1);
        let shape = Shape {
            layers: model.network.layer_count(),
            heads: config.num_key_value_heads,
            width: config.head_dim,
            max_rows: max_running as i64,
            max_positions: config.max_position_embeddings as i64,
            window: model.network.sliding_window(),
            kind: model.network.kind(),
            device: model.device(),
        };
        Ok(Self {
            seen: Tensor::f_zeros([max_running as i64, config.vocab_size], (Kind::Bool, model.device()))?,
            model,
            stop_token_ids,
            weight_version: weight_version.into(),
            random: StdRng::seed_from_u64(options.seed),
            max_running,
            next_ticket: 0,
            queue: VecDeque::new(),
            rows: Vec::new(),
            cache: KvCache::new(shape),
            policies: None,
            prefills: VecDeque::new(),
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Requests in the batch.
    pub fn running(&self) -> usize {
        self.rows.len()
    }

    /// Requests that wait for a row.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.rows.is_empty() && self.queue.is_empty()
    }

    /// Takes a request; it joins the batch at the next step with a free row.
    ///
    /// # Errors
    /// When the request does not fit the model.
    pub fn submit(&mut self, request: Request) -> Result<Ticket, RequestError> {
        let max_new_tokens = request.check(self.model.config())?;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let seed = request.sampling.seed.unwrap_or_else(|| self.random.random());
        let random = StdRng::seed_from_u64(seed);
        self.queue.push_back(Row { ticket, request, max_new_tokens, random, output: Vec::new(), versions: Vec::new() });
        Ok(ticket)
    }

    /// Ends a request and returns what it has; `None` if it is not here (any more).
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn abort(&mut self, ticket: Ticket, why: &str) -> Result<Option<Finished>, EngineError> {
        let reason = FinishReason::Abort { message: why.to_owned() };
        if let Some(index) = self.queue.iter().position(|row| row.ticket == ticket) {
            return Ok(self.queue.remove(index).map(|row| row.finish(reason)));
        }
        let Some(index) = self.rows.iter().position(|row| row.ticket == ticket) else { return Ok(None) };
        let _guard = tch::no_grad_guard();
        Ok(Some(self.leave(index)?.finish(reason)))
    }

    /// Ends every request.
    pub fn abort_all(&mut self, why: &str) -> Vec<Finished> {
        self.retract_all();
        let reason = FinishReason::Abort { message: why.to_owned() };
        self.queue.drain(..).map(|row| row.finish(reason.clone())).collect()
    }

    /// Puts every running request back at the head of the queue, with the tokens it has; it will be prefilled anew.
    pub fn retract_all(&mut self) {
        for row in self.rows.drain(..).rev() {
            self.queue.push_front(row);
        }
        self.cache.clear();
        self.policies = None;
    }

    /// Forgets prefilled prompts.
    pub fn flush(&mut self) {
        self.prefills.clear();
    }

    /// Replaces the weights in place and names them; running requests are retracted, because their keys and values are the
    /// old weights'.
    ///
    /// # Errors
    /// As [`Model::reload`]; unless it is [`ReloadError::Unfit`] the old weights go on serving under the old name.
    pub fn reload(&mut self, directory: &Path, stop_token_ids: Vec<u32>, weight_version: &str) -> Result<(), ReloadError> {
        self.model.reload(directory)?;
        self.retract_all();
        self.flush();
        self.stop_token_ids = stop_token_ids;
        self.weight_version = weight_version.into();
        Ok(())
    }

    /// Lets waiting requests join, computes one token for every row, and returns the requests that are finished.
    ///
    /// # Errors
    /// When libtorch fails; the engine must then be dropped.
    pub fn step(&mut self) -> Result<Vec<Finished>, EngineError> {
        let _guard = tch::no_grad_guard();
        let mut finished = Vec::new();
        let mut logits = Vec::new();
        if !self.rows.is_empty() {
            logits.push(self.decode()?);
        }
        while self.rows.len() < self.max_running {
            let Some(row) = self.queue.pop_front() else { break };
            if row.output.len() >= row.max_new_tokens {
                finished.push(row.finish(FinishReason::Length));
                continue;
            }
            logits.push(self.join(row)?);
        }
        if !self.rows.is_empty() {
            self.choose(&Tensor::f_cat(&logits, 0)?, &mut finished)?;
        }
        Ok(finished)
    }

    /// Logits `[B, vocabulary]` after the last token of every row.
    fn decode(&mut self) -> Result<Tensor, TchError> {
        let last = self.rows.iter().map(|row| row.output.last().copied().map_or(0, i64::from));
        let ids = Tensor::f_from_slice(&last.collect::<Vec<_>>())?.f_unsqueeze(1)?.f_to(self.model.device())?;
        let plan = self.cache.plan_step()?;
        let (network, cache) = (&self.model.network, &mut self.cache);
        let hidden = network.run(&ids, &plan.positions()?, &mut |layer, q, k, v| {
            let (keys, values) = cache.extend(layer, &plan, k, v)?;
            network.attend_cached(q, &keys, &values, plan.mask(network.window(layer)))
        })?;
        network.logits(&hidden.f_squeeze_dim(1)?)
    }

    /// Gives a request a row; returns the logits `[1, vocabulary]` after its last token.
    fn join(&mut self, row: Row) -> Result<Tensor, TchError> {
        let tokens = row.tokens();
        let index = self.rows.len() as i64;
        let prefill = self.prefill(&tokens)?;
        let logits = prefill.logits.shallow_clone();
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let mut seen = self.seen.f_select(0, index)?;
        let _ = seen.f_zero_()?;
        let _ = seen.f_index_fill_(0, &Tensor::f_from_slice(&ids)?.f_to(self.model.device())?, 1)?;
        self.rows.push(row);
        self.policies = None;
        Ok(logits)
    }

    /// Keys, values and logits of a sequence, from the kept ones or computed; joins them to the cache.
    fn prefill(&mut self, tokens: &[u32]) -> Result<&Prefill, TchError> {
        if let Some(known) = self.prefills.iter().position(|prefill| prefill.tokens == tokens) {
            self.prefills.swap(0, known);
        } else {
            let computed = self.compute_prefill(tokens)?;
            self.prefills.push_front(computed);
            self.prefills.truncate(KEPT_PREFILLS);
        }
        let prefill = &self.prefills[0];
        self.cache.join(&prefill.cache, tokens.len() as i64)?;
        Ok(prefill)
    }

    fn compute_prefill(&self, tokens: &[u32]) -> Result<Prefill, TchError> {
        let network = &self.model.network;
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_unsqueeze(0)?.f_to(self.model.device())?;
        let length = tokens.len() as i64;
        let positions = Tensor::f_arange(length, (Kind::Int64, self.model.device()))?.f_unsqueeze(0)?;
        let mut cache = Prefilled::new();
        let masks = network.masks(length, None)?;
        let hidden = network.run(&ids, &positions, &mut |layer, q, k, v| {
            cache.push((k.shallow_clone(), v.shallow_clone()));
            network.attend(layer, q, k, v, &masks)
        })?;
        let logits = network.logits(&hidden.f_narrow(1, length - 1, 1)?.f_squeeze_dim(1)?)?;
        Ok(Prefill { tokens: tokens.to_vec(), cache, logits })
    }

    /// Samples a token for every row and lets finished rows leave.
    fn choose(&mut self, logits: &Tensor, finished: &mut Vec<Finished>) -> Result<(), TchError> {
        if self.policies.is_none() {
            let samplings = self.rows.iter().map(|row| &row.request.sampling);
            self.policies = Some(Policies::of(samplings, self.model.config().vocab_size, self.model.device())?);
        }
        let Some(policies) = &self.policies else { return Ok(()) };
        let uniforms: Vec<f32> = self.rows.iter_mut().map(|row| row.random.random()).collect();
        let mut seen = self.seen.f_narrow(0, 0, self.rows.len() as i64)?;
        let chosen = sampler::sample(logits, &seen, policies, &uniforms)?;
        let _ = seen.f_scatter_value_(1, &chosen.f_clamp_min(0)?.f_unsqueeze(1)?, 1)?;
        let chosen = Vec::<i64>::try_from(chosen)?;
        // From the last row down, so that a row that takes a leaver's place has been looked at already.
        for (index, token) in chosen.into_iter().enumerate().rev() {
            if let Some(reason) = self.accept(index, token) {
                finished.push(self.leave(index)?.finish(reason));
            }
        }
        Ok(())
    }

    /// Adds a token to a row; says why the row is finished, if it is.
    fn accept(&mut self, index: usize, token: i64) -> Option<FinishReason> {
        let row = &mut self.rows[index];
        let Ok(token) = u32::try_from(token) else {
            return Some(FinishReason::Abort { message: "the model computed NaN or infinity".to_owned() });
        };
        row.push(token, &self.weight_version);
        let sampling = &row.request.sampling;
        let stops = sampling.stop_token_ids.contains(&token) || (!sampling.ignore_eos && self.stop_token_ids.contains(&token));
        let full = row.output.len() >= row.max_new_tokens;
        if stops { Some(FinishReason::Stop { matched: token }) } else { full.then_some(FinishReason::Length) }
    }

    fn leave(&mut self, index: usize) -> Result<Row, TchError> {
        let last = self.rows.len() as i64 - 1;
        self.cache.swap_remove(index)?;
        if index as i64 != last {
            self.seen.f_select(0, index as i64)?.f_copy_(&self.seen.f_select(0, last)?)?;
        }
        self.policies = None;
        Ok(self.rows.swap_remove(index))
    }
}
