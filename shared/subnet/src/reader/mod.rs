//! A checkpoint's chat template and tokenizer are a stranger's program: they are run by a child process, never here.
//!
//! ```text
//!  groups · validate · doctor ──▶ Reader ──▶ keeper ══ framed link ══▶ this program again, `read-checkpoint`  (program)
//!                                            one task per checkpoint    held by the kernel to stack, memory and computing time
//! ```
//!
//! One child per checkpoint, warm for as long as somebody has the [`Reader`], and asked in batches. Where it dies, the question it
//! died of is told apart from the others (`verdict`): those are asked again, so that a death costs a question and no answer is
//! ever a wrong one. A checkpoint that does not stay within the limits is refused once, by name, and remembered.

mod keeper;
pub mod program;
mod verdict;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use grail_environments::{Environment, Prompt, ThinkingMode};
use grail_link::message::{FromReader, Question};
use grail_process::{Limits, Spawner};
use keeper::{Asked, Keeper};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Refusals that are remembered.
const REMEMBERED: usize = 64;

/// What a reader may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Stack and memory, for as long as it lives.
    pub limits: Limits,
    /// Computing time until template and tokenizer are loaded. Large multilingual tokenizers take seconds.
    pub load: Duration,
    /// Computing time of one answer, which takes milliseconds.
    pub answer: Duration,
    /// Longest wait for either by the clock. Not short: a loaded host must not look like a slow checkpoint.
    pub patience: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            limits: Limits { stack: 8 << 20, memory: 2 << 30 },
            load: Duration::from_secs(20),
            answer: Duration::from_secs(5),
            patience: Duration::from_secs(90),
        }
    }
}

/// Why template or tokenizer give no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The checkpoint itself is why. What it says is the same the next time.
    #[error("{0}")]
    Refused(String),
    /// This host is why.
    #[error("the reader of the checkpoint's template and tokenizer {0}")]
    Trouble(String),
}

/// Where readers come from. Clones share what was refused.
#[derive(Debug, Clone)]
pub struct Readers(Arc<Source>);

#[derive(Debug)]
struct Source {
    program: PathBuf,
    spawner: Spawner,
    sockets: PathBuf,
    bounds: Bounds,
    /// By the identity of the files.
    refused: Mutex<BTreeMap<String, String>>,
    lives: AtomicU64,
    end: CancellationToken,
    keepers: TaskTracker,
}

impl Readers {
    /// Readers that `spawner` starts from this very program, with sockets in the folder `sockets`.
    pub fn new(spawner: Spawner, sockets: PathBuf) -> Self {
        // Not by its path: an update may have put another build there.
        Self::of_program("/proc/self/exe".into(), spawner, sockets, Bounds::default())
    }

    /// The same from another file of this program, within other bounds; for tests.
    pub fn of_program(program: PathBuf, spawner: Spawner, sockets: PathBuf, bounds: Bounds) -> Self {
        let (end, keepers) = (CancellationToken::new(), TaskTracker::new());
        let (refused, lives) = (Mutex::default(), AtomicU64::new(0));
        Self(Arc::new(Source { program, spawner, sockets, bounds, refused, lives, end, keepers }))
    }

    /// Has a child load template and tokenizer of the directory and make a prompt. `identity` is what a refusal is remembered
    /// under: everything that it depends on.
    ///
    /// # Errors
    /// [`ReadError::Refused`] where they cannot be used or do not stay within the bounds.
    pub async fn open(&self, directory: &Path, mode: ThinkingMode, identity: &str) -> Result<Reader, ReadError> {
        if let Some(why) = self.0.refusal(identity) {
            return Err(ReadError::Refused(why));
        }
        let (ask, questions) = mpsc::unbounded_channel();
        let condemned = Arc::new(OnceLock::new());
        let checkpoint = keeper::Checkpoint { directory: directory.to_owned(), mode, identity: identity.to_owned() };
        let (keeper, eos_token_id) = Keeper::open(self.0.clone(), checkpoint, questions, condemned.clone()).await?;
        self.0.keepers.spawn(keeper.run());
        Ok(Reader { ask, condemned, eos_token_id })
    }

    /// Ends every reader; questions that are open get no answer.
    pub async fn stop(&self) {
        self.0.end.cancel();
        self.0.keepers.close();
        self.0.keepers.wait().await;
    }
}

impl Source {
    fn refusal(&self, identity: &str) -> Option<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).get(identity).cloned()
    }

    fn refuse(&self, identity: &str, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= REMEMBERED {
            // At worst something is looked at once more.
            refused.clear();
        }
        refused.insert(identity.to_owned(), why.to_owned());
    }

    /// A socket that no other life has.
    fn socket(&self) -> PathBuf {
        self.sockets.join(format!("reader-{}.sock", self.lives.fetch_add(1, Ordering::Relaxed)))
    }
}

/// Template and tokenizer of one checkpoint. The child ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Reader {
    ask: mpsc::UnboundedSender<Asked>,
    /// Why nothing is answered any more.
    condemned: Arc<OnceLock<String>>,
    eos_token_id: u32,
}

impl Reader {
    /// The id of the token that ends a turn.
    pub fn eos_token_id(&self) -> u32 {
        self.eos_token_id
    }

    /// The task that an environment seed chooses, with the canonical prompt's ids.
    ///
    /// # Errors
    /// As [`Reader::text`].
    pub async fn prompt(&self, environment: &Environment, seed: u32) -> Result<Prompt, ReadError> {
        let task = environment.task(seed);
        let ids = self.prompt_ids(&task.user_message).await?;
        Ok(Prompt { task, ids })
    }

    /// The ids of the canonical prompt for a user message.
    ///
    /// # Errors
    /// As [`Reader::text`].
    pub async fn prompt_ids(&self, user_message: &str) -> Result<Vec<u32>, ReadError> {
        match self.answer(Question::Prompt(user_message.to_owned())).await? {
            FromReader::Prompt(ids) => Ok(ids),
            other => Err(mismatched(&other)),
        }
    }

    /// The text of ids, special tokens kept.
    ///
    /// # Errors
    /// What template or tokenizer say, that they did not stay within the bounds, or that this host has no reader.
    pub async fn text(&self, ids: &[u32]) -> Result<String, ReadError> {
        match self.answer(Question::Text(ids.to_vec())).await? {
            FromReader::Text(text) => Ok(text),
            other => Err(mismatched(&other)),
        }
    }

    async fn answer(&self, question: Question) -> Result<FromReader, ReadError> {
        let (answer, answered) = oneshot::channel();
        let gone = || match self.condemned.get() {
            Some(why) => ReadError::Refused(why.clone()),
            None => ReadError::Trouble("has ended".into()),
        };
        self.ask.send(Asked::new(question, answer)).map_err(|_| gone())?;
        match answered.await.map_err(|_| gone())?? {
            FromReader::Failed { reason } => Err(ReadError::Refused(reason)),
            answer => Ok(answer),
        }
    }
}

/// The keeper has seen to it that answers are of their question's kind.
fn mismatched(answer: &FromReader) -> ReadError {
    ReadError::Trouble(format!("gave an answer of another kind: {answer:?}"))
}
