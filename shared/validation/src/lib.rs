//! `validate --test-mode`: the network's validator, for this wallet's own files. It fetches them with the published read
//! pair, judges them in the reference's order, and lets proof workers do the forward passes.
//!
//! Two things of the network's validator are left out on purpose, and said so: weights are never submitted, and no trust
//! list is published.

mod report;

use grail_settings::WorkerNumerics;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use flate2::read::GzDecoder;
use grail_environments::Prompt;
use grail_link::message::{ExamineTerms, ProofSequence};
use grail_process::{Meter, Spawner, Unit, clock};
use grail_protocol::constants::{DEADLINE_SLACK_SECONDS, MAX_FILE_BYTES, MIN_FILE_BYTES, PROOF_BATCH_SIZE, WINDOW_LENGTH};
use grail_protocol::derivation::{environment_seed, validator_randomness};
use grail_protocol::keys::Hotkey;
use grail_protocol::python_json::commit::hash_commit;
use grail_protocol::sketch::coefficients;
use grail_protocol::validation::Check;
use grail_protocol::validation::head::RowHead;
use grail_protocol::validation::pipeline::{Admitted, Examination, RowContext, admit};
use grail_protocol::validation::selection::select_rows;
use grail_protocol::validation::structure::{Expected, FileHead, check_structure};
use grail_protocol::validation::window::{Judge, Row, WindowContext, WindowVerdict, judge_rows};
use grail_protocol::window::{object_key, window_start};
use grail_store::bucket::Bucket;
use grail_store::window_file::{WindowFile, WindowFileError, read_window};
use serde_json::Value;

use grail_settings::Settings;
use grail_subnet::buckets::Buckets;
use grail_subnet::chain::{Chain, ChainError};
use grail_subnet::checkpoints::{Checkpoints, NotReady};
use grail_subnet::configured::{open_chain, settle};
use grail_subnet::dataset::check_dataset;
use grail_subnet::reader::{ReadError, Readers};
use grail_subnet::terms::Terms;
use grail_subnet::wallet;
use grail_supervision::board::Board;
use grail_supervision::exit::Failure;
use grail_supervision::gpu::Gpus;
use grail_supervision::log;
use grail_workers::plan;
use grail_workers::preflight::own_folder;
use grail_workers::{ChildPrograms, Programs, ProofPool, Proved, WorkerSettings};

pub use report::{Judged, Outcome};

/// Longest wait for the workers to load a checkpoint.
const LOAD_LIMIT: Duration = Duration::from_secs(900);
/// Patience for the second worker once the first is ready.
const ALL_WORKERS: Duration = Duration::from_secs(20);
/// Longest wait for a block that does not come at its time, and between two looks for it.
const LATE_BLOCK: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Judge this wallet's own files only. The network's validator itself is not part of this version.
    #[arg(long)]
    test_mode: bool,
    /// The window to judge; default: the last completed one.
    #[arg(long, conflicts_with = "last")]
    window: Option<u64>,
    /// Judge the last N windows that have a file.
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Check every group, not the few that the network's validator draws.
    #[arg(long)]
    all: bool,
    /// One JSON object per window instead of a table.
    #[arg(long)]
    json: bool,
}

/// Exit code where nothing could be judged.
pub const NOTHING_JUDGED: u8 = 3;

/// What is told of the judged windows.
pub struct Verdict {
    /// A table, or JSON.
    pub text: String,
    /// Exit code: 0 all accepted, 1 one rejected, 2 one has no file.
    pub code: u8,
}

/// Judges windows.
///
/// # Errors
/// When nothing could be judged, which is [`NOTHING_JUDGED`] whatever the failure.
pub async fn command(settings: Result<Settings, Failure>, arguments: &Arguments, meter: &Meter) -> Result<Verdict, Failure> {
    if !arguments.test_mode {
        return Err(Failure::Data(
            "only `validate --test-mode` is part of this version: it judges this wallet's own files".into(),
        ));
    }
    let settings = settings?;
    let mut validator = Validator::open(&settings, arguments.all, meter).await?;
    let outcome = validator.windows(arguments).await;
    tokio::join!(validator.pool.stop(), validator.readers.stop());
    let judged = outcome?;
    Ok(Verdict { text: report::text(&judged, arguments.json), code: report::code(&judged) })
}

struct Validator {
    chain: Arc<dyn Chain>,
    hotkey: Hotkey,
    bucket: Bucket,
    checkpoints: Checkpoints,
    readers: Readers,
    pool: ProofPool,
    all: bool,
    uid: usize,
    meter: Meter,
    /// The local bucket server lives in it.
    _buckets: Buckets,
    _sockets: tempfile::TempDir,
}

impl Validator {
    async fn open(settings: &Settings, all: bool, meter: &Meter) -> Result<Self, Failure> {
        let plan = plan::of_host(settings)?;
        let hotkey = wallet::load(&settings.wallet)?;
        let programs = Programs::find(settings.programs.as_deref(), &[ChildPrograms::ProofWorker])?;
        let dataset = check_dataset(settings)?;
        let attempt = Duration::from_secs_f64(settings.upload_timeout);
        let mut buckets = Buckets::open(&settings.storage, attempt, false).await?;
        let chain = open_chain(settings, Some(&hotkey), Some(&buckets.commitment))?;
        settle(settings, chain.as_ref(), &mut buckets).await?;
        let standing = chain.standing(hotkey.address()).await?;
        dataset.must_suit(&*chain).await?;
        let uid = standing.uid.ok_or_else(|| {
            Failure::Data(format!("the hotkey {} is not in the metagraph, so no validator looks at it", hotkey.address()))
        })?;
        let (trainer, trainer_bucket) = standing.trainer()?;
        let published = standing
            .own_bucket
            .ok_or_else(|| Failure::Data("this hotkey has committed no bucket: validators skip it; run the miner once".into()))?;
        let sockets = own_folder("grail-validate-")?;
        let spawner = Spawner::start().map_err(|error| Failure::internal("start the spawner thread", error))?;
        let workers = WorkerSettings {
            programs,
            sockets: sockets.path().join("run"),
            slots: plan.proof,
            dtype: settings.proof.dtype.clone(),
            threads: settings.proof.threads,
            // The network's validator runs the defaults, whatever this miner is tuned to.
            numerics: WorkerNumerics::default(),
            library_path: settings.proof.library_path.clone(),
            grace: Duration::from_secs(2),
            gpus: Gpus::default(),
        };
        let trainer = settings.trainer.clone().unwrap_or(trainer);
        let readers = Readers::new(spawner.clone(), sockets.path().join("run"));
        let checkpoints =
            Checkpoints::new(buckets.published(&trainer_bucket)?, &settings.cache, trainer, dataset.path, readers.clone());
        Ok(Self {
            bucket: buckets.published(&published)?,
            checkpoints,
            readers,
            pool: ProofPool::start(workers, spawner, Board::default()),
            chain,
            hotkey,
            all,
            uid: usize::from(uid),
            meter: meter.clone(),
            _buckets: buckets,
            _sockets: sockets,
        })
    }

    async fn windows(&mut self, arguments: &Arguments) -> Result<Vec<Judged>, Failure> {
        log::say("Test mode: this wallet's own files are judged; no weights are submitted and no trust list is published.");
        let windows = match (arguments.window, arguments.last) {
            (Some(window), _) if window != window_start(window) => {
                return Err(Failure::Data(format!("--window {window} is no multiple of 30, so no window begins there")));
            }
            (Some(window), _) => vec![window],
            (None, Some(count)) => self.last_with_a_file(count).await?,
            (None, None) => vec![window_start(self.chain.head().await?).saturating_sub(WINDOW_LENGTH)],
        };
        let mut judged = Vec::new();
        for window in windows {
            judged.push(self.window(window).await?);
        }
        Ok(judged)
    }

    async fn last_with_a_file(&self, count: usize) -> Result<Vec<u64>, Failure> {
        let prefix = object_key(self.hotkey.address(), 0);
        let prefix = prefix.trim_end_matches("0.parquet");
        let keys = self.bucket.list(prefix).await.map_err(|error| Failure::Unavailable(error.to_string()))?;
        let window = |key: &String| key.strip_prefix(prefix)?.strip_suffix(".parquet")?.parse::<u64>().ok();
        let mut windows: Vec<u64> = keys.iter().filter_map(window).collect();
        windows.sort_unstable();
        Ok(windows.split_off(windows.len().saturating_sub(count)))
    }

    async fn window(&mut self, window: u64) -> Result<Judged, Failure> {
        self.meter.begin(format!("Window {window}: fetching its file"), Unit::None, 0);
        let begun = clock::monotonic();
        let mut judged = Judged::new(window, self.uid, self.hotkey.address(), self.chain.nominal_block_seconds());
        judged.outcome = match self.fetch(window).await? {
            Fetched::None(why) => Outcome::NoFile(why),
            Fetched::Corrupt(why) => Outcome::Rejected { reason: Some("file:corrupt_parquet".into()), why },
            Fetched::File(file) => self.file(window, &file, &mut judged).await?,
        };
        judged.seconds = begun.elapsed().as_secs_f64();
        Ok(judged)
    }

    /// HEAD, limits, deadline, GET, parse: what fails here counts as "no file", except what a validator bans for.
    async fn fetch(&self, window: u64) -> Result<Fetched, Failure> {
        let unavailable = |error: &dyn std::fmt::Display| Failure::Unavailable(error.to_string());
        let key = object_key(self.hotkey.address(), window);
        // What lies beside the file under this name is judged instead of it.
        let twin = format!("{key}.gz");
        let twin_head = self.bucket.head(&twin).await.map_err(|error| unavailable(&error))?;
        let packed = twin_head.is_some();
        let key = if packed { twin } else { key };
        let head = match twin_head {
            Some(head) => Some(head),
            None => self.bucket.head(&key).await.map_err(|error| unavailable(&error))?,
        };
        let Some(head) = head else { return Ok(Fetched::None(format!("there is no object {key}"))) };
        if !(MIN_FILE_BYTES..=MAX_FILE_BYTES).contains(&head.size) {
            return Ok(Fetched::None(format!("its {} bytes are outside {MIN_FILE_BYTES} to {MAX_FILE_BYTES}", head.size)));
        }
        let deadline = self.chain.block_time(window + WINDOW_LENGTH).await? - DEADLINE_SLACK_SECONDS;
        let written = head.last_modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|time| time.as_secs_f64());
        if let Some(late) = written.map(|written| written - deadline).filter(|late| *late > 0.0) {
            return Ok(Fetched::None(format!("it was uploaded {late:.1} s after the deadline, so validators ignore it")));
        }
        let mut bytes = self.bucket.get(&key, MAX_FILE_BYTES).await.map_err(|error| unavailable(&error))?;
        if packed {
            let mut plain = Vec::new();
            let unpacked = GzDecoder::new(&bytes[..]).take(MAX_FILE_BYTES + 1).read_to_end(&mut plain);
            if unpacked.is_err() || plain.len() as u64 > MAX_FILE_BYTES {
                return Ok(Fetched::None(format!(
                    "validators read {key} instead of the file, and it cannot be unpacked; remove it"
                )));
            }
            bytes = plain.into();
        }
        Ok(match read_window(bytes) {
            Ok(file) => Fetched::File(file),
            Err(WindowFileError::Corrupt(why)) => Fetched::Corrupt(why),
            Err(error) => Fetched::None(error.to_string()),
        })
    }

    async fn file(&mut self, window: u64, file: &WindowFile, judged: &mut Judged) -> Result<Outcome, Failure> {
        let next_hash = self.hash_of(window + WINDOW_LENGTH).await?;
        let block_hash = self.hash_of(window).await?;
        judged.total = file.rows.len();
        judged.tokens = file.rows.iter().map(|row| row.commit.tokens.len()).sum();
        let window_start = window.cast_signed();
        let expected = Expected { hotkey: self.hotkey.address(), window_start, block_hash: &block_hash };
        let head = FileHead { wallet: Some(&file.metadata.wallet), window_start: Some(file.metadata.window_start) };
        if let Err(failure) = check_structure(&expected, &head, file.rows.iter().map(RowHead::from)) {
            return Ok(Outcome::Rejected { reason: Some(format!("file:{}", failure.reason())), why: failure.to_string() });
        }
        let terms = self.terms(window).await?;
        let randomness = validator_randomness(&next_hash, None);
        let context = WindowContext { window_start, block_hash: &block_hash, row: self.row_context(&terms, &randomness) };
        let selected = self.select(file, &randomness);
        self.meter.begin(format!("Window {window}: judging"), Unit::Things("rollouts"), selected.len() as u64);
        let commits: BTreeMap<usize, Value> = selected.iter().map(|row| (*row, file.rows[*row].commit.to_value())).collect();
        let examinations = self.examine(&context.row, &terms, &commits).await;
        let null = Value::Null;
        let rows: Vec<Row<'_>> = file
            .rows
            .iter()
            .enumerate()
            .map(|(index, row)| Row { head: RowHead::from(row), commit: commits.get(&index).unwrap_or(&null) })
            .collect();
        let mut bench = Bench {
            terms: &terms,
            hotkey: self.hotkey.address(),
            block_hash: &block_hash,
            examinations,
            prompts: BTreeMap::new(),
            trouble: OnceLock::new(),
        };
        // The rules are pure and ask as they go.
        let verdict = tokio::task::block_in_place(|| judge_rows(&context, &rows, selected, &mut bench));
        if let Some(why) = bench.trouble.get() {
            return Err(Failure::Unavailable(format!("window {window} cannot be judged here: {why}")));
        }
        Ok(judged.take(verdict))
    }

    /// A window is judged once the block after it exists: its hash chooses what is opened.
    async fn hash_of(&self, block: u64) -> Result<String, Failure> {
        let wait = self.chain.block_time(block).await? - clock::unix_seconds();
        if wait > 0.0 {
            log::say(&format!("Waiting {wait:.0} s for block {block}: its hash chooses the positions that are opened."));
            self.meter.begin(format!("Waiting for block {block}"), Unit::None, 0);
            tokio::time::sleep(Duration::from_secs_f64(wait.min(3600.0) + 0.05)).await;
        }
        let comes = async {
            while let Err(ChainError::NotYet { .. }) = self.chain.block_hash(block).await {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        // Whether it came or not, the last look tells.
        let _ = tokio::time::timeout(LATE_BLOCK, comes).await;
        Ok(self.chain.block_hash(block).await?)
    }

    /// The checkpoint that was newest before the window, in every worker.
    async fn terms(&mut self, window: u64) -> Result<Arc<Terms>, Failure> {
        self.meter.begin(format!("Window {window}: fetching and loading its checkpoint"), Unit::None, 0);
        let terms = self.checkpoints.terms_for(window).await.map_err(|unready| match unready {
            NotReady::None => Failure::Data(format!("no checkpoint was ready before window {window}, so it cannot be judged")),
            NotReady::Unusable(why) => Failure::Data(why),
        })?;
        let command = self.checkpoints.reload_command().ok_or_else(|| Failure::Internal("no checkpoint is loaded".into()))?;
        self.pool.reload(command);
        tokio::select! {
            ready = tokio::time::timeout(LOAD_LIMIT, self.pool.serving(&terms.revision)) => {
                ready.map_err(|_| Failure::Unavailable("no proof worker could load the checkpoint".into()))?;
            }
            why = self.pool.refusing(&terms.revision) => return Err(Failure::Data(format!("a proof worker refused the checkpoint: {why}"))),
        }
        self.pool.all_serving(&terms.revision, ALL_WORKERS).await;
        Ok(terms)
    }

    fn row_context<'a>(&'a self, terms: &'a Terms, randomness: &'a str) -> RowContext<'a> {
        RowContext {
            scheme: self.hotkey.scheme(),
            hotkey: self.hotkey.address(),
            challenge_randomness: randomness,
            vocabulary: terms.vocab_size.into(),
            max_context: terms.max_positions.into(),
            eos_token: Some(terms.chat.eos_token_id().into()),
            generation_params: &terms.generation_params,
            checkpoint_window: Some(terms.revision.window.cast_signed()),
        }
    }

    fn select(&self, file: &WindowFile, randomness: &str) -> Vec<usize> {
        if self.all {
            return (0..file.rows.len()).collect();
        }
        let groups: Vec<i64> = file.rows.iter().map(|row| row.rollout_group).collect();
        select_rows(self.hotkey.address(), randomness, &groups, |row| hash_commit(&file.rows[row].commit))
    }

    /// Forward passes over the rows that may have one, in chunks of sixteen in file order (grail-validation 4.4).
    async fn examine(
        &self,
        context: &RowContext<'_>,
        terms: &Terms,
        commits: &BTreeMap<usize, Value>,
    ) -> BTreeMap<usize, Result<Examination, String>> {
        let mut examinations = BTreeMap::new();
        let mut sequences = Vec::new();
        for (row, commit) in commits {
            match sequence(context, commit) {
                Ok(sequence) => sequences.push((*row, sequence)),
                Err(why) => {
                    examinations.insert(*row, Err(why));
                }
            }
        }
        let examine = ExamineTerms {
            temperature: terms.params.temperature,
            repetition_penalty: terms.params.repetition_penalty,
            eos_token_id: terms.chat.eos_token_id(),
        };
        let jobs = sequences.chunks(PROOF_BATCH_SIZE).map(|chunk| async move {
            let batch = chunk.iter().map(|(_, sequence)| sequence.clone()).collect();
            let proved = self.pool.prove(terms.revision.clone(), batch, Some(examine)).await;
            self.meter.add(chunk.len() as u64);
            (chunk, proved)
        });
        for (chunk, proved) in futures::future::join_all(jobs).await {
            let results: Vec<Result<Examination, String>> = match proved {
                Ok(batch) => batch.proofs.into_iter().map(|proof| Ok(examination(proof))).collect(),
                Err(error) => vec![Err(error.to_string()); chunk.len()],
            };
            examinations.extend(chunk.iter().map(|(row, _)| *row).zip(results));
        }
        examinations
    }
}

enum Fetched {
    File(WindowFile),
    Corrupt(String),
    None(String),
}

/// What a worker needs of a row, if the row passes the checks that make a forward pass safe.
fn sequence(context: &RowContext<'_>, commit: &Value) -> Result<ProofSequence, String> {
    let Admitted { tokens, lengths, randomness, .. } =
        admit(context, commit).map_err(|verdict| verdict.failure.unwrap_or_default())?;
    let (prompt, _) = lengths.ok_or("its lengths do not add up")?;
    let coefficients = coefficients(randomness).map_err(|error| error.to_string())?;
    Ok(ProofSequence {
        tokens: tokens.into_iter().filter_map(|token| u32::try_from(token).ok()).collect(),
        prompt_length: u32::try_from(prompt).map_err(|error| error.to_string())?,
        coefficients,
    })
}

fn examination(proof: Proved) -> Examination {
    Examination {
        sketches: proof.sketches,
        logprobs: proof.logprobs,
        eos_probability: proof.eos_probability,
        probabilities: proof.probabilities,
    }
}

/// What the pure rules ask for, from what was computed before.
struct Bench<'a> {
    terms: &'a Terms,
    hotkey: &'a str,
    block_hash: &'a str,
    examinations: BTreeMap<usize, Result<Examination, String>>,
    prompts: BTreeMap<i64, Result<Prompt, String>>,
    /// What this host could not do: it says nothing about the file.
    trouble: OnceLock<String>,
}

impl Bench<'_> {
    fn canonical(&mut self, group: i64) -> &Result<Prompt, String> {
        let (terms, hotkey, hash, trouble) = (self.terms, self.hotkey, self.block_hash, &self.trouble);
        self.prompts.entry(group).or_insert_with(|| {
            let seed = environment_seed(hotkey, hash, group);
            answered(terms.chat.prompt(&terms.environment, seed), trouble)
        })
    }
}

/// Waits for an answer where nothing can be awaited. `trouble` is told where this host is why there is none.
fn answered<T>(answer: impl Future<Output = Result<T, ReadError>>, trouble: &OnceLock<String>) -> Result<T, String> {
    tokio::runtime::Handle::current().block_on(answer).map_err(|error| {
        if let ReadError::Trouble(_) = &error {
            trouble.get_or_init(|| error.to_string());
        }
        error.to_string()
    })
}

impl Judge for Bench<'_> {
    fn prompt(&mut self, group: i64) -> Result<Vec<i64>, String> {
        self.canonical(group).clone().map(|prompt| prompt.ids.into_iter().map(i64::from).collect())
    }

    fn examine(&mut self, row: usize, _: &Admitted<'_>) -> Result<Examination, String> {
        self.examinations.remove(&row).unwrap_or_else(|| Err("no worker examined it".into()))
    }

    fn evaluate(&self, group: i64, completion: &[i64]) -> Result<Option<f64>, String> {
        let prompt = self.prompts.get(&group).ok_or("the prompt is not known")?.as_ref().map_err(Clone::clone)?;
        let ids: Vec<u32> = completion.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
        let text = answered(self.terms.chat.text(&ids), &self.trouble)?;
        Ok(self.terms.environment.evaluate(&prompt.task, &text, self.terms.mode).ok().map(|evaluation| evaluation.reward))
    }
}

impl Judged {
    fn take(&mut self, verdict: WindowVerdict) -> Outcome {
        let WindowVerdict { rows, account, metrics, .. } = verdict;
        self.checked = account.checked();
        self.valid = account.valid();
        self.metrics = metrics;
        for (_, row) in rows {
            let unjudged = row.passed(Check::Evaluation) == Some(true) && row.passed(Check::Reward).is_none();
            let diagnostics = row.diagnostics;
            self.distances.extend(diagnostics.opened.iter().filter_map(|opened| opened.distance));
            self.deviations.extend(diagnostics.logprobs.map(|deviation| deviation.median));
            self.unjudged += usize::from(unjudged);
            self.unlikely += usize::from(diagnostics.distribution.is_none_or(|metrics| metrics.suspicion().any()));
        }
        match account.rejection() {
            None => Outcome::Accepted,
            Some(rejection) => Outcome::Rejected { reason: rejection.reason(), why: rejection.to_string() },
        }
    }
}
