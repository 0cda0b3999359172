//! Children: processes that are kept alive, life after life.
//!
//! ```text
//!  team ── the children of one kind
//!  keep ── one task per child: carries out what the life cycle decides, and alone changes it
//!   ├── life_cycle   states, probes, back-off, quarantine (pure)   progress   how long work may stand still (pure)
//!   ├── death        why it died, and what follows (pure)          event      what is worth a line
//!   └── session      spawn, hello, messages                        output     its log lines, the last ones kept
//! ```
//!
//! What a child is asked for is its workload's: [`Kept`].

mod death;
mod event;
mod keep;
mod life;
mod life_cycle;
mod output;
mod progress;
mod session;
mod team;
mod throttle;

pub use death::{Cause, Death, DeathClass, Exit, Facts, Reaction, classify};
pub use event::ChildEvent;
pub use keep::Kept;
pub use life::Life;
pub use life_cycle::{Action, ChildState, Event, LifeCycle, LifePolicy, Overdue, RestartPolicy};
pub use progress::{Progress, ProgressPolicy};
pub use session::{Incoming, Opening, broken, unexpected};
pub use team::Team;
