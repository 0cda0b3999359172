//! JSON lines: one object per line, blank lines passed over.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::{DatasetError, MAX_ROW_BYTES, Rows};

/// Reads a plain file.
pub(super) fn read<const N: usize>(path: &Path, rows: &mut Rows<'_, N>) -> Result<(), DatasetError> {
    read_lines(path, BufReader::new(open(path)?), rows)
}

/// Reads a gzip file, which may have several members.
pub(super) fn read_gzip<const N: usize>(path: &Path, rows: &mut Rows<'_, N>) -> Result<(), DatasetError> {
    let plain = flate2::bufread::MultiGzDecoder::new(BufReader::new(open(path)?));
    read_lines(path, BufReader::new(plain), rows)
}

fn open(path: &Path) -> Result<File, DatasetError> {
    File::open(path).map_err(|source| DatasetError::Unreadable { path: path.to_owned(), source })
}

fn read_lines<const N: usize>(path: &Path, mut file: impl BufRead, rows: &mut Rows<'_, N>) -> Result<(), DatasetError> {
    let mut line = Vec::new();
    for number in 1.. {
        let bad = |what: String| DatasetError::Row { path: path.to_owned(), row: number, what };
        line.clear();
        // One byte more than allowed, to tell a line that is too long from one that just fits.
        let limit = MAX_ROW_BYTES as u64 + 1;
        let length = file
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut line)
            .map_err(|source| DatasetError::Unreadable { path: path.to_owned(), source })?;
        if length == 0 {
            break;
        }
        if length > MAX_ROW_BYTES {
            return Err(bad(format!("the line is longer than {MAX_ROW_BYTES} bytes")));
        }
        // Some editors begin a text with a mark of its byte order.
        let text = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line[..] };
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let row = texts(text, rows.columns).map_err(|error| bad(format!("the line is not usable JSON: {error}")))?;
        rows.push(row).map_err(bad)?;
    }
    Ok(())
}

fn texts<const N: usize>(line: &[u8], columns: [&str; N]) -> Result<[String; N], serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let row = Columns(columns).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(row)
}

/// Picks text columns out of an object. An ordinary map would keep the last of two columns of one name in silence.
struct Columns<'a, const N: usize>([&'a str; N]);

impl<'de, const N: usize> DeserializeSeed<'de> for Columns<'_, N> {
    type Value = [String; N];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Columns<'_, N> {
    type Value = [String; N];

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "an object with the text columns {}", self.0.join(", "))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut found: [Option<String>; N] = [const { None }; N];
        while let Some(name) = map.next_key::<String>()? {
            let Some(column) = self.0.iter().position(|column| *column == name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if found[column].is_some() {
                return Err(M::Error::custom(format_args!("the column `{name}` stands there twice")));
            }
            match map.next_value::<Value>()? {
                Value::String(text) => found[column] = Some(text),
                _ => return Err(M::Error::custom(format_args!("the column `{name}` is not a text"))),
            }
        }
        if let Some(missing) = found.iter().position(Option::is_none) {
            return Err(M::Error::custom(format_args!("the column `{}` is missing", self.0[missing])));
        }
        Ok(found.map(Option::unwrap_or_default))
    }
}
