//! The supervisor's children: proof workers and the generation launcher.
//!
//! ```text
//!           spawn            handshake                  work
//!  Absent ────────▶ Starting ─────────▶ Ready ◀──────────────▶ Busy
//!     ▲                │ exit, time-out    │ exit, end of link, bad frame, time limit
//!     │ back-off over  ▼                   ▼
//!  Backoff ◀──────── one event: Ended ◀────┘          Quarantined: k ends in T, or a worker that differs from the pool
//! ```

mod generator;
mod keep;
mod life_cycle;
mod proof_pool;
mod session;

pub use generator::{Generator, LauncherSettings, Serving};
pub use life_cycle::{ChildState, LifeCycle, Next, RestartPolicy};
pub use proof_pool::{ProofError, ProofPool, Proved, ProvedBatch, WorkerSettings};
pub use session::{ChildPrograms, Programs};
