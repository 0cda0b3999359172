//! The workers of this network: proof workers and generation servers, in pools.
//!
//! ```text
//!  proof_pool ── job_queue · agreement     proof_slot   what a proof worker is asked for
//!  generator  ── replicas · traffic        which of the servers a group goes to
//!       elsewhere                          servers that somebody else runs
//! ```

mod agreement;
pub mod completions;
mod external_server;
mod generator;
mod job_queue;
pub mod open_files;
pub mod plan;
pub mod preflight;
mod programs;
mod proof;
mod proof_pool;
mod proof_shared;
mod proof_slot;
mod refusals;
mod replicas;
mod serving;
mod traffic;

pub use agreement::on_its_device;
pub use external_server::ExternalServer;
pub use generator::{Generator, LauncherSettings};
pub use programs::{ChildPrograms, Programs};
pub use proof::{ProofError, Proved, ProvedBatch};
pub use proof_pool::ProofPool;
pub use proof_shared::WorkerSettings;
pub use proof_slot::{readers, started_with};
pub use replicas::{AssignedServer, Replica, Replicas};
pub use serving::Serving;
pub use traffic::{Flow, InFlight, Traffic};
