//! A host that runs a workload: its children are kept alive, pinned and watched, what happened is written down, what is going on is
//! shown, and a stop comes to its end in time. It knows no workload, no settings and no chain: it gets what it needs.
//!
//! | room | what belongs there |
//! |---|---|
//! | [`host`] | from the state folder to the last record: how a workload is run |
//! | [`children`] | one process kept alive: life cycle, deaths, messages, output |
//! | [`gpu`] | what NVML tells of the children's GPUs |
//! | [`journal`], [`board`], [`log`] | what happened, what is going on, what is said |
//! | [`state`] | the state folder, and who has it |
//! | [`shutdown`], [`signals`], [`orphans`], `backstop` | how a run ends |
//! | [`secrets`] | what is taken out of everything that is written |
//! | [`exit`] | why a command ended, and its exit code |
//! | [`failpoint`] | where tests can hold the program |
#![forbid(unsafe_code)]

mod backstop;
pub mod board;
pub mod children;
pub mod exit;
pub mod failpoint;
pub mod gpu;
pub mod host;
pub mod journal;
pub mod log;
pub mod orphans;
pub mod secrets;
pub mod shutdown;
pub mod signals;
pub mod state;

/// For [`event!`].
#[doc(hidden)]
pub use tracing;
