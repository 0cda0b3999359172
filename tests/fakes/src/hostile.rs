//! Hostile bytes for every decoder of what comes from outside: what cargo-fuzz drives for hours (`fuzz/`), the test suite drives
//! for seconds, over the same corpora. A decoder passes if it neither panics nor takes the machine's memory, and what it
//! accepts survives being written and read again.

use std::fmt::Debug;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use axum::body::Bytes;
use grail_chain::commitment::Registration;
use grail_chain::era::Era;
use grail_chain::extrinsic::{Terms, contributions, set_commitment};
use grail_chain::metadata::Metadata;
use grail_chain::{events, storage};
use grail_environments::ThinkingMode;
use grail_link::message::{FromLauncher, FromReader, FromWorker, ToLauncher, ToReader, ToWorker};
use grail_link::{PROTOCOL_VERSION, decode_frame, encode_frame};
use grail_mining::spool::GroupRecord;
use grail_process::Spawner;
use grail_store::checkpoint::sparse::{self, SparseError, SparseFormat, SparseReader, SparseTensor};
use grail_store::window_file::{WindowWriter, read_window};
use grail_subnet::reader::{Bounds, ReadError, Readers};
use grail_supervision::journal::{decode, encode};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use scale_value::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use twox_hash::XxHash3_64;

/// Feeds bytes to a decoder and panics where it fails.
pub type Decoder = fn(&[u8]);

/// Every decoder under its name, which is also the name of its fuzz target and of its corpus in `fuzz/corpus`.
pub const DECODERS: [(&str, Decoder); 13] = [
    ("frame_to_worker", frame::<ToWorker>),
    ("frame_from_worker", frame::<FromWorker>),
    ("frame_to_launcher", frame::<ToLauncher>),
    ("frame_from_launcher", frame::<FromLauncher>),
    ("frame_to_reader", frame::<ToReader>),
    ("frame_from_reader", frame::<FromReader>),
    ("sparse_body", sparse_body),
    ("checkpoint_texts", checkpoint_texts),
    ("window_parquet", window_parquet),
    ("spool_record", spool_record),
    ("journal_line", journal_line),
    ("chain_metadata", chain_metadata),
    ("chain_value", chain_value),
];

/// Feeds bytes to the decoder of that name.
///
/// # Panics
/// When there is none of that name, or the decoder fails at them.
pub fn feed(name: &str, bytes: &[u8]) {
    let decoder = DECODERS.iter().find(|(known, _)| *known == name);
    decoder.unwrap_or_else(|| panic!("there is no decoder {name}")).1(bytes);
}

/// As a frame, and as the payload of a frame whose header is right: the checksum keeps almost everything else out.
fn frame<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) {
    for frame in [bytes.to_vec(), framed(bytes), framed(bytes.get(12..).unwrap_or_default())] {
        let Ok(message) = decode_frame::<T>(&frame) else { continue };
        let written = encode_frame(&message).expect("what was read can be written");
        let again: T = decode_frame(&written).expect("what was written can be read");
        assert_eq!(encode_frame(&again).expect("it was written before"), written, "{message:?} and {again:?}");
    }
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let mut frame = b"GR".to_vec();
    frame.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Bytes of a decoded body at most.
const BODY_BYTES: u64 = 1 << 26;

/// As a DELTA's compressed body, and as what is inside one, in every format.
fn sparse_body(bytes: &[u8]) {
    let packed = |body: &[u8]| zstd::bulk::compress(body, 1).expect("bytes can be compressed");
    for frame in [bytes.to_vec(), packed(bytes)] {
        for format in SparseFormat::ALL {
            let Ok(mut tensors) = read_body(&frame, format) else { continue };
            tensors.retain(|tensor| !tensor.positions.is_empty());
            tensors.sort_by(|one, other| one.name.cmp(&other.name));
            let written = packed(&sparse::encode(&tensors, format));
            assert_eq!(read_body(&written, format).expect("what was written can be read"), tensors);
        }
    }
}

fn read_body(frame: &[u8], format: SparseFormat) -> Result<Vec<SparseTensor>, SparseError> {
    let mut reader = SparseReader::open(frame, frame.len() as u64, format, BODY_BYTES)?;
    let mut tensors = Vec::new();
    while let Some(tensor) = reader.next_tensor(|_| true)? {
        tensors.push(tensor);
    }
    Ok(tensors)
}

/// As a checkpoint's chat template, and as its tokenizer, each given to a reader: whatever they do there, it is answered or refused,
/// and nothing happens here.
fn checkpoint_texts(bytes: &[u8]) {
    static ROOM: OnceLock<ReadingRoom> = OnceLock::new();
    let room = ROOM.get_or_init(ReadingRoom::new);
    for name in ["chat_template.jinja", "tokenizer.json"] {
        room.read(name, bytes);
    }
}

/// Where checkpoints are read by real children.
struct ReadingRoom {
    runtime: tokio::runtime::Runtime,
    readers: Readers,
    folder: tempfile::TempDir,
}

impl ReadingRoom {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let bounds = Bounds { answer: Duration::from_secs(2), ..Bounds::default() };
        let spawner = Spawner::start().expect("a thread");
        let readers = Readers::of_program(supervisor(), spawner, folder.path().join("run"), bounds);
        Self { runtime, readers, folder }
    }

    fn read(&self, name: &str, bytes: &[u8]) {
        let directory = tempfile::tempdir_in(self.folder.path()).expect("a folder");
        for whole in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            std::fs::copy(demo().join(whole), directory.path().join(whole)).expect("a file of the demo");
        }
        std::fs::write(directory.path().join(name), bytes).expect("a file");
        let identity = directory.path().display().to_string();
        let read = self.runtime.block_on(async {
            let reader = self.readers.open(directory.path(), ThinkingMode::Native, &identity).await?;
            reader.text(&reader.prompt_ids("Why?").await?).await
        });
        if let Err(error @ ReadError::Trouble(_)) = read {
            panic!("{name}: {error}");
        }
    }
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/checkpoint-a")
}

/// The supervisor beside the test that runs, or where a build puts it.
fn supervisor() -> PathBuf {
    let this = std::env::current_exe().expect("a test knows where it lies");
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug");
    let folders = this.ancestors().skip(1).map(Path::to_path_buf).chain([build]);
    let found = folders.map(|folder| folder.join("grail-supervisor")).find(|path| path.is_file());
    found.expect("grail-supervisor is built: cargo build --workspace --bins")
}

fn window_parquet(bytes: &[u8]) {
    let Ok(file) = read_window(bytes.to_vec()) else { return };
    let mut writer = WindowWriter::new(Vec::new(), &file.metadata).expect("a file can be begun");
    writer.append_group(&file.rows).expect("what was read can be written");
    let written = writer.finish().expect("the file can be finished");
    let again = read_window(written).expect("what was written can be read");
    assert_eq!(again.rows.len(), file.rows.len());
    assert_eq!(again.metadata.wallet, file.metadata.wallet);
}

/// As a spooled group, and as the inside of one whose seal is right.
fn spool_record(bytes: &[u8]) {
    let sealed = seal_of(bytes);
    for bytes in [Bytes::copy_from_slice(bytes), sealed.into()] {
        let Ok(record) = GroupRecord::decode(&bytes) else { continue };
        let written = record.encode().expect("what was read can be written");
        assert_eq!(GroupRecord::decode(&written.into()).expect("what was written can be read"), record);
        window_parquet(&record.file);
    }
}

/// The bytes with the last 32, where a record has its seal, made right.
fn seal_of(bytes: &[u8]) -> Vec<u8> {
    let content = &bytes[..bytes.len().saturating_sub(32)];
    [content, Sha256::digest(content).as_slice()].concat()
}

/// As a line, and as a line whose checksum is right.
fn journal_line(bytes: &[u8]) {
    let body = &bytes[..bytes.len().saturating_sub(26)];
    let summed = [body, format!(",\"sum\":\"{:016x}\"}}", XxHash3_64::oneshot(body)).as_bytes()].concat();
    for line in [bytes, &summed] {
        let Ok(entry) = decode(line) else { continue };
        assert_eq!(decode(encode(&entry).as_bytes()).expect("what was written can be read"), entry);
    }
}

/// As a runtime's metadata, by which then everything is read and made that a miner reads and makes.
fn chain_metadata(bytes: &[u8]) {
    let Ok(metadata) = Metadata::decode(bytes) else { return };
    let values = [[0; 256], [4; 256], [0xff; 256], std::array::from_fn(|place| place as u8)];
    for value in &values {
        for (pallet, item) in CHAIN_ITEMS {
            let _ = storage::value(&metadata, pallet, item, value);
        }
        let _ = Registration::decode(&metadata, value);
        if let Ok(events) = events::decode(&metadata, value) {
            let _ = events.verdict(&metadata, 0);
        }
    }
    let arguments = [Value::u128(81), Value::from_bytes([1; 32])];
    for (pallet, item) in CHAIN_ITEMS {
        for arguments in [&arguments[..], &arguments[..1], &[]] {
            let _ = storage::key(&metadata, pallet, item, arguments);
        }
    }
    for extension in metadata.extensions().iter().take(16) {
        let _ = (metadata.is_empty(extension.extra), metadata.is_empty(extension.additional));
    }
    let (genesis, era) = ([1; 32], Era::mortal(64, 40));
    let terms = Terms { spec_version: 218, transaction_version: 1, genesis, era, birth_hash: [2; 32], nonce: 300, tip: 0 };
    let _ = contributions(&metadata, &terms);
    let _ = set_commitment(&metadata, 81, &[b'x'; 128]);
}

/// What a miner reads of the chain.
const CHAIN_ITEMS: [(&str, &str); 7] = [
    ("System", "Events"),
    ("Timestamp", "Now"),
    ("SubtensorModule", "Uids"),
    ("SubtensorModule", "Keys"),
    ("Commitments", "CommitmentOf"),
    ("SubtensorModule", "NetworksAdded"),
    ("System", "Account"),
];

/// As a value of the real runtime's: the first byte says of which item.
fn chain_value(bytes: &[u8]) {
    static REAL: LazyLock<Metadata> = LazyLock::new(|| {
        let packed = include_bytes!("../../vectors/chain/metadata_218_v14.scale.gz");
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut plain).expect("the vector is gzipped");
        Metadata::decode(&plain).expect("the vector is metadata")
    });
    let Some((item, value)) = bytes.split_first() else { return };
    let (pallet, item) = CHAIN_ITEMS[usize::from(*item) % CHAIN_ITEMS.len()];
    let _ = storage::value(&REAL, pallet, item, value);
    let _ = Registration::decode(&REAL, value);
    if let Ok(events) = events::decode(&REAL, value) {
        let _ = events.verdict(&REAL, 0);
    }
}

/// Damages bytes as disks, networks and enemies do; the same seed makes the same damage.
#[derive(Debug)]
pub struct Mutator {
    random: StdRng,
}

impl Mutator {
    /// A mutator of this seed.
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed) }
    }

    /// One to four changes.
    pub fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..self.random.random_range(1..=4) {
            self.change(&mut bytes);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return bytes.push(self.random.random());
        }
        let at = self.random.random_range(0..bytes.len());
        let length = self.random.random_range(1..=(bytes.len() - at).min(64));
        match self.random.random_range(0..8) {
            0 => bytes[at] ^= 1 << self.random.random_range(0..8_u32),
            1 => bytes[at] = self.random.random(),
            // The values at which lengths and counts go wrong.
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xfb, 0xfc, 0xfd, 0xff][self.random.random_range(0..8_usize)],
            3 => bytes[at..at + length].fill(0xff),
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at..at + length)),
            6 => {
                let piece = bytes[at..at + length].to_vec();
                let to = self.random.random_range(0..=bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let number: u64 = [0, 1 << 31, u64::from(u32::MAX), 1 << 62, u64::MAX][self.random.random_range(0..5_usize)];
                for (place, byte) in bytes[at..].iter_mut().zip(number.to_le_bytes()) {
                    *place = byte;
                }
            }
        }
    }
}
