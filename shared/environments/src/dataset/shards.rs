//! Shards by their names: `train-00000-of-00002.parquet`, as Hugging Face writes them.

use std::path::PathBuf;

use super::{file_name, hub};

/// Where a file stands in its set.
struct Shard {
    /// What the name says before the numbers.
    prefix: String,
    number: usize,
    total: usize,
}

impl Shard {
    fn of_file(name: &str) -> Option<Self> {
        let (before, after) = name.split_once("-of-")?;
        let (prefix, number) = before.rsplit_once('-')?;
        let digits = after.len() - after.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
        // Older files carry a hash of their own behind the numbers.
        let (total, rest) = after.split_at(digits);
        if !rest.starts_with(['.', '-']) || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self { prefix: prefix.to_owned(), number: number.parse().ok()?, total: total.parse().ok()? })
    }
}

/// The files in the order of their numbers: a single one, or a whole set and nothing else. Else what does not fit.
pub(super) fn whole(files: Vec<PathBuf>) -> Result<Vec<PathBuf>, String> {
    if files.iter().all(|path| hub::number(path).is_some()) {
        return numbered(files);
    }
    let mut shards = Vec::new();
    for path in &files {
        match Shard::of_file(&file_name(path)) {
            Some(shard) => shards.push(shard),
            None if files.len() == 1 => return Ok(files),
            None => return Err(format!("{} is no shard of it", file_name(path))),
        }
    }
    let Some(first) = shards.first() else { return Ok(files) };
    if shards.iter().any(|shard| shard.total != first.total) {
        return Err("the shards are of sets of different sizes".to_owned());
    }
    if shards.iter().any(|shard| shard.prefix != first.prefix) {
        return Err("the shards have different names".to_owned());
    }
    if let Some(shard) = shards.iter().find(|shard| shard.number >= shard.total) {
        return Err(format!("a shard has the number {} of {}, which counts from 0", shard.number, shard.total));
    }
    let mut numbered: Vec<(usize, PathBuf)> = shards.iter().map(|shard| shard.number).zip(files.iter().cloned()).collect();
    numbered.sort();
    if let Some(pair) = numbered.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("the shard {} is there twice", pair[0].0));
    }
    if numbered.len() != first.total {
        return Err(format!("only {} of {} shards are there", numbered.len(), first.total));
    }
    Ok(numbered.into_iter().map(|(_, path)| path).collect())
}

/// Files that are named by their numbers alone: every one from 0 on, once. How many there should be is written nowhere; that the
/// rows are as many as the network's is judged elsewhere.
fn numbered(files: Vec<PathBuf>) -> Result<Vec<PathBuf>, String> {
    let mut numbered: Vec<(usize, PathBuf)> =
        files.into_iter().map(|path| (hub::number(&path).unwrap_or_default(), path)).collect();
    numbered.sort();
    for (expected, (number, _)) in numbered.iter().enumerate() {
        if *number < expected {
            return Err(format!("the file {number} is there twice"));
        }
        if *number > expected {
            return Err(format!("the file {expected} is not there"));
        }
    }
    Ok(numbered.into_iter().map(|(_, path)| path).collect())
}
