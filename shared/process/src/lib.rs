//! Starting, pinning and ending child processes; and the clock, so that both have exactly one room.
//!
//! The only crate beside the libtorch shim that may contain `unsafe` (the code that runs between fork and exec).

mod activity;
mod aside;
mod ask;
pub mod bounds;
pub mod clock;
pub mod environment;
mod identity;
pub mod limits;
pub mod orphans;
pub mod ports;
pub mod privacy;
pub mod proc;
mod recorder;
pub mod records;
mod spawn;
pub mod steady;
mod watched;

pub use activity::Activity;
pub use aside::{Aside, HeldUp};
pub use ask::Said;
pub use bounds::Limits;
pub use identity::{Identity, Standing};
pub use spawn::{Child, Course, Launch, Output, SpawnError, Spawner, outlive_parent};
pub use watched::Watched;
