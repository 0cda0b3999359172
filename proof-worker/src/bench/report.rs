//! The figures, as a table and as JSON.

use std::fmt;

use grail_link::message::Reloaded;
use grail_model::{Drift, Mode, Runtime};
use serde::Serialize;

use super::rival::{BenchWorker, PassTimes};
use super::workload::Workload;

const MIB: f64 = (1 << 20) as f64;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    device: String,
    libtorch: String,
    threads: usize,
    model: String,
    weights_mib: f64,
    rollouts: usize,
    tokens: usize,
    /// Rollouts per second of the baseline: the median round.
    baseline: Option<f64>,
    /// Its processor seconds: the median round.
    baseline_processor: Option<f64>,
    /// Floating-point operations per second of a large matrix product in the model's type.
    gemm: f64,
    rows: Vec<Row>,
    /// Of exact proofs of one sequence at a time from exact proofs of whole groups: what batch composition alone does.
    drift_of_composition: Option<Drift>,
    #[serde(skip)]
    operations: f64,
    /// Whether any of this ran on a GPU.
    gpu: bool,
}

/// One mode.
#[derive(Debug, Serialize)]
pub struct Row {
    mode: &'static str,
    /// Wall seconds of every round.
    seconds: Vec<f64>,
    rollouts_per_second: f64,
    /// Over the baseline's, from the median rounds.
    ratio: Option<f64>,
    /// Processor seconds of the median round, and the baseline's over them.
    processor: f64,
    processor_ratio: Option<f64>,
    /// Share of the time that is not the forward pass.
    beside: f64,
    /// Achieved share of the matrix product's rate, attention not counted.
    gemm_share: f64,
    /// The same with every end of sequence and chosen token examined.
    examined_rollouts_per_second: f64,
    start_seconds: f64,
    bare_mib: f64,
    /// Resident beyond the weights, before the first job.
    beyond_weights_mib: f64,
    /// Of that, pages of files, which workers of a host share.
    shared_mib: f64,
    /// Most that the timed passes added to that, and most that the worker had predicted.
    batch_mib: f64,
    predicted_batch_mib: Option<f64>,
    reload_seconds: f64,
    /// Weights over the whole reload: judged, copied, hashed.
    reload_gb_per_second: f64,
    drift_from_exact: Option<Drift>,
    drift_from_baseline: Option<Drift>,
    /// From exact, with a third of a batch's memory left on a GPU.
    drift_of_little_memory: Option<Drift>,
    #[serde(skip)]
    rounds: usize,
    #[serde(skip)]
    examined_seconds: f64,
    #[serde(skip)]
    resident_mib: f64,
}

impl Row {
    /// What was seen of a rival.
    pub fn new(
        rival: &BenchWorker,
        exact: Option<Drift>,
        baseline: Option<Drift>,
        starved: Option<Drift>,
        examined: PassTimes,
        reload: Reloaded,
    ) -> Self {
        let seconds: Vec<f64> = rival.passes.iter().map(|pass| pass.round_trip).collect();
        let beside: f64 = rival.passes.iter().map(|pass| pass.beside).sum();
        Self {
            mode: rival.mode.name(),
            beside: beside / seconds.iter().sum::<f64>(),
            rounds: seconds.len(),
            seconds,
            rollouts_per_second: 0.0,
            ratio: None,
            processor: median(&rival.passes.iter().map(|pass| pass.processor).collect::<Vec<_>>()),
            processor_ratio: None,
            gemm_share: 0.0,
            examined_rollouts_per_second: 0.0,
            examined_seconds: examined.round_trip,
            start_seconds: rival.start,
            bare_mib: rival.bare,
            beyond_weights_mib: 0.0,
            shared_mib: rival.shared,
            batch_mib: rival.peak - rival.loaded,
            predicted_batch_mib: rival.predicted,
            resident_mib: rival.loaded,
            reload_seconds: reload.seconds,
            reload_gb_per_second: 0.0,
            drift_from_exact: exact.filter(|_| rival.mode != Mode::Exact),
            drift_from_baseline: baseline,
            drift_of_little_memory: starved,
        }
    }
}

impl Report {
    /// Works the ratios out.
    pub fn new(
        runtime: &Runtime,
        workload: &Workload,
        baseline: Option<(Vec<f64>, Vec<f64>)>,
        rows: Vec<Row>,
        alone: Option<Drift>,
        gemm: f64,
        gpu: bool,
    ) -> Self {
        let rollouts = workload.sequences.len();
        let rate = |seconds: f64| rollouts as f64 / seconds;
        let baseline_processor = baseline.as_ref().map(|(_, processor)| median(processor));
        let baseline = baseline.map(|(seconds, _)| rate(median(&seconds)));
        let operations = workload.operations();
        let weights_mib = workload.weight_bytes as f64 / MIB;
        let finish = |row: Row| {
            let seconds = median(&row.seconds);
            Row {
                rollouts_per_second: rate(seconds),
                ratio: baseline.map(|baseline| rate(seconds) / baseline),
                processor_ratio: baseline_processor.map(|baseline| baseline / row.processor),
                gemm_share: operations / seconds / gemm,
                examined_rollouts_per_second: rate(row.examined_seconds),
                beyond_weights_mib: row.resident_mib - weights_mib,
                reload_gb_per_second: workload.weight_bytes as f64 / 1e9 / row.reload_seconds,
                ..row
            }
        };
        let c = &workload.config;
        Self {
            device: runtime.to_string(),
            libtorch: runtime.libtorch.to_owned(),
            threads: runtime.threads,
            model: format!(
                "{:?}, hidden {}, {} layers, vocabulary {}",
                c.architecture, c.hidden_size, c.num_hidden_layers, c.vocab_size
            ),
            weights_mib,
            rollouts,
            tokens: workload.tokens(),
            baseline,
            baseline_processor,
            gemm,
            rows: rows.into_iter().map(finish).collect(),
            drift_of_composition: alone,
            operations,
            gpu,
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; {} threads{}", self.device, self.threads, if self.gpu { "" } else { "; not measured on a GPU" })?;
        writeln!(f, "{}, weights {:.0} MiB; {} rollouts, {} tokens", self.model, self.weights_mib, self.rollouts, self.tokens)?;
        writeln!(f, "matrix product {:.2} TFLOP/s; the job needs {:.2} TFLOP", self.gemm / 1e12, self.operations / 1e12)?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<14} {:>10} {:>8} {:>9} {:>8} {:>8} {:>8} {:>10}",
            "", "rollouts/s", "ratio", "CPU s", "ratio", "beside", "of GEMM", "examined/s"
        )?;
        if let Some(baseline) = self.baseline {
            let processor = self.baseline_processor.unwrap_or(f64::NAN);
            writeln!(f, "{:<14} {:>10.2} {:>7.2}x {:>9.2} {:>7.2}x", "transformers", baseline, 1.0, processor, 1.0)?;
        }
        for row in &self.rows {
            let times = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}x"));
            writeln!(
                f,
                "{:<14} {:>10.2} {:>8} {:>9.2} {:>8} {:>7.2}% {:>7.1}% {:>10.2}",
                row.mode,
                row.rollouts_per_second,
                times(row.ratio),
                row.processor,
                times(row.processor_ratio),
                row.beside * 100.0,
                row.gemm_share * 100.0,
                row.examined_rollouts_per_second
            )?;
        }
        writeln!(f)?;
        for row in &self.rows {
            if let Some(drift) = &row.drift_from_baseline {
                writeln!(f, "{:<14} from transformers: {drift}", row.mode)?;
            }
            if let Some(drift) = &row.drift_from_exact {
                writeln!(f, "{:<14} from exact:        {drift}", row.mode)?;
            }
        }
        for row in &self.rows {
            if let Some(drift) = &row.drift_of_little_memory {
                writeln!(f, "{:<14} with little memory: {drift}", row.mode)?;
            }
        }
        if let Some(drift) = &self.drift_of_composition {
            writeln!(f, "{:<14} from exact:        {drift}", "exact, alone")?;
        }
        writeln!(f)?;
        for row in &self.rows {
            writeln!(
                f,
                "{:<14} ready in {:.2} s with {:.0} MiB; beyond the weights {:.0} MiB ({:.0} of them shared), a batch {:.0} MiB{}; reload {:.2} GB/s",
                row.mode,
                row.start_seconds,
                row.bare_mib,
                row.beyond_weights_mib,
                row.shared_mib,
                row.batch_mib,
                row.predicted_batch_mib.map_or(String::new(), |predicted| format!(" (predicted at most {predicted:.0})")),
                row.reload_gb_per_second
            )?;
        }
        write!(f, "(medians of {} rounds)", self.rows.first().map_or(0, |row| row.rounds))
    }
}
