//! What is known about the GPUs that were given to children, through NVML where it is there.
//!
//! ```text
//!  Sensor (NVML, or a script in tests) ──readings, XIDs──▶ watch thread ──▶ Gpus ──▶ classes of deaths
//!                                                             │                └──▶ may a child start here? (Clearance)
//!                                                             └── Judge: what is worth a line
//! ```
//!
//! Nothing here is needed to mine. Without the library, or once it stops answering, the state is unknown, which is said once:
//! deaths are then classed without it, and a child starts without looking whether its GPU is free. A look that has not been made yet
//! is waited for, because nobody can tell from it that a GPU is free.

mod clearance;
mod judge;
mod nvml;
mod watch;

pub use clearance::{Clearance, Verdict};
pub use judge::{Judge, Note};
pub use nvml::{Card, Driver, Nvml};
pub use watch::{Gpus, Look};

use std::time::Duration;

use serde::Serialize;

/// One look at one GPU. What its driver does not tell is `None`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GpuReading {
    /// Bytes in use, by anybody.
    pub memory_used: u64,
    /// Bytes there are.
    pub memory_total: u64,
    /// Processes that compute on it, as far as this host's driver names them (not across containers).
    pub processes: Vec<GpuProcess>,
    /// Degrees Celsius.
    pub temperature: Option<u32>,
    /// Degrees Celsius at which the driver slows the GPU down.
    pub slowdown_temperature: Option<u32>,
    /// Watts.
    pub power: Option<f64>,
    /// The power cap in force, watts.
    pub power_cap: Option<f64>,
    /// The cap it was delivered with, watts.
    pub default_power_cap: Option<f64>,
    /// Memory errors that could not be corrected, since the driver was loaded.
    pub uncorrected_errors: Option<u64>,
}

/// A process on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GpuProcess {
    /// Process id.
    pub pid: u32,
    /// Its program, where it can be seen.
    pub program: String,
    /// Bytes it holds.
    pub bytes: Option<u64>,
}

/// Why nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SensorError {
    /// The library cannot be loaded or initialised.
    #[error("NVML is not there: {0}; install the NVIDIA driver's libnvidia-ml.so.1 or mount it into the container")]
    Absent(String),
    /// The library answers no longer, as after a driver update under way.
    #[error("NVML answers no longer: {0}; restart the supervisor once the driver is back")]
    Lost(String),
    /// One GPU does not answer any more.
    #[error("GPU {gpu} does not answer: {reason}")]
    Gone {
        /// The GPU as the settings name it.
        gpu: String,
        /// What the driver says.
        reason: String,
    },
    /// The GPU has no such name for NVML (a MIG instance, an unknown UUID).
    #[error("GPU {gpu} cannot be watched: {reason}")]
    Unwatched {
        /// The GPU as the settings name it.
        gpu: String,
        /// Why.
        reason: String,
    },
}

/// Where readings come from. It may block: it runs on a thread of its own.
pub trait Sensor: Send {
    /// Looks at one GPU, named as in `CUDA_VISIBLE_DEVICES` (an index in the order of PCI addresses, or a UUID).
    ///
    /// # Errors
    /// When nothing can be known about it.
    fn read(&mut self, gpu: &str) -> Result<GpuReading, SensorError>;

    /// GPUs of which [`Sensor::xids`] will never tell, and why.
    fn without_xids(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Waits at most `wait` for XIDs, and returns those that came.
    ///
    /// # Errors
    /// When the library is lost.
    fn xids(&mut self, wait: Duration) -> Result<Vec<(String, u32)>, SensorError>;
}

/// Bytes for people.
fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests;
