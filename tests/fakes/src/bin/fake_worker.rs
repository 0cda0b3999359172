//! `fake-worker`: stands in for `grail-proof-worker`. Speaks the real link protocol over the real socket, proves with
//! arithmetic instead of a model, and fails where its script says so. Plain blocking I/O: one job at a time, nothing hidden.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use grail_fakes::{Act, Script, WorkerLie, prove};
use grail_link::message::{
    ApplyCommand, FromWorker, ProofJob, ReloadCommand, Reloaded, Revision, SequenceProof, ToWorker, WorkerHello,
};
use grail_link::{MAX_FRAME_BYTES, decode_frame, encode_frame};
use grail_protocol::commitment::hash_sketches;
use grail_protocol::constants::PRIME_Q;

const HEADER_BYTES: usize = 12;

fn main() -> ExitCode {
    eprintln!("INFO A fake proof worker stands in for grail-proof-worker: proofs are arithmetic, there is no model.");
    match Worker::start().and_then(|mut worker| worker.work()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ERROR The fake worker ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Worker {
    act: Act,
    slot: u32,
    link: UnixStream,
    resident: Option<Revision>,
    jobs: u64,
}

fn argument(name: &str) -> anyhow::Result<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1).with_context(|| format!("{name} is missing"))
}

impl Worker {
    fn start() -> anyhow::Result<Self> {
        let slot: u32 = argument("--slot")?.parse()?;
        let act = Act::begin(&Script::folder(), &format!("worker {slot}"))?;
        let link = UnixStream::connect(argument("--socket")?)?;
        let mut worker = Self { act, slot, link, resident: None, jobs: 0 };
        // Honest ones are on what they are told to be on.
        let on_gpu = argument("--device")? == "cuda" && worker.act.worker_lie(slot, 0) != Some(WorkerLie::ComputesOnCpu);
        worker.send(&FromWorker::Hello(WorkerHello {
            pid: std::process::id(),
            slot,
            device: if on_gpu { "cuda:0" } else { "cpu" }.into(),
            device_reason: (!on_gpu).then(|| "a fake has no GPU".into()),
            device_name: "none: a fake".into(),
            driver: None,
            libtorch: "none: a fake".into(),
            dtype: "f32".into(),
            attention: "cpu-flash".into(),
            precision_tuning: 0,
            tf32_overrides: Vec::new(),
            mode: "exact".into(),
        }))?;
        Ok(worker)
    }

    fn work(&mut self) -> anyhow::Result<()> {
        while let Some(command) = self.receive()? {
            match command {
                ToWorker::Reload(command) => self.reload(command)?,
                // Without tensors nothing can be changed in place; the whole checkpoint is sent then.
                ToWorker::Apply(ApplyCommand { revision, .. }) => {
                    self.send(&FromWorker::ReloadRefused { revision, reason: "a fake holds no tensors".into() })?;
                }
                ToWorker::Prove(job) => self.job(&job)?,
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> anyhow::Result<Option<ToWorker>> {
        let mut frame = vec![0; HEADER_BYTES];
        match self.link.read_exact(&mut frame) {
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return Ok(None),
            read => read?,
        }
        let length = u32::from_le_bytes(frame[4..8].try_into()?) as usize;
        if length > MAX_FRAME_BYTES {
            bail!("a frame of {length} bytes");
        }
        frame.resize(HEADER_BYTES + length, 0);
        self.link.read_exact(&mut frame[HEADER_BYTES..])?;
        Ok(Some(decode_frame(&frame)?))
    }

    fn send(&mut self, message: &FromWorker) -> anyhow::Result<()> {
        Ok(self.link.write_all(&encode_frame(message)?)?)
    }

    fn lie(&self) -> Option<WorkerLie> {
        let lie = self.act.worker_lie(self.slot, self.jobs);
        if let Some(lie) = lie {
            eprintln!("WARN The fake worker lies: {lie:?}.");
        }
        lie
    }

    fn reload(&mut self, command: ReloadCommand) -> anyhow::Result<()> {
        let lie = if self.jobs == 0 { self.lie() } else { None };
        std::thread::sleep(Script::time(self.act.script.load_seconds));
        let mut weights_hash = command.revision.weights_hash.clone();
        match lie {
            Some(WorkerLie::RefuseReload) => {
                let reason = "the script refuses the weights".to_owned();
                return self.send(&FromWorker::ReloadRefused { revision: command.revision, reason });
            }
            Some(WorkerLie::OtherWeights) => weights_hash = "f".repeat(32),
            Some(WorkerLie::Hang) => hang(),
            Some(WorkerLie::Die) => bail!("the script ends this life during the load"),
            _ => {}
        }
        self.resident = Some(command.revision.clone());
        self.send(&FromWorker::Reloaded(Reloaded {
            revision: command.revision,
            weights_hash,
            vocab_size: 1 << 20,
            max_positions: 1 << 20,
            batch_bytes: None,
            seconds: self.act.script.load_seconds,
        }))
    }

    fn job(&mut self, job: &ProofJob) -> anyhow::Result<()> {
        self.jobs += 1;
        if self.resident.as_ref() != Some(&job.revision) {
            let reason = format!("revision {} is asked for, {:?} is resident", job.revision, self.resident);
            return self.send(&FromWorker::JobRefused { job: job.id, reason });
        }
        let lie = self.lie();
        std::thread::sleep(Script::time(self.act.script.job_seconds));
        if lie == Some(WorkerLie::Slow) {
            std::thread::sleep(Duration::from_secs(10));
        }
        let half = job.sequences.len() / 2;
        for index in 0..job.sequences.len() {
            let proof = prove(job, u32::try_from(index)?).context("an index of the job")?;
            match lie.filter(|lie| index == half || matches!(lie, WorkerLie::OtherSketches | WorkerLie::Unsteady)) {
                None => self.send(&FromWorker::Sequence(proof))?,
                Some(lie) => self.tell(lie, proof)?,
            }
        }
        self.send(&FromWorker::JobDone { job: job.id, seconds: self.act.script.job_seconds, seconds_beside: 0.0 })
    }

    /// Answers one sequence as the lie wants it.
    fn tell(&mut self, lie: WorkerLie, mut proof: SequenceProof) -> anyhow::Result<()> {
        match lie {
            WorkerLie::Die => bail!("the script ends this life in the middle of a job"),
            WorkerLie::Hang => hang(),
            WorkerLie::MissingProof => return Ok(()),
            WorkerLie::OtherSketches | WorkerLie::Unsteady => {
                let jobs = if lie == WorkerLie::Unsteady { u32::try_from(self.jobs % 500)? } else { 0 };
                let shift = 1_000_000_007 + 1_000_003 * jobs;
                proof.sketches.iter_mut().for_each(|sketch| *sketch = (*sketch + shift) % PRIME_Q);
                proof.commitments_hash = hash_sketches(&proof.sketches);
            }
            WorkerLie::WrongHash => proof.commitments_hash[0] ^= 1,
            WorkerLie::WrongLength => {
                proof.sketches.pop();
                proof.logprobs.pop();
            }
            WorkerLie::NotANumber => proof.logprobs[0] = f32::NAN,
            WorkerLie::HalfAFrame => {
                let frame = encode_frame(&FromWorker::Sequence(proof))?;
                self.link.write_all(&frame[..frame.len() / 2])?;
                bail!("the script closes the socket in the middle of a frame");
            }
            WorkerLie::DamagedFrame => {
                let mut frame = encode_frame(&FromWorker::Sequence(proof))?;
                *frame.last_mut().context("a frame has bytes")? ^= 1;
                return Ok(self.link.write_all(&frame)?);
            }
            WorkerLie::Flood => loop {
                self.send(&FromWorker::Sequence(proof.clone()))?;
            },
            WorkerLie::Slow | WorkerLie::RefuseReload | WorkerLie::OtherWeights | WorkerLie::ComputesOnCpu => {}
        }
        self.send(&FromWorker::Sequence(proof))
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}
