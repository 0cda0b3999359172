//! Starting, pinning and ending child processes; and the clock, so that both have exactly one room.
//!
//! The only crate beside the libtorch shim that may contain `unsafe` (the code that runs between fork and exec).

mod activity;
mod ask;
pub mod bounds;
mod causes;
pub mod clock;
pub mod environment;
mod identity;
pub mod limits;
mod meter;
pub mod orphans;
pub mod ports;
pub mod privacy;
pub mod proc;
mod recorder;
pub mod records;
mod side_thread;
mod spawn;
pub mod steady;
mod watched;

pub use activity::Activity;
pub use ask::ProgramOutput;
pub use bounds::Limits;
pub use causes::with_causes;
pub use identity::{Identity, Liveness};
pub use meter::{Meter, Step, Unit};
pub use side_thread::{SideThread, SideThreadError};
pub use spawn::{Child, Launch, Output, SpawnError, Spawner, StopOutcome, outlive_parent};
pub use watched::Watched;
