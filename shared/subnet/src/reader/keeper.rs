//! One task per checkpoint: keeps a reader there, asks it in batches, and puts back what a death left unanswered.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use grail_environments::ThinkingMode;
use grail_link::message::{FromReader, Question, ToReader};
use grail_link::{Connection, LinkError, Listener};
use grail_process::{Child, Launch, StopOutcome, environment};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::verdict::{End, ReaderExit};
use super::{ReadError, Source};

/// Questions of one message.
const BATCH: usize = 64;
/// Bytes of one message's questions, about.
const BATCH_BYTES: usize = 1 << 20;
/// Questions that may kill readers before nobody is asked any more.
const STRIKES: u32 = 3;
/// Attempts at a first reader where this host is why it does not come.
const OPENINGS: u32 = 3;
/// Pause after a death that nobody is to blame for, doubled up to the longest while nothing is answered.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Time for a process to end whose link has closed.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Bytes of its standard error that are kept, the first ones: the cause comes before its consequences.
const SAID: usize = 4096;

/// A question, and who waits for its answer.
#[derive(Debug)]
pub(super) struct Asked {
    question: Question,
    answer: oneshot::Sender<Result<FromReader, ReadError>>,
    /// Deaths from outside that it has seen.
    deaths: u32,
}

impl Asked {
    pub fn new(question: Question, answer: oneshot::Sender<Result<FromReader, ReadError>>) -> Self {
        Self { question, answer, deaths: 0 }
    }

    fn bytes(&self) -> usize {
        match &self.question {
            Question::Prompt(text) => text.len(),
            Question::Text(ids) => ids.len() * 4,
        }
    }

    /// Whether this is an answer to such a question.
    fn fits(&self, answer: &FromReader) -> bool {
        matches!(
            (&self.question, answer),
            (Question::Prompt(_), FromReader::Prompt(_))
                | (Question::Text(_), FromReader::Text(_))
                | (_, FromReader::Failed { .. })
        )
    }

    fn answered(self, answer: Result<FromReader, ReadError>) {
        // Whoever asked may be gone.
        let _ = self.answer.send(answer);
    }
}

/// Whose template and tokenizer.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub directory: PathBuf,
    pub mode: ThinkingMode,
    pub identity: String,
}

/// A reader process that has loaded the checkpoint.
struct Life {
    child: Child,
    link: Connection<FromReader, ToReader>,
    said: AbortOnDropHandle<String>,
    answered: u64,
}

/// Why there is no reader.
enum Unopened {
    Refused(String),
    Ended(End),
}

/// See the module's text.
pub(super) struct Keeper {
    source: Arc<Source>,
    checkpoint: Checkpoint,
    inbox: mpsc::UnboundedReceiver<Asked>,
    condemned: Arc<OnceLock<String>>,
    life: Option<Life>,
    /// Answers of the last reader that ended.
    last: u64,
    queue: VecDeque<Asked>,
    strikes: u32,
    pause: Duration,
}

impl Keeper {
    /// Opens the first reader.
    pub async fn open(
        source: Arc<Source>,
        checkpoint: Checkpoint,
        inbox: mpsc::UnboundedReceiver<Asked>,
        condemned: Arc<OnceLock<String>>,
    ) -> Result<(Self, u32), ReadError> {
        let mut keeper = Self {
            source,
            checkpoint,
            inbox,
            condemned,
            life: None,
            last: 0,
            queue: VecDeque::new(),
            strikes: 0,
            pause: PAUSE.0,
        };
        let mut tries = 0;
        loop {
            match keeper.begin().await {
                Ok((life, eos_token_id)) => {
                    keeper.life = Some(life);
                    return Ok((keeper, eos_token_id));
                }
                Err(Unopened::Refused(why)) => return Err(ReadError::Refused(keeper.refuse(why))),
                Err(Unopened::Ended(End::Limit(why))) => return Err(ReadError::Refused(keeper.refuse(beyond(&why)))),
                Err(Unopened::Ended(End::Outside(why))) => {
                    tries += 1;
                    if tries >= OPENINGS {
                        return Err(ReadError::Trouble(why));
                    }
                    tracing::warn!(
                        why,
                        "The reader of a checkpoint's template and tokenizer did not come up; it is started again."
                    );
                    keeper.rest().await;
                }
            }
        }
    }

    /// Answers until nobody can ask any more, or until it is told to end.
    pub async fn run(mut self) {
        let end = self.source.end.clone();
        end.run_until_cancelled(self.answer_all()).await;
        if let Some(mut life) = self.life.take() {
            life.child.kill().await;
        }
    }

    async fn answer_all(&mut self) {
        while self.gather().await {
            let batch = self.batch();
            if batch.is_empty() || !self.is_alive().await {
                continue;
            }
            if let Some(end) = self.ask(batch).await {
                self.died(end);
                if self.condemned.get().is_some() {
                    return;
                }
            }
        }
    }

    /// Waits for a question. False: there will be none. A reader that ends meanwhile is replaced at once.
    async fn gather(&mut self) -> bool {
        while self.queue.is_empty() {
            let ended = async {
                match &mut self.life {
                    Some(life) => life.child.exited().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                asked = self.inbox.recv() => match asked {
                    Some(asked) => self.queue.push_back(asked),
                    None => return false,
                },
                _ = ended => {
                    self.bury("ended").await;
                    self.rest().await;
                    self.is_alive().await;
                }
            }
        }
        while let Ok(asked) = self.inbox.try_recv() {
            self.queue.push_back(asked);
        }
        true
    }

    /// The next questions, which stay in the queue until they are answered. Those that nobody waits for are dropped.
    fn batch(&mut self) -> Vec<Question> {
        self.queue.retain(|asked| !asked.answer.is_closed());
        let mut bytes = 0;
        let fits = |asked: &&Asked| {
            bytes += asked.bytes();
            bytes <= BATCH_BYTES || bytes == asked.bytes()
        };
        self.queue.iter().take(BATCH).take_while(fits).map(|asked| asked.question.clone()).collect()
    }

    /// Whether there is a reader; where there is none, one attempt is made.
    async fn is_alive(&mut self) -> bool {
        if self.life.is_some() {
            return true;
        }
        match self.begin().await {
            Ok((life, _)) => self.life = Some(life),
            // It could be opened before: whatever it is, it is no question's fault.
            Err(Unopened::Refused(why) | Unopened::Ended(End::Limit(why) | End::Outside(why))) => {
                tracing::warn!(
                    why,
                    "The reader of the checkpoint's template and tokenizer did not come up; it is started again."
                );
                self.died(End::Outside(why));
                self.rest().await;
            }
        }
        self.life.is_some()
    }

    /// Asks, and gives out answers as they come. `Some`: why the reader ended before the last one.
    async fn ask(&mut self, batch: Vec<Question>) -> Option<End> {
        let (count, patience) = (batch.len(), self.source.bounds.patience);
        let life = self.life.as_mut()?;
        let message = ToReader { questions: batch };
        let sent = life.child.during(patience, life.link.outbox.send(&message)).await;
        if !matches!(sent, StopOutcome::Done(Ok(()))) {
            return Some(self.bury("took no questions").await);
        }
        for _ in 0..count {
            let life = self.life.as_mut()?;
            let course = life.child.during(patience, life.link.inbox.receive()).await;
            let answer = match course {
                StopOutcome::Done(Ok(Some(answer))) => answer,
                StopOutcome::Done(Ok(None)) | StopOutcome::Ended(_) => return Some(self.bury("closed its link").await),
                StopOutcome::Done(Err(error)) => return Some(self.bury(&format!("broke its link: {error}")).await),
                StopOutcome::Late => {
                    let why = format!("gave no answer within {} s", patience.as_secs());
                    return Some(self.bury(&why).await);
                }
            };
            // Answers come in the order of the questions.
            match self.queue.pop_front() {
                Some(asked) if asked.fits(&answer) => {
                    life.answered += 1;
                    self.pause = PAUSE.0;
                    asked.answered(Ok(answer));
                }
                Some(asked) => {
                    self.queue.push_front(asked);
                    return Some(self.bury("gave an answer of another kind").await);
                }
                None => return None,
            }
        }
        None
    }

    /// Ends the reader where it has not ended itself, and says why it did. `why` holds where it had to be ended.
    async fn bury(&mut self, why: &str) -> End {
        let Some(mut life) = self.life.take() else { return End::Outside(why.to_owned()) };
        // A link that closes is as a rule the first that is seen of an end.
        let ended = life.child.during(LAST_WORDS, std::future::pending::<()>());
        let end = match ended.await {
            StopOutcome::Ended(status) => End::of(status, &life.said.await.unwrap_or_default(), &self.source.bounds),
            StopOutcome::Done(()) | StopOutcome::Late => {
                life.child.kill().await;
                End::Outside(why.to_owned())
            }
        };
        self.last = life.answered;
        let (End::Limit(why) | End::Outside(why)) = &end;
        tracing::warn!(why, "The reader of the checkpoint's template and tokenizer ended; it is started again.");
        end
    }

    /// The question that was being answered: again, to blame, or given up.
    fn died(&mut self, end: End) {
        let Some(mut asked) = self.queue.pop_front() else { return };
        if matches!(end, End::Outside(_)) {
            asked.deaths += 1;
        }
        let (End::Limit(why) | End::Outside(why)) = &end;
        match ReaderExit::of(&end, self.last, asked.deaths) {
            ReaderExit::Again => self.queue.push_front(asked),
            ReaderExit::GivenUp => asked.answered(Err(ReadError::Trouble(why.clone()))),
            ReaderExit::Guilty => {
                asked.answered(Err(ReadError::Refused(beyond(why))));
                self.strikes += 1;
                if self.strikes >= STRIKES {
                    let why = self.refuse(beyond(why));
                    // Set once: nothing is answered afterwards.
                    let _ = self.condemned.set(why);
                }
            }
        }
    }

    fn refuse(&self, why: String) -> String {
        self.source.refuse(&self.checkpoint.identity, &why);
        why
    }

    async fn rest(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
    }

    /// Starts a reader and waits until it has loaded the checkpoint.
    async fn begin(&self) -> Result<(Life, u32), Unopened> {
        let failed = |error: &dyn std::fmt::Display| Unopened::Ended(End::Outside(format!("cannot be started: {error}")));
        let socket = self.source.socket();
        let listener = Listener::bind(&socket).map_err(|error| failed(&error))?;
        let mut child = self
            .source
            .spawner
            .spawn_within(self.source.bounds.limits, self.launch(&socket))
            .await
            .map_err(|error| failed(&error))?;
        let said = AbortOnDropHandle::new(tokio::spawn(last_words(&mut child)));
        let pid = child.pid();
        let greeting = async {
            let mut link: Connection<FromReader, ToReader> = listener.accept(pid).await?;
            let first = link.inbox.receive().await?;
            Ok::<_, LinkError>((link, first))
        };
        let ended = match child.during(self.source.bounds.patience, greeting).await {
            StopOutcome::Done(Ok((link, Some(FromReader::Opened { eos_token_id })))) => {
                return Ok((Life { child, link, said, answered: 0 }, eos_token_id));
            }
            StopOutcome::Done(Ok((_, Some(FromReader::Refused { reason })))) => {
                child.kill().await;
                return Err(Unopened::Refused(reason));
            }
            StopOutcome::Ended(status) => Some(status),
            // A link that closes is as a rule the first that is seen of an end.
            StopOutcome::Done(_) => match child.during(LAST_WORDS, std::future::pending::<()>()).await {
                StopOutcome::Ended(status) => Some(status),
                _ => None,
            },
            StopOutcome::Late => None,
        };
        Err(Unopened::Ended(match ended {
            Some(status) => End::of(status, &said.await.unwrap_or_default(), &self.source.bounds),
            None => {
                child.kill().await;
                End::Outside(format!("was not there within {} s", self.source.bounds.patience.as_secs()))
            }
        }))
    }

    fn launch(&self, socket: &std::path::Path) -> Launch {
        let Checkpoint { directory, mode, .. } = &self.checkpoint;
        let bounds = &self.source.bounds;
        let (load, answer) = (bounds.load.as_secs().to_string(), bounds.answer.as_secs().to_string());
        Launch {
            name: "reader".into(),
            program: self.source.program.clone(),
            arguments: vec![
                "read-checkpoint".into(),
                "--socket".into(),
                socket.into(),
                "--checkpoint".into(),
                directory.into(),
                "--mode".into(),
                mode.as_str().into(),
                "--load-seconds".into(),
                load.into(),
                "--answer-seconds".into(),
                answer.into(),
            ],
            // Its last words are told in a line.
            environment: environment::for_child(environment::of_this_process(), [("RUST_BACKTRACE".into(), "0".into())]),
        }
    }
}

/// A refusal for leaving the bounds, complete.
fn beyond(why: &str) -> String {
    format!(
        "the checkpoint's chat template or tokenizer goes beyond what a reader may take: its process {why}. It is refused until it is \
         published anew; tell its trainer"
    )
}

/// Reads what the child writes to its end; nothing of it may block.
fn last_words(child: &mut Child) -> impl Future<Output = String> + Send + 'static {
    let output = child.take_output();
    async move {
        let Some(output) = output else { return String::new() };
        let (_, said) = tokio::join!(first_bytes(output.stdout), first_bytes(output.stderr));
        String::from_utf8_lossy(&said).into_owned()
    }
}

async fn first_bytes(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let (mut kept, mut piece) = (Vec::new(), [0; 1024]);
    while let Ok(read @ 1..) = stream.read(&mut piece).await {
        let room = SAID.saturating_sub(kept.len());
        kept.extend_from_slice(&piece[..read.min(room)]);
    }
    kept
}
