//! One mode as a real worker process: started, loaded, measured and ended as the supervisor would.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use grail_link::message::{ExamineTerms, FromWorker, ProofJob, ReloadCommand, Reloaded, Revision, ToWorker};
use grail_link::{Connection, Listener};
use grail_model::{Checkpoint, DeviceWish, Mode, Precision, Proof};
use grail_process::{Child, Launch, Spawner, clock, environment};

use super::workload::Workload;

const MIB: f64 = (1 << 20) as f64;

/// What one pass took, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct PassTimes {
    /// From the job's first byte on the socket to the last answer's last.
    pub round_trip: f64,
    /// All of it but the forward pass.
    pub beside: f64,
    /// Processor time of all threads, which a busy machine disturbs less than the wall clock.
    pub processor: f64,
}

/// Processor seconds of a process so far.
pub fn processor_seconds(pid: u32) -> anyhow::Result<f64> {
    /// `USER_HZ`, the same on every Linux.
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let ticks: f64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS_PER_SECOND)
}

/// A worker in one mode.
pub struct BenchWorker {
    pub mode: Mode,
    child: Child,
    _spawner: Spawner,
    link: Connection<FromWorker, ToWorker>,
    revision: Option<Revision>,
    /// From spawn to the first message, seconds.
    pub start: f64,
    /// Resident MiB before the first model.
    pub bare: f64,
    /// Resident MiB with the model, before the first job.
    pub loaded: f64,
    /// Of that, pages of files, libtorch's above all, which all workers of a host share.
    pub shared: f64,
    /// Most MiB that the worker said a batch would take.
    pub predicted: Option<f64>,
    /// Most that was resident during the timed passes, MiB.
    pub peak: f64,
    /// Timed passes.
    pub passes: Vec<PassTimes>,
    pub last: PassTimes,
    /// The last pass's proofs.
    pub proofs: Vec<Proof>,
}

impl BenchWorker {
    /// Starts a worker and waits until it says hello.
    ///
    /// # Errors
    /// When it does not, as on another device than the bench has found.
    pub async fn start(mode: Mode, on: DeviceWish, dtype: Precision, threads: usize, folder: &Path) -> anyhow::Result<Self> {
        let listener = Listener::bind(&folder.join("run").join(format!("{mode}.sock")))?;
        let words = ["--slot", "0", "--device", on.name(), "--mode", mode.name(), "--dtype", dtype.name(), "--threads"];
        let words = words.map(Into::into);
        let arguments = words.into_iter().chain([threads.to_string().into(), "--socket".into(), listener.path().into()]);
        let spawner = Spawner::start()?;
        let begun = clock::monotonic();
        let mut child = spawner
            .spawn(Launch {
                name: mode.to_string(),
                program: std::env::current_exe()?,
                arguments: arguments.collect(),
                environment: environment::for_child(std::env::vars_os(), [("OMP_WAIT_POLICY".into(), "passive".into())]),
            })
            .await?;
        if let Some(output) = child.take_output() {
            tokio::spawn(super::relay(output.stderr));
        }
        let link: Connection<FromWorker, ToWorker> = listener.accept(child.pid()).await?;
        let mut rival = Self {
            mode,
            child,
            _spawner: spawner,
            link,
            revision: None,
            start: 0.0,
            bare: 0.0,
            loaded: 0.0,
            shared: 0.0,
            predicted: None,
            peak: 0.0,
            passes: Vec::new(),
            last: PassTimes::default(),
            proofs: Vec::new(),
        };
        let FromWorker::Hello(_) = rival.receive().await? else { bail!("{mode}: the first message is no hello") };
        rival.start = begun.elapsed().as_secs_f64();
        rival.bare = rival.resident("VmRSS")?;
        Ok(rival)
    }

    async fn receive(&mut self) -> anyhow::Result<FromWorker> {
        self.link.inbox.receive().await?.with_context(|| format!("{}: the worker ended", self.mode))
    }

    /// Resident memory in MiB, from the kernel.
    pub fn resident(&self, field: &str) -> anyhow::Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.pid()))?;
        let line = text.lines().find(|line| line.starts_with(field)).context("no such field")?;
        let kib: f64 = line.split_whitespace().nth(1).unwrap_or("0").parse()?;
        Ok(kib * 1024.0 / MIB)
    }

    /// Loads a model into the empty worker.
    pub async fn load(&mut self, directory: &Path) -> anyhow::Result<()> {
        self.predicted = self.reload(directory).await?.batch_bytes.map(|bytes| bytes as f64 / MIB);
        self.loaded = self.resident("VmRSS")?;
        self.shared = self.resident("RssFile")?;
        // From here on the peak is that of the jobs, not that of loading.
        std::fs::write(format!("/proc/{}/clear_refs", self.child.pid()), "5")?;
        Ok(())
    }

    /// Takes the weights in `directory` and says what the worker said.
    pub async fn reload(&mut self, directory: &Path) -> anyhow::Result<Reloaded> {
        let revision = Revision { window: 0, weights_hash: Checkpoint::open(directory)?.weights_hash()? };
        let command = ReloadCommand { revision: revision.clone(), directory: directory.into(), manifest: Default::default() };
        self.link.outbox.send(&ToWorker::Reload(command)).await?;
        match self.receive().await? {
            FromWorker::Reloaded(reloaded) => {
                self.revision = Some(revision);
                Ok(reloaded)
            }
            other => bail!("{}: the model is refused: {other:?}", self.mode),
        }
    }

    /// Does the whole job once, as one job per group.
    pub async fn prove(&mut self, workload: &Workload, examine: Option<ExamineTerms>) -> anyhow::Result<()> {
        self.prove_by(16, workload, examine).await
    }

    /// Does the whole job once, as jobs of `size` sequences.
    pub async fn prove_by(&mut self, size: usize, workload: &Workload, examine: Option<ExamineTerms>) -> anyhow::Result<()> {
        self.proofs.clear();
        self.last = PassTimes::default();
        let processor = processor_seconds(self.child.pid())?;
        for sequences in workload.sequences.chunks(size) {
            let revision = self.revision.clone().context("no model is loaded")?;
            let job = ProofJob { id: 1, revision, sequences: sequences.to_vec(), examine };
            let begun = clock::monotonic();
            self.link.outbox.send(&ToWorker::Prove(job)).await?;
            loop {
                match self.receive().await? {
                    FromWorker::Sequence(proof) => {
                        self.proofs.push(Proof { sketches: proof.sketches, logprobs: proof.logprobs, examined: None });
                    }
                    FromWorker::JobDone { seconds, seconds_beside, .. } => {
                        let round_trip = begun.elapsed().as_secs_f64();
                        self.last.round_trip += round_trip;
                        self.last.beside += round_trip - seconds + seconds_beside;
                        break;
                    }
                    other => bail!("{}: the job is refused: {other:?}", self.mode),
                }
            }
        }
        self.last.processor = processor_seconds(self.child.pid())? - processor;
        Ok(())
    }

    /// Counts the last pass as a timed one.
    pub fn keep(&mut self) -> anyhow::Result<()> {
        self.passes.push(self.last);
        self.peak = self.resident("VmHWM")?;
        Ok(())
    }

    /// Ends the worker.
    pub async fn stop(mut self) {
        drop(self.link);
        self.child.stop(Duration::from_secs(5)).await;
    }
}
