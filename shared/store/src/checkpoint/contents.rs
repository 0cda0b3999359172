//! What of a model directory is the checkpoint, what of it is missing, and what lies there for other purposes: a training run
//! leaves its optimizer, its arguments and copies of the weights in other forms beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::CheckpointError;
use super::code::{MARK, MARKED};
use super::error::local;
use super::metadata::is_plain_name;
use super::weights::{TensorPlace, tensor_places_among};

/// Weights in one file.
const SINGLE: &str = "model.safetensors";
/// Which shard has which tensor, where there are several.
const INDEX: &str = "model.safetensors.index.json";
const TEMPLATE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Files that what loads a checkpoint cannot do without, and how to get them.
const REQUIRED: [(&str, &str); 3] = [
    ("config.json", "save the model with save_pretrained, which writes it"),
    ("tokenizer.json", "save the fast tokenizer beside the model: AutoTokenizer.from_pretrained(…).save_pretrained(…)"),
    (TOKENIZER_CONFIG, "save the tokenizer beside the model: AutoTokenizer.from_pretrained(…).save_pretrained(…)"),
];
/// Files that are part of a checkpoint where they are there.
const OPTIONAL: [&str; 9] = [
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE,
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
];
/// Bytes of a JSON document that is looked into here; a tokenizer is not.
const MOST_BYTES: u64 = 64 << 20;
/// Shards, or names in a message, beyond which they are counted.
const MOST_NAMED: usize = 12;
/// What stands in a clone without Git LFS where a file should be.
const POINTER: &[u8] = b"version https://git-lfs";

/// The files of a complete checkpoint, by name.
pub(super) struct Contents {
    /// Weights, sorted.
    pub(super) weights: Vec<PathBuf>,
    /// Everything that is published, sorted, weights too.
    pub(super) files: Vec<String>,
    /// Everything that is not, sorted; folders end in `/`.
    pub(super) left: Vec<String>,
}

impl Contents {
    /// Looks at a directory, and names everything that is missing or ambiguous at once.
    ///
    /// # Errors
    /// [`CheckpointError::Unpublishable`], and [`CheckpointError::Local`] for a directory that cannot be listed.
    pub(super) fn of(dir: &Path) -> Result<Self, CheckpointError> {
        let there = entries(dir)?;
        let mut mistakes = Vec::new();
        for (name, remedy) in REQUIRED {
            if !there.contains(name) {
                mistakes.push(format!("{name} is missing; {remedy}"));
            }
        }
        mistakes.extend(template(dir, &there));
        let weights = weights(dir, &there).unwrap_or_else(|found| {
            mistakes.extend(found);
            BTreeSet::new()
        });
        let is_part = |name: &&String| {
            let name = name.as_str();
            weights.contains(name) || REQUIRED.iter().any(|(part, _)| *part == name) || OPTIONAL.contains(&name)
        };
        let mut files: Vec<String> = there.iter().filter(is_part).cloned().collect();
        if there.contains(INDEX) && !weights.contains(SINGLE) {
            files.push(INDEX.to_owned());
            files.sort();
        }
        for name in &files {
            mistakes.extend(beginning(dir, name)?);
        }
        if !mistakes.is_empty() {
            return Err(unpublishable(dir, &mistakes));
        }
        let left = there.into_iter().filter(|name| !files.contains(name)).collect();
        Ok(Self { weights: weights.iter().map(|name| dir.join(name)).collect(), files, left })
    }

    /// Every tensor by name, from where the index says where there is one.
    ///
    /// # Errors
    /// As [`tensor_places_among`]; [`CheckpointError::Unpublishable`] where the index disagrees with its shards.
    pub(super) fn tensors(&self, dir: &Path) -> Result<BTreeMap<String, TensorPlace>, CheckpointError> {
        let places = tensor_places_among(dir, &self.weights)?;
        if !self.files.iter().any(|name| name == INDEX) {
            return Ok(places);
        }
        let map = index(dir).map_err(|why| unpublishable(dir, &[why]))?;
        let moved = map.iter().find(|(name, file)| places.get(*name).is_none_or(|place| place.file != dir.join(file)));
        let unknown = places.keys().find(|name| !map.contains_key(*name));
        let why = match (moved, unknown) {
            (None, None) => return Ok(places),
            (Some((name, file)), _) => format!("{INDEX} puts the tensor {name} into {file}, where it is not"),
            (None, Some(name)) => format!("{INDEX} does not name the tensor {name}, which is in a shard"),
        };
        Err(unpublishable(dir, &[format!("{why}; save the model again, index and shards belong together")]))
    }
}

fn unpublishable(dir: &Path, mistakes: &[String]) -> CheckpointError {
    let why = match mistakes {
        [only] => only.clone(),
        several => format!("{} mistakes\n  {}", several.len(), several.join("\n  ")),
    };
    CheckpointError::Unpublishable { path: dir.to_owned(), why }
}

/// The names in a directory; those of folders end in `/`.
fn entries(dir: &Path) -> Result<BTreeSet<String>, CheckpointError> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(local(dir))? {
        let path = entry.map_err(local(dir))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        names.insert(if path.is_file() { name } else { format!("{name}/") });
    }
    Ok(names)
}

/// What is wrong with the chat template: without one nothing makes a prompt.
fn template(dir: &Path, there: &BTreeSet<String>) -> Option<String> {
    #[derive(Deserialize)]
    struct Config {
        chat_template: Option<IgnoredAny>,
    }
    // One that is missing is told already.
    if there.contains(TEMPLATE) || !there.contains(TOKENIZER_CONFIG) {
        return None;
    }
    match document::<Config>(dir, TOKENIZER_CONFIG) {
        Ok(Config { chat_template: Some(_) }) => None,
        Ok(Config { chat_template: None }) => Some(format!(
            "there is no chat template, neither {TEMPLATE} nor chat_template in {TOKENIZER_CONFIG}; set tokenizer.chat_template and \
             save the tokenizer again"
        )),
        Err(why) => Some(why),
    }
}

/// The names of the weight files, or what is wrong with them.
fn weights(dir: &Path, there: &BTreeSet<String>) -> Result<BTreeSet<String>, Vec<String>> {
    let single = there.contains(SINGLE);
    if single && there.contains(INDEX) {
        return Err(vec![format!(
            "there are two sets of weights, {SINGLE} and the shards of {INDEX}, and not everything that loads them takes the same one; \
             remove the one that is not meant"
        )]);
    }
    if single {
        return Ok([SINGLE.to_owned()].into());
    }
    if !there.contains(INDEX) {
        return Err(vec![no_weights(there)]);
    }
    let named: BTreeSet<String> = index(dir).map_err(|why| vec![why])?.into_values().collect();
    if let Some(name) = named.iter().find(|name| !is_plain_name(name)) {
        return Err(vec![format!("{INDEX} names {name:?}, which is no plain file name; save the model again")]);
    }
    let missing: Vec<&str> = named.iter().filter(|name| !there.contains(*name)).map(String::as_str).collect();
    match missing.as_slice() {
        [] if named.is_empty() => Err(vec![format!("{INDEX} names no shard; save the model again")]),
        [] => Ok(named),
        missing => Err(vec![format!(
            "{} of the {} shards that {INDEX} names are missing: {}; copy the whole model",
            missing.len(),
            named.len(),
            shortened(missing)
        )]),
    }
}

fn no_weights(there: &BTreeSet<String>) -> String {
    let ending = |ending: &str| there.iter().map(String::as_str).filter(|name| name.ends_with(ending)).collect::<Vec<_>>();
    let (found, other) = (ending(".safetensors"), [ending(".bin"), ending(".pth"), ending(".pt")].concat());
    if !found.is_empty() {
        return format!(
            "there is neither {SINGLE} nor {INDEX}, without which nobody knows whether shards are whole ({}); copy the index too, or \
             save the model again",
            shortened(&found)
        );
    }
    let other = if other.is_empty() { String::new() } else { format!(" ({} is not loaded)", shortened(&other)) };
    format!("there are no weights, neither {SINGLE} nor shards with {INDEX}{other}; save the model with safe_serialization=True")
}

fn index(dir: &Path) -> Result<BTreeMap<String, String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    document::<Index>(dir, INDEX).map(|index| index.weight_map)
}

fn document<T: serde::de::DeserializeOwned>(dir: &Path, name: &str) -> Result<T, String> {
    let mut bytes = Vec::new();
    let file = File::open(dir.join(name)).map_err(|error| format!("{name} cannot be read: {error}"))?;
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|error| format!("{name} cannot be read: {error}"))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!("{name} has more than {MOST_BYTES} bytes; save it again"));
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("{name} cannot be used: {error}; save it again"))
}

/// What is wrong with a file that can be told by its first bytes.
fn beginning(dir: &Path, name: &str) -> Result<Option<String>, CheckpointError> {
    let (path, mut begin) = (dir.join(name), Vec::new());
    let file = File::open(&path).map_err(local(&path))?;
    file.take(POINTER.len() as u64).read_to_end(&mut begin).map_err(local(&path))?;
    if begin == POINTER {
        return Ok(Some(format!("{name} is a Git LFS pointer, not the file; run `git lfs pull` in its folder")));
    }
    let marked = begin.starts_with(MARK) && name.ends_with(".json");
    Ok(marked.then(|| format!("{name} begins with {MARKED}")))
}

/// Some names, and how many more there are.
fn shortened(names: &[&str]) -> String {
    let more = names.len().saturating_sub(MOST_NAMED);
    let shown = names[..names.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    const TEXTS: [(&str, &str); 3] =
        [("config.json", "{}"), ("tokenizer.json", "{}"), ("tokenizer_config.json", r#"{"chat_template": "x"}"#)];

    /// What is wrong with a folder that has everything but these.
    fn refused(files: &[(&str, &str)]) -> String {
        let dir = folder(&[&TEXTS, files].concat());
        Contents::of(dir.path()).map(|contents| contents.files).unwrap_err().to_string()
    }

    #[test]
    fn weights_are_one_file_or_what_an_index_names() {
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        for (files, why) in [
            (&[][..], "there are no weights, neither"),
            (&[("pytorch_model.bin", "")], "(pytorch_model.bin is not loaded)"),
            (&[("model-00001-of-00001.safetensors", "")], "neither model.safetensors nor model.safetensors.index.json"),
            (&[("weights.safetensors", "")], "(weights.safetensors)"),
            (&[(INDEX, index), ("model-1.safetensors", "")], "1 of the 2 shards"),
            (&[(INDEX, index), (SINGLE, "")], "two sets of weights"),
            (&[(INDEX, r#"{"weight_map": {}}"#)], "names no shard"),
            (&[(INDEX, r#"{"weight_map": {"a": "../other.safetensors"}}"#)], "no plain file name"),
            (&[(INDEX, "[")], "model.safetensors.index.json cannot be used"),
            (&[(SINGLE, "version https://git-lfs.github.com/spec/v1\n")], "model.safetensors is a Git LFS pointer"),
        ] {
            let said = refused(files);
            assert!(said.contains(why), "{files:?}: {said}");
        }
    }

    #[test]
    fn shards_of_another_set_and_weights_for_others_are_left_behind() {
        let index = r#"{"weight_map": {"a": "model-1.safetensors"}}"#;
        let others =
            [(INDEX, index), ("model-1.safetensors", ""), ("model-2.safetensors", ""), ("adapter_model.safetensors", "")];
        let dir = folder(&[&TEXTS[..], &others].concat());
        std::fs::create_dir(dir.path().join("runs")).unwrap();
        let contents = Contents::of(dir.path()).unwrap();
        let files = ["config.json", "model-1.safetensors", INDEX, "tokenizer.json", "tokenizer_config.json"];
        assert_eq!(contents.files, files);
        assert_eq!(contents.weights, [dir.path().join("model-1.safetensors")]);
        assert_eq!(contents.left, ["adapter_model.safetensors", "model-2.safetensors", "runs/"]);
    }

    #[test]
    fn a_template_is_a_file_or_in_the_configuration() {
        let weights = (SINGLE, "");
        for (config, there) in [(r#"{"chat_template": null}"#, false), ("{}", false), (r#"{"chat_template": [1]}"#, true)] {
            let dir = folder(&[TEXTS[0], TEXTS[1], (TOKENIZER_CONFIG, config), weights]);
            assert_eq!(Contents::of(dir.path()).is_ok(), there, "{config}");
            std::fs::write(dir.path().join(TEMPLATE), "x").unwrap();
            assert!(Contents::of(dir.path()).is_ok(), "{config}");
        }
    }
}
