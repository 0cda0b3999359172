//! Program code in a checkpoint. The families that are mined need none, and what loads a checkpoint would run it as this user:
//! Python files beside the weights, and `auto_map`, by which any of the JSON documents names classes in such files or in
//! repositories elsewhere.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::CheckpointError;
use super::error::local;

/// Endings of files that an interpreter or the dynamic linker runs.
const CODE: [&str; 9] = ["py", "pyc", "pyo", "pyd", "pyw", "pyz", "so", "dll", "dylib"];
/// The key that names code.
const AUTO_MAP: &str = "auto_map";
/// Documents about a checkpoint, which nothing that loads it reads.
const NOT_LOADED: [&str; 3] = ["metadata.json", "snapshot_metadata.json", "delta_metadata.json"];
/// What some editors put before a text. Python's json refuses it, and so do the tokenizers.
pub(super) const MARK: &[u8] = b"\xef\xbb\xbf";
/// What is told of it.
pub(super) const MARKED: &str = "a byte order mark, which the network's loaders refuse; save it as UTF-8 without one";
/// Bytes of one document. The largest, a tokenizer's, has some tens of millions.
const MOST_BYTES: u64 = 256 << 20;

/// Refuses names of files that are code, before anything is downloaded.
pub(super) fn refuse_names<'a>(window: u64, mut names: impl Iterator<Item = &'a str>) -> Result<(), CheckpointError> {
    match names.find(|name| is_code(name)) {
        Some(name) => Err(CheckpointError::Code { window, name: name.to_owned(), why: "is program code".into() }),
        None => Ok(()),
    }
}

fn is_code(name: &str) -> bool {
    let mut parts = name.split('.').skip(1);
    // Every ending counts: `x.so.1` is one.
    parts.any(|part| CODE.iter().any(|code| part.eq_ignore_ascii_case(code)))
}

/// Refuses a directory that holds code, or a document that names some.
///
/// # Errors
/// [`CheckpointError::Code`] with the file's name; [`CheckpointError::Local`] where the directory cannot be read.
pub fn refuse_code(window: u64, dir: &Path) -> Result<(), CheckpointError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(local(dir))? {
        names.push(entry.map_err(local(dir))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    refuse_code_among(window, dir, &names)
}

/// As [`refuse_code`], of these files of `dir`.
pub(super) fn refuse_code_among(window: u64, dir: &Path, names: &[String]) -> Result<(), CheckpointError> {
    for name in names {
        let path = dir.join(name);
        let refuse = |why: &str| Err(CheckpointError::Code { window, name: name.clone(), why: why.to_owned() });
        if is_code(name) {
            return refuse("is program code");
        }
        let is_document = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
        if is_document && !NOT_LOADED.contains(&name.as_str()) && path.is_file() {
            match names_code(&path)? {
                Ok(false) => {}
                Ok(true) => return refuse("names program code (auto_map)"),
                // What reads it elsewhere is more lenient, and would find what is not found here.
                Err(why) => return refuse(&format!("cannot be searched for the names of program code ({why})")),
            }
        }
    }
    Ok(())
}

/// Whether a document has the key at any depth, or why that cannot be told.
fn names_code(path: &Path) -> Result<Result<bool, String>, CheckpointError> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(local(path))?);
    let bytes = file.get_ref().metadata().map_err(local(path))?.len();
    if bytes > MOST_BYTES {
        return Ok(Err(format!("it has {bytes} bytes, more than {MOST_BYTES}")));
    }
    if file.fill_buf().map_err(local(path))?.starts_with(MARK) {
        return Ok(Err(format!("it begins with {MARKED}")));
    }
    let mut found = false;
    let mut document = serde_json::Deserializer::from_reader(file.take(MOST_BYTES));
    let searched = Search { found: &mut found, named: false }.deserialize(&mut document).and_then(|()| document.end());
    Ok(if found { Ok(true) } else { searched.map(|()| false).map_err(|error| error.to_string()) })
}

/// Walks through a document without keeping it, until the key is found.
struct Search<'a> {
    found: &'a mut bool,
    /// Whether the key stands before this value. In a vocabulary it may stand before a number, which names nothing.
    named: bool,
}

impl Search<'_> {
    fn see<E: Error>(self) -> Result<(), E> {
        if self.named {
            *self.found = true;
            return Err(E::custom("found"));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Search<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Search<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { found, named } = self;
        Search { found, named }.see()?;
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(Search { found, named: key == AUTO_MAP })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { found, named } = self;
        Search { found, named }.see()?;
        while list.next_element_seed(Search { found, named: false })?.is_some() {}
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.see()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.see()
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(name: &str, text: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
        refuse_code(30, dir.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn files_of_code_are_refused_by_name() {
        for name in ["modeling_own.py", "x.PY", "tokenization.pyc", "libx.so", "libx.so.1", "custom.py.bak"] {
            let error = judged(name, "").unwrap_err();
            assert!(error.contains(name) && error.contains("program code"), "{error}");
            assert!(refuse_names(30, ["config.json", name].into_iter()).unwrap_err().to_string().contains(name));
        }
        for name in ["model.safetensors", "merges.txt", "chat_template.jinja", "README.md", "python.txt", "tokenizer.model"] {
            assert_eq!(judged(name, "not JSON"), Ok(()), "{name}");
        }
    }

    #[test]
    fn documents_that_name_code_are_refused_at_any_depth() {
        for text in [
            r#"{"auto_map": {"AutoTokenizer": ["own.Own", null]}}"#,
            r#"{"a": [1, {"b": {"auto\u005fmap": "own.Own"}}]}"#,
            r#"{"auto_map": []}"#,
            r#"{"a": 1, "auto_map": {"#,
        ] {
            let error = judged("tokenizer_config.json", text).unwrap_err();
            assert!(error.contains("tokenizer_config.json names program code (auto_map)"), "{text}: {error}");
        }
        for text in [r#"{"model": {"vocab": {"auto_map": 7}}}"#, r#"{"auto_map": null}"#, r#"["auto_map"]"#, "17"] {
            assert_eq!(judged("vocab.json", text), Ok(()), "{text}");
        }
        let marked = judged("config.json", "\u{feff}{}").unwrap_err();
        assert!(marked.contains("config.json") && marked.contains("byte order mark"), "{marked}");
        // Python reads these two, and would find what stands behind.
        for text in [r#"{"a": NaN, "auto_map": {"x": "y"}}"#, r#"{"a": "\ud800", "auto_map": {"x": "y"}}"#] {
            let error = judged("generation_config.json", text).unwrap_err();
            assert!(error.contains("cannot be searched"), "{text}: {error}");
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(judged("deep.json", &deep).unwrap_err().contains("cannot be searched"));
    }
}
