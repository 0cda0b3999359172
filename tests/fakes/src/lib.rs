//! Stand-ins for the programs and services around the supervisor, for tests: honest by default, and lying where a script says
//! so. `fake-worker` and `fake-launcher` (with its generation server) take the real programs' places in `programs.folder`;
//! [`LyingBucket`] stands between the supervisor and an honest S3 server. None of them has a model: completions are random
//! ids, proofs are arithmetic over them, so that any two fakes agree and a window of them passes the validator's checks.

mod arithmetic;
mod bucket;
pub mod hostile;
mod http;
mod script;

pub use arithmetic::{completion, prove};
pub use bucket::{BucketCue, BucketLie, LyingBucket, MINER_BUCKET, READ_PAIR, WRITE_PAIR};
pub use http::{Reply, serve};
pub use script::{Act, Script, ServerCue, ServerLie, ServerLies, WorkerCue, WorkerLie};
