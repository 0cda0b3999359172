//! The supervisor's children: proof workers and the generation launcher.
//!
//! ```text
//!  keep ── one task per child: carries out what the life cycle decides, and alone changes it
//!   ├── life_cycle   states, probes, back-off, quarantine (pure)   progress   how long work may stand still (pure)
//!   ├── death        why it died, and what follows (pure)          event      what is worth a line
//!   ├── session      spawn, hello, messages                        output     its log lines, the last ones kept
//!   └── proof_slot · generator   what a worker and a launcher are asked for
//!       elsewhere  servers that somebody else runs
//!       replicas   which of the launchers' servers a group goes to
//! ```

mod agreement;
mod death;
mod elsewhere;
mod event;
mod generator;
mod job_queue;
mod keep;
mod life;
mod life_cycle;
mod output;
mod progress;
mod proof_pool;
mod proof_slot;
mod refusals;
mod replicas;
mod session;
mod throttle;
mod traffic;

pub use death::{Cause, Death, DeathClass, Exit, Facts, Reaction, classify};
pub use elsewhere::Elsewhere;
pub use event::ChildEvent;
pub use generator::{Generator, LauncherSettings, Serving};
pub use life_cycle::{Action, ChildState, Event, LifeCycle, LifePolicy, Overdue, RestartPolicy};
pub use progress::{Progress, ProgressPolicy};
pub use proof_pool::{ProofError, ProofMode, ProofPool, Proved, ProvedBatch, WorkerNumerics, WorkerSettings};
pub(crate) use proof_slot::started_with;
pub use replicas::{Home, Replica, Replicas};
pub use session::{ChildPrograms, Programs};
pub use traffic::{Flow, InFlight, Traffic};
