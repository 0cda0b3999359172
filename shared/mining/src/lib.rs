//! Mining: from a problem index to a file in the bucket, and what becomes of it.
//!
//! | room | what belongs there |
//! |---|---|
//! | [`run`] | the miner on a host: everything is judged first, then the children are started, then windows are mined |
//! | [`window`] | one window from its opening to the end of its file |
//! | [`groups`] | one group from its index to sixteen signed rows |
//! | [`schedule`], [`clockwork`], [`server_load`] | what is begun and what is given up, so that a window is full and never late |
//! | [`spool`], [`gate`], [`upload`] | what is kept, judged and sent |
//! | [`status`], [`events`] | what is shown and written down of it |
#![forbid(unsafe_code)]

pub mod clockwork;
pub mod events;
pub mod gate;
pub mod groups;
pub mod run;
pub mod schedule;
pub mod server_load;
pub mod spool;
pub mod status;
pub mod upload;
pub mod window;
