//! Who lies when: a JSON file beside the fakes, written by the test, read once at the start of every life.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the fakes do besides being honest, and how fast they are.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Script {
    /// Seconds of one proof job.
    pub job_seconds: f64,
    /// Seconds of one completion.
    pub completion_seconds: f64,
    /// Tokens of a completion; 40 to 60 without it.
    #[serde(default)]
    pub completion_tokens: Option<usize>,
    /// Seconds of a load or reload, in workers and server.
    pub load_seconds: f64,
    /// Lies of the workers.
    pub worker: Vec<WorkerCue>,
    /// Lies of the generation server.
    pub server: Vec<ServerCue>,
}

/// When a worker lies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerCue {
    /// Which worker; every one without it.
    pub slot: Option<u32>,
    /// In which of its lives, from 1; in every one without it.
    pub life: Option<u64>,
    /// From which job of that life on, from 1; 0 is the first load or reload.
    pub job: u64,
    /// For how many jobs.
    pub count: u64,
    /// How.
    pub lie: WorkerLie,
}

/// How a worker fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerLie {
    /// Ends after half of the job's sequences.
    Die,
    /// Computes for ever.
    Hang,
    /// Every sketch is another, and the hash fits: only another worker's proof can tell.
    OtherSketches,
    /// Every sketch is another in every job, and the hash fits: it does not prove the same twice.
    Unsteady,
    /// The commitments hash is not that of the sketches.
    WrongHash,
    /// One log-probability and one sketch too few.
    WrongLength,
    /// A log-probability that is no number.
    NotANumber,
    /// One proof too few before the job is said to be done.
    MissingProof,
    /// Half of a frame, then the end of the socket.
    HalfAFrame,
    /// A frame with a damaged payload.
    DamagedFrame,
    /// The same answer again and again.
    Flood,
    /// The job takes ten seconds longer.
    Slow,
    /// The weights are refused.
    RefuseReload,
    /// Other weights are resident than were asked for.
    OtherWeights,
    /// It says hello from the CPU, whatever it was given (job 0).
    ComputesOnCpu,
}

/// When the generation server lies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerCue {
    /// In which of its lives, from 1; in every one without it.
    pub life: Option<u64>,
    /// From which request of that life on, from 1; groups that have heard another lie are passed over.
    pub from: u64,
    /// To how many requests.
    pub count: u64,
    /// How.
    pub lie: ServerLie,
}

/// How the generation server fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerLie {
    /// Three seconds late.
    Slow,
    /// An id that the vocabulary does not have.
    IdOutsideVocabulary,
    /// More tokens than were asked for.
    TooLong,
    /// Fewer tokens than can be proved.
    TooShort,
    /// Neither the end of the sequence nor the full length.
    NoEnd,
    /// Half of the JSON, as a complete answer.
    HalfAnAnswer,
    /// The connection breaks in the middle of the answer.
    CutInTheMiddle,
    /// The connection breaks before the answer.
    Cut,
    /// Status 200, and an error inside.
    ErrorInside,
    /// Status 200, and the request was aborted.
    Aborted,
    /// No answer, ever.
    Hang,
    /// Status 500.
    Status500,
    /// Sampled with other weights.
    WrongWeightVersion,
    /// The process ends.
    Die,
}

/// One life of one fake: its part of the script.
#[derive(Debug, Clone)]
pub struct Act {
    /// The whole script.
    pub script: Script,
    /// Which life this is, from 1.
    pub life: u64,
}

impl Act {
    /// Begins a life of `who`, with the script that lies beside the program. Without a file everything is honest.
    ///
    /// # Errors
    /// When the script is no script, or the lives cannot be counted.
    pub fn begin(folder: &Path, who: &str) -> anyhow::Result<Self> {
        let script = match std::fs::read(folder.join(Script::FILE)) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(_) => Script::default(),
        };
        let path = folder.join(format!("lives of {who}"));
        let mut lives = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        lives.write_all(b"+")?;
        Ok(Self { script, life: lives.metadata()?.len() })
    }

    /// The worker's lie at its `job`-th job, 0 for the first load.
    pub fn worker_lie(&self, slot: u32, job: u64) -> Option<WorkerLie> {
        let due = |cue: &&WorkerCue| {
            let jobs = cue.job..cue.job.saturating_add(cue.count);
            cue.slot.is_none_or(|wanted| wanted == slot) && cue.life.is_none_or(|life| life == self.life) && jobs.contains(&job)
        };
        self.script.worker.iter().find(due).map(|cue| cue.lie)
    }
}

/// The lies of one life of the server.
#[derive(Debug)]
pub struct ServerLies {
    requests: u64,
    /// Cues of this life, and how often each may still be told.
    cues: Vec<(ServerCue, u64)>,
    /// By prompt: the cue that it was lied to by. One group hears one lie only, however its requests arrive among others' and come
    /// again: a second one would find it failed by the first, and nobody would see what becomes of it.
    heard: HashMap<String, usize>,
}

impl ServerLies {
    /// Those of this life.
    pub fn of(act: &Act) -> Self {
        let now = |cue: &&ServerCue| cue.life.is_none_or(|life| life == act.life);
        let cues = act.script.server.iter().filter(now).map(|cue| (cue.clone(), cue.count)).collect();
        Self { requests: 0, cues, heard: HashMap::new() }
    }

    /// The lie that is told to the next request, which is about `prompt`.
    pub fn next(&mut self, prompt: String) -> Option<ServerLie> {
        self.requests += 1;
        let heard = self.heard.get(&prompt).copied();
        let due = |place: &usize| {
            let (cue, left) = &self.cues[*place];
            *left > 0 && self.requests >= cue.from && heard.is_none_or(|other| other == *place)
        };
        let place = (0..self.cues.len()).find(due)?;
        self.heard.insert(prompt, place);
        let (cue, left) = &mut self.cues[place];
        *left -= 1;
        Some(cue.lie)
    }
}

impl Script {
    const FILE: &str = "script.json";

    /// Puts the script beside the fakes in `folder`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        Ok(std::fs::write(folder.join(Self::FILE), serde_json::to_vec_pretty(self)?)?)
    }

    /// A time of the script as a duration.
    pub fn time(seconds: f64) -> Duration {
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    /// The folder of the program that runs, as it was called: a link is not followed, for the script lies beside the link.
    pub fn folder() -> PathBuf {
        let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
        called.parent().map(Path::to_path_buf).unwrap_or_default()
    }
}
