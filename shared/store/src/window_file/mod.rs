//! Window files: one Parquet object per window, a row per rollout (grail-miner 7, grail-protocol 3.5).
//!
//! The writer makes what the network's own writer makes: zstd level 1, dictionaries, chunk statistics, data page v1, every
//! field optional. The reader accepts any codec, distrusts everything it reads, and sorts failures into the two classes
//! that have different consequences for a miner: [`WindowFileError::Corrupt`] is banned, [`WindowFileError::Unreadable`]
//! counts as no file.

mod commitments;
mod layout;
mod pages;
mod reader;
mod schema;
mod splice;
mod writer;

#[cfg(test)]
mod tests;

use grail_protocol::row::WindowRow;

pub use layout::{ColumnLayout, WindowLayout, layout};
pub use reader::{MAGIC, MAX_FILE_BYTES, MAX_ROWS, read_window};
pub use splice::{Outline, RowGroupOutline, encode_group, outline, row_groups, splice};
pub use writer::WindowWriter;

/// What the file says about itself, in its key-value metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowMetadata {
    /// The miner's SS58 address.
    pub wallet: String,
    /// First block of the window.
    pub window_start: i64,
    /// Unix seconds at which the file was made.
    pub timestamp: f64,
}

/// A window file as read back.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowFile {
    /// Wallet, window and time.
    pub metadata: WindowMetadata,
    /// Blocks per window, 30.
    pub window_length: i64,
    /// Rows that the writer counted; a reader compares it with `rows.len()` if it cares.
    pub inference_count: i64,
    /// The rows in file order.
    pub rows: Vec<WindowRow>,
}

/// Why a window file was refused or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WindowFileError {
    /// Not a Parquet file, cut short, or a null `rollout_group`: a validator bans the miner for 14 windows.
    #[error("the window file is corrupt, a validator would ban its miner: {0}. Do not upload it")]
    Corrupt(String),
    /// Damaged inside, or not in the network's form: a validator treats it as absent.
    #[error("the window file cannot be read, a validator would treat it as absent: {0}. Do not upload it")]
    Unreadable(String),
    /// The encoder or its sink failed.
    #[error("the window file cannot be written: {0}. Check the free space of the spool's disk")]
    Write(#[from] parquet::errors::ParquetError),
}
