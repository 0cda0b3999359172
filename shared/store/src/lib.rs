//! Object storage, checkpoints and window files in the network's formats.
//!
//! [`bucket`] speaks to one S3 bucket, [`local_server`] is a bucket for machines that have none, [`checkpoint`] finds,
//! fetches, checks and publishes model weights, [`window_file`] is the Parquet form of a mined window, and [`retention`]
//! bounds what is kept on disk.
#![forbid(unsafe_code)]

pub mod bucket;
pub mod checkpoint;
pub mod local_server;
pub mod retention;
pub mod window_file;
