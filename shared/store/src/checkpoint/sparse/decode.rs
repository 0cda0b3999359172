//! Reading a body, one tensor at a time.

use std::io::{BufReader, Chain, Cursor, Read};

use zstd::stream::read::Decoder;
use zstd::zstd_safe::get_frame_content_size;

use super::layout::{IndexType, Positions, read_header};
use super::{SparseError, SparseFormat, SparseTensor, TensorLayout};

/// A frame's header is at most this long.
const FRAME_HEADER: u64 = 18;
/// Bytes of a body's header at most; a large model's has some hundred thousand.
const MAX_HEADER: u64 = 64 << 20;
/// Most bytes that one byte of a frame can stand for: a block of four bytes repeats one byte 128 KiB long.
const MOST_PER_BYTE: u64 = (128 << 10) / 4;
/// Bytes that are allocated before any has come; what comes makes room for more.
const FIRST_BYTES: u64 = 1 << 20;

type Frame<R> = Decoder<'static, BufReader<Chain<Cursor<Vec<u8>>, R>>>;

/// A body that is being read.
pub struct SparseReader<R: Read> {
    /// `None`: an empty file, which changes nothing.
    frame: Option<Frame<R>>,
    layouts: Vec<TensorLayout>,
    next: usize,
}

impl<R: Read> SparseReader<R> {
    /// Reads and judges the header of a compressed body of at most `limit` bytes (uncompressed), which lies in a file of
    /// `compressed` bytes. What it announces is held against both, and nothing is allocated because it was announced.
    ///
    /// # Errors
    /// [`SparseError`] for a frame or header that cannot be used.
    pub fn open(mut file: R, compressed: u64, format: SparseFormat, limit: u64) -> Result<Self, SparseError> {
        let mut start = Vec::new();
        file.by_ref().take(FRAME_HEADER).read_to_end(&mut start).map_err(frame)?;
        if start.is_empty() {
            return Ok(Self { frame: None, layouts: Vec::new(), next: 0 });
        }
        // The network's own decoder wants the size announced, so a frame without it is useless to everybody.
        let announced = get_frame_content_size(&start).map_err(|_| frame("it is no zstd frame, or its header is damaged"))?;
        let size = announced.ok_or_else(|| frame("its header does not announce the content's size"))?;
        if size > limit {
            return Err(frame(format!("its content has {size} bytes, more than the {limit} allowed")));
        }
        if size > compressed.saturating_mul(MOST_PER_BYTE) {
            return Err(frame(format!("it announces {size} bytes, which its {compressed} cannot hold")));
        }
        let rest = BufReader::with_capacity(1 << 17, Cursor::new(start).chain(file));
        let mut decoder = Decoder::with_buffer(rest).map_err(frame)?.single_frame();
        let header = header_of(&mut decoder, size)?;
        let data = size - 4 - header.len() as u64;
        Ok(Self { frame: Some(decoder), layouts: read_header(&header, format, data)?, next: 0 })
    }

    /// What the header says, in the body's order.
    pub fn layouts(&self) -> &[TensorLayout] {
        &self.layouts
    }

    /// The next tensor's changes, judged, of those that `wanted` names; the others are passed over without being kept. `None`
    /// behind the last one, when the frame has ended as it should.
    ///
    /// # Errors
    /// [`SparseError`] for a damaged frame or positions that cannot be.
    pub fn next_tensor(&mut self, wanted: impl Fn(&str) -> bool) -> Result<Option<SparseTensor>, SparseError> {
        let Some(decoder) = &mut self.frame else { return Ok(None) };
        let layout = loop {
            let Some(layout) = self.layouts.get(self.next) else {
                // The checksum, if there is one, is behind the last byte.
                let more = decoder.read(&mut [0]).map_err(frame)?;
                return if more == 0 { Ok(None) } else { Err(frame("it is longer than it announced")) };
            };
            self.next += 1;
            if wanted(&layout.name) {
                break layout;
            }
            pass_over(decoder, layout.indices_size + layout.values_size())?;
        };
        let indices = exactly(decoder, layout.indices_size)?;
        let positions = positions(layout, &indices).map_err(|why| SparseError::Tensor { name: layout.name.clone(), why })?;
        let values = exactly(decoder, layout.values_size())?;
        let (name, shape) = (layout.name.clone(), layout.shape.clone());
        Ok(Some(SparseTensor { name, shape, value_type: layout.value_type, positions, values }))
    }
}

fn frame(why: impl ToString) -> SparseError {
    SparseError::Frame(why.to_string())
}

fn header_of(body: &mut impl Read, size: u64) -> Result<Vec<u8>, SparseError> {
    if size < 4 {
        return Err(SparseError::Header(format!("a body of {size} bytes has no room for it")));
    }
    let length = exactly(body, 4)?;
    let length = u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
    if length > size - 4 || length > MAX_HEADER {
        return Err(SparseError::Header(format!("it claims {length} of {size} bytes")));
    }
    exactly(body, length)
}

/// Reads `length` bytes. The memory grows with what comes, not with what is announced.
fn exactly(body: &mut impl Read, length: u64) -> Result<Vec<u8>, SparseError> {
    let mut bytes = Vec::with_capacity(length.min(FIRST_BYTES) as usize);
    body.take(length).read_to_end(&mut bytes).map_err(frame)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(frame("it ends early")) }
}

fn pass_over(body: &mut impl Read, length: u64) -> Result<(), SparseError> {
    let passed = std::io::copy(&mut body.take(length), &mut std::io::sink()).map_err(frame)?;
    if passed == length { Ok(()) } else { Err(frame("it ends early")) }
}

fn positions(layout: &TensorLayout, bytes: &[u8]) -> Result<Vec<u32>, String> {
    match layout.positions {
        Positions::Flat => flat(layout, bytes),
        Positions::RowsAndColumns(row_type, column_type) => {
            let (rows, columns) = bytes.split_at((layout.entries * row_type.width()) as usize);
            // One loop for each pair of widths: this is where a body's time goes.
            match row_type {
                IndexType::U8 => by_rows::<1>(layout, rows, columns, column_type),
                IndexType::U16 => by_rows::<2>(layout, rows, columns, column_type),
                IndexType::I32 => by_rows::<4>(layout, rows, columns, column_type),
            }
        }
    }
}

fn by_rows<const ROW: usize>(
    layout: &TensorLayout,
    rows: &[u8],
    columns: &[u8],
    column_type: IndexType,
) -> Result<Vec<u32>, String> {
    match column_type {
        IndexType::U8 => rows_and_columns::<ROW, 1>(layout, rows, columns),
        IndexType::U16 => rows_and_columns::<ROW, 2>(layout, rows, columns),
        IndexType::I32 => rows_and_columns::<ROW, 4>(layout, rows, columns),
    }
}

fn flat(layout: &TensorLayout, bytes: &[u8]) -> Result<Vec<u32>, String> {
    let mut ascending = Ascending::of(layout);
    let mut position = 0_i64;
    for step in integers::<4>(bytes) {
        position += step;
        ascending.push(position)?;
    }
    Ok(ascending.positions)
}

fn rows_and_columns<const ROW: usize, const COLUMN: usize>(
    layout: &TensorLayout,
    rows: &[u8],
    columns: &[u8],
) -> Result<Vec<u32>, String> {
    let mut ascending = Ascending::of(layout);
    // Shapes have fewer than 2^32 elements.
    let (width, mut row, mut column) = (layout.columns() as i64, 0_i64, 0_i64);
    for (entry, (down, across)) in integers::<ROW>(rows).zip(integers::<COLUMN>(columns)).enumerate() {
        row += down;
        // A new row starts from its own left edge.
        column = if entry == 0 || down != 0 { across } else { column + across };
        if column < 0 || column >= width || row < 0 {
            return Err(format!("entry {entry} is for row {row}, column {column} of rows of {width}"));
        }
        ascending.push(row.checked_mul(width).and_then(|start| start.checked_add(column)).unwrap_or(-1))?;
    }
    Ok(ascending.positions)
}

/// Positions so far; each must be behind the one before and inside the tensor.
struct Ascending {
    positions: Vec<u32>,
    /// The next one's bounds.
    least: u64,
    elements: u64,
}

impl Ascending {
    /// The bytes of that many entries are in memory already.
    fn of(layout: &TensorLayout) -> Self {
        Self { positions: Vec::with_capacity(layout.entries as usize), least: 0, elements: layout.elements() }
    }

    fn push(&mut self, position: i64) -> Result<(), String> {
        match u32::try_from(position) {
            Ok(position) if (self.least..self.elements).contains(&u64::from(position)) => {
                self.positions.push(position);
                self.least = u64::from(position) + 1;
                Ok(())
            }
            _ => Err(format!(
                "entry {} is for position {position}, want ascending positions below {}",
                self.positions.len(),
                self.elements
            )),
        }
    }
}

/// Little-endian integers of `WIDTH` bytes; those of four have a sign.
fn integers<const WIDTH: usize>(bytes: &[u8]) -> impl Iterator<Item = i64> + '_ {
    bytes.as_chunks::<WIDTH>().0.iter().map(|bytes| {
        let mut wide = [0; 4];
        wide[..WIDTH].copy_from_slice(bytes);
        i64::from(i32::from_le_bytes(wide))
    })
}
