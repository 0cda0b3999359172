//! The workers of this network: proof workers and generation servers, in pools.
//!
//! ```text
//!  proof_pool ── job_queue · agreement     proof_slot   what a proof worker is asked for
//!  generator  ── replicas · traffic        which of the servers a group goes to
//!       elsewhere                          servers that somebody else runs
//! ```

mod agreement;
mod elsewhere;
mod generator;
mod job_queue;
mod programs;
mod proof_pool;
mod proof_slot;
mod refusals;
mod replicas;
mod traffic;

pub use elsewhere::Elsewhere;
pub use generator::{Generator, LauncherSettings, Serving};
pub use programs::{ChildPrograms, Programs};
pub use proof_pool::{ProofError, ProofMode, ProofPool, Proved, ProvedBatch, WorkerNumerics, WorkerSettings};
pub use proof_slot::started_with;
pub use replicas::{Home, Replica, Replicas};
pub use traffic::{Flow, InFlight, Traffic};
