//! The transformers baseline: a Python process that does a pass whenever it is told to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use grail_model::{Device, Proof, Tensor};
use grail_process::{Child, Launch, Spawner, environment};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::Arguments;
use super::rival::processor_seconds;
use super::workload::Workload;

const SCRIPT: &str = include_str!("baseline.py");
/// Importing transformers and loading a large model takes its time.
const START_LIMIT: Duration = Duration::from_secs(300);

/// The running baseline.
pub struct Baseline {
    child: Child,
    _spawner: Spawner,
    lines: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
    results: PathBuf,
    /// Wall time and processor time of each pass.
    pub seconds: Vec<f64>,
    pub processor: Vec<f64>,
}

impl Baseline {
    /// Starts it and waits until its model is loaded; one untimed pass follows.
    pub async fn start(arguments: &Arguments, model: &Path, workload: &Workload, folder: &Path) -> anyhow::Result<Self> {
        if !arguments.python.exists() {
            bail!(
                "{}: there is no Python with torch and transformers; run `make setup`, name one with --python, or leave the \
                 baseline out with --no-baseline",
                arguments.python.display()
            );
        }
        let (script, job, results, socket) =
            (folder.join("baseline.py"), folder.join("job.json"), folder.join("baseline.safetensors"), folder.join("b.sock"));
        std::fs::write(&script, SCRIPT)?;
        let tokens: Vec<&Vec<u32>> = workload.sequences.iter().map(|sequence| &sequence.tokens).collect();
        let coefficients = workload.sequences.first().map(|sequence| sequence.coefficients).unwrap_or_default();
        let text = json!({"sequences": tokens, "prompt": workload.prompt, "coefficients": coefficients});
        std::fs::write(&job, text.to_string())?;
        let device = grail_model::startup(Some(arguments.threads)).device();
        let device_name = if matches!(device, Device::Cuda(_)) { "cuda:0" } else { "cpu" };
        let listener = UnixListener::bind(&socket)?;
        let plain = [
            script.into(),
            socket.into(),
            model.into(),
            job.into(),
            results.clone().into(),
            arguments.threads.to_string().into(),
            arguments.dtype.name_on(device).into(),
            device_name.into(),
        ];
        let spawner = Spawner::start()?;
        let mut child = spawner
            .spawn(Launch {
                name: "the baseline".into(),
                program: std::path::absolute(&arguments.python)?,
                arguments: plain.into(),
                environment: environment::for_child(std::env::vars_os(), [("OMP_WAIT_POLICY".into(), "passive".into())]),
            })
            .await?;
        if let Some(output) = child.take_output() {
            tokio::spawn(super::relay(output.stderr));
            tokio::spawn(super::relay(output.stdout));
        }
        let stream = tokio::select! {
            accepted = tokio::time::timeout(START_LIMIT, listener.accept()) => accepted.context("the baseline does not start")??.0,
            status = child.exited() => bail!("the baseline ended before it was ready ({status})"),
        };
        let (read, orders) = stream.into_split();
        let lines = BufReader::new(read).lines();
        let mut baseline = Self { child, _spawner: spawner, lines, orders, results, seconds: Vec::new(), processor: Vec::new() };
        let ready = baseline.answer().await?;
        eprintln!("baseline: torch {}", ready["torch"].as_str().unwrap_or("unknown"));
        baseline.pass().await?;
        baseline.seconds.clear();
        baseline.processor.clear();
        Ok(baseline)
    }

    async fn answer(&mut self) -> anyhow::Result<Value> {
        match self.lines.next_line().await? {
            Some(line) => Ok(serde_json::from_str(&line)?),
            None => bail!("the baseline ended ({}); its last words are above", self.child.exited().await),
        }
    }

    /// One timed pass over the whole job.
    pub async fn pass(&mut self) -> anyhow::Result<()> {
        let processor = processor_seconds(self.child.pid())?;
        self.orders.write_all(b"pass\n").await?;
        let answer = self.answer().await?;
        self.seconds.push(answer["seconds"].as_f64().context("the baseline's answer has no seconds")?);
        self.processor.push(processor_seconds(self.child.pid())? - processor);
        Ok(())
    }

    /// The last pass's numbers.
    pub async fn proofs(&mut self, workload: &Workload) -> anyhow::Result<Vec<Proof>> {
        let found = Tensor::read_safetensors(&self.results)?;
        let column = |name: &str| {
            let found = found.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor);
            found.with_context(|| format!("the baseline wrote no {name}"))
        };
        let mut sketches = Vec::<i64>::try_from(column("sketches")?)?.into_iter();
        let mut logprobs = Vec::<f32>::try_from(column("logprobs")?)?.into_iter();
        let proof = |tokens: usize, completion: usize| Proof {
            sketches: sketches.by_ref().take(tokens).map(|sketch| u32::try_from(sketch).unwrap_or(u32::MAX)).collect(),
            logprobs: logprobs.by_ref().take(completion).collect(),
            examined: None,
        };
        let mut proof = proof;
        Ok(workload
            .sequences
            .iter()
            .map(|sequence| proof(sequence.tokens.len(), sequence.tokens.len() - workload.prompt))
            .collect())
    }

    /// Ends it.
    pub async fn stop(mut self) {
        drop(self.orders);
        self.child.stop(Duration::from_secs(5)).await;
    }
}
