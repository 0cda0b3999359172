//! The data sets, judged before anything is started: every row of every split, and whether it can be the network's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use grail_environments::dataset::SourceSplit;
use grail_environments::{Dataset, DatasetError, EnvironmentId, gsm8k, math};
use grail_settings as settings;
use grail_settings::Settings;
use grail_supervision::exit::Failure;
use sha2::{Digest, Sha256};

use crate::chain::{Chain, genesis};

/// Characters of a digest that are shown: enough to compare two by eye.
const SHOWN: usize = 16;

/// The data sets of the environments, all of whose rows were read.
pub struct CheckedDataset {
    /// The file or folder, or the folder with one folder per environment.
    pub path: PathBuf,
    splits: Vec<CheckedSplit>,
}

struct CheckedSplit {
    environment: EnvironmentId,
    /// None where a single file names no split, and serves as any.
    split: Option<SourceSplit>,
    files: String,
    rows: usize,
    /// Over the rows, whatever the form of the files.
    digest: String,
}

/// Reads every row of every split of every environment that has a data set there, once, so that a bad row is found before
/// anything is started. Where the settings name one of the network's chains, the rows must be as many as the network's.
///
/// # Errors
/// The first bad row, with its file and line, and another number of rows than the network's.
pub fn check_dataset(settings: &Settings) -> Result<CheckedDataset, Failure> {
    let path = settings.dataset.as_deref().ok_or_else(|| {
        Failure::Data("no dataset is set; give one with --dataset PATH, environment.dataset or GRAIL_DATASET (a JSONL or Parquet file, a folder, or a folder with one folder per environment)".into())
    })?;
    let checked =
        read(path).map_err(|error| Failure::Data(format!("the dataset cannot be used, nothing was started: {error}")))?;
    match &settings.chain {
        settings::Chain::Network { genesis: Some(_), .. } => checked.must_be_the_networks(),
        _ => Ok(()),
    }?;
    Ok(checked)
}

fn read(path: &Path) -> Result<CheckedDataset, DatasetError> {
    let math_path = EnvironmentId::Math.dataset(path);
    let has_math = math::CONFIGS.iter().any(|config| math_path.join(config).is_dir());
    let mut splits = Vec::new();
    // A folder with the configurations of math and no other rows is that data set alone.
    let gsm8k = Dataset::open(&EnvironmentId::Gsm8k.dataset(path))?;
    if !has_math || gsm8k.splits().next().is_some() {
        splits.extend(read_gsm8k(&gsm8k)?);
    }
    if has_math {
        splits.extend(read_math(&math_path)?);
    }
    // What was read is what is mined with, whatever the hub's client makes of its cache meanwhile.
    let alone = !has_math && EnvironmentId::Gsm8k.dataset(path) == path;
    Ok(CheckedDataset { path: if alone { gsm8k.path() } else { path }.to_path_buf(), splits })
}

fn read_gsm8k(dataset: &Dataset) -> Result<Vec<CheckedSplit>, DatasetError> {
    let mut wanted: Vec<Option<SourceSplit>> = dataset.splits().map(Some).collect();
    if wanted.is_empty() {
        wanted.push(None);
    }
    let mut splits = Vec::new();
    for split in wanted {
        let source = split.unwrap_or(SourceSplit::Train);
        let rows = dataset.rows(source, ["question", "answer"])?;
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = dataset.files(source).iter().map(name).collect::<Vec<_>>().join(", ");
        splits.push(CheckedSplit { environment: EnvironmentId::Gsm8k, split, files, rows: rows.len(), digest: digest(&rows) });
    }
    Ok(splits)
}

/// The splits of math, each over all its configurations.
fn read_math(path: &Path) -> Result<Vec<CheckedSplit>, DatasetError> {
    let mut rows: BTreeMap<SourceSplit, Vec<[String; 4]>> = BTreeMap::new();
    let configs = math::CONFIGS.map(|config| math::source(path, config));
    let configs = configs.into_iter().collect::<Result<Vec<_>, _>>()?;
    let names: BTreeSet<SourceSplit> = configs.iter().flat_map(Dataset::splits).collect();
    for (config, split) in configs.iter().flat_map(|config| names.iter().map(move |split| (config, *split))) {
        rows.entry(split).or_default().extend(config.rows(split, math::COLUMNS)?);
    }
    let files = format!("{} configurations", configs.len());
    let split = |(split, rows): (SourceSplit, Vec<[String; 4]>)| CheckedSplit {
        environment: EnvironmentId::Math,
        split: Some(split),
        files: files.clone(),
        rows: rows.len(),
        digest: digest(&rows),
    };
    Ok(rows.into_iter().map(split).collect())
}

/// Over each text's length and bytes, in order.
fn digest<const N: usize>(rows: &[[String; N]]) -> String {
    let mut hash = Sha256::new();
    for text in rows.iter().flatten() {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hex::encode(hash.finalize())[..SHOWN].to_owned()
}

impl CheckedDataset {
    /// Files, rows and a digest of each split, in one line, and which environments have no data set there.
    pub fn summary(&self) -> String {
        let split = |split: &CheckedSplit| {
            let name = split.split.map_or("any split", SourceSplit::as_str);
            format!("{} {name}: {} rows of {}, digest {}", split.environment, split.rows, split.files, split.digest)
        };
        let missing = EnvironmentId::BUILT.into_iter().filter(|id| self.splits.iter().all(|split| split.environment != *id));
        let missing = missing.map(|id| format!("no {id}, whose checkpoints are not mined without it"));
        self.splits.iter().map(split).chain(missing).collect::<Vec<_>>().join("; ")
    }

    /// Why this cannot be the network's data set, if it cannot.
    fn unlike_the_networks(&self) -> Option<String> {
        self.splits.iter().find_map(|split| {
            let Some(name) = split.split else {
                return Some(format!("{} names no split, so it would serve as every one", split.files));
            };
            let networks = if split.environment == EnvironmentId::Math { math::NETWORK_ROWS } else { gsm8k::NETWORK_ROWS };
            match networks.iter().find(|(known, _)| *known == name) {
                Some((_, rows)) if *rows == split.rows => None,
                Some((_, rows)) => {
                    let environment = split.environment;
                    Some(format!("its split `{name}` of {environment} has {} rows, the network's has {rows}", split.rows))
                }
                None => Some(format!("the network's has no split `{name}`")),
            }
        })
    }

    fn must_be_the_networks(&self) -> Result<(), Failure> {
        match self.unlike_the_networks() {
            None => Ok(()),
            Some(why) => Err(Failure::Data(format!(
                "the dataset {} is not the network's: {why}. Validators would reject every prompt; fetch openai/gsm8k (config main), \
                 and EleutherAI/hendrycks_math (all seven configs) for math, again and set environment.dataset to them alone",
                self.path.display()
            ))),
        }
    }

    /// Behind an endpoint of one's own block 0 tells which chain it is: on the network's, the rows must be the network's.
    ///
    /// # Errors
    /// Another number of rows than the network's, on one of its chains; a chain that does not answer.
    pub async fn must_suit(&self, chain: &dyn Chain) -> Result<(), Failure> {
        if !self.depends_on_the_chain() {
            return Ok(());
        }
        self.must_suit_block_0(genesis(chain).await?.as_ref())
    }

    /// The same with what a node has told of its block 0.
    ///
    /// # Errors
    /// Another number of rows than the network's, on one of its chains.
    pub fn must_suit_block_0(&self, genesis: Option<&[u8; 32]>) -> Result<(), Failure> {
        match genesis.and_then(settings::network_of) {
            Some(_) => self.must_be_the_networks(),
            None => Ok(()),
        }
    }

    /// Whether only block 0 tells if this can be mined with.
    pub fn depends_on_the_chain(&self) -> bool {
        self.unlike_the_networks().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(rows: &[(&str, usize)]) -> CheckedDataset {
        let folder = tempfile::tempdir().unwrap();
        for (name, rows) in rows {
            let row = |row| serde_json::json!({"question": format!("Q{row}"), "answer": "#### 1"}).to_string() + "\n";
            std::fs::write(folder.path().join(name), (0..*rows).map(row).collect::<String>()).unwrap();
        }
        read(folder.path()).unwrap()
    }

    #[test]
    fn the_networks_rows_are_told_from_others() {
        assert_eq!(checked(&[("train.jsonl", 7473), ("test.jsonl", 1319)]).unlike_the_networks(), None);
        assert_eq!(checked(&[("train.jsonl", 7473)]).unlike_the_networks(), None);
        for (rows, why) in [
            (&[("train.jsonl", 7472)][..], "`train` of gsm8k has 7472 rows, the network's has 7473"),
            (&[("train.jsonl", 7473), ("test.jsonl", 7473)], "`test` of gsm8k has 7473 rows"),
            (&[("validation.jsonl", 1)], "no split `validation`"),
        ] {
            let found = checked(rows).unlike_the_networks().unwrap();
            assert!(found.contains(why), "{found}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("problems.jsonl");
        std::fs::write(&path, "{\"question\": \"Q\", \"answer\": \"#### 1\"}\n").unwrap();
        assert!(read(&path).unwrap().unlike_the_networks().unwrap().contains("names no split"));
    }

    #[test]
    fn a_summary_tells_files_rows_and_a_digest_of_the_rows() {
        let two = checked(&[("train.jsonl", 2)]).summary();
        assert!(two.starts_with("gsm8k train: 2 rows of train.jsonl, digest ") && two.contains("; no math"), "{two}");
        let digest = |text: &str| text.split("digest ").nth(1).unwrap()[..SHOWN].to_owned();
        assert_eq!(digest(&two), digest(&checked(&[("train-00000-of-00001.jsonl", 2)]).summary()));
        assert_ne!(digest(&two), digest(&checked(&[("train.jsonl", 3)]).summary()));
    }
    #[test]
    fn every_environment_of_a_folder_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for config in math::CONFIGS {
            let place = folder.path().join("math").join(config);
            std::fs::create_dir_all(&place).unwrap();
            let row = serde_json::json!({"problem": "P", "solution": "\\boxed{1}", "type": "T", "level": "Level 1"});
            std::fs::write(place.join("train.jsonl"), format!("{row}\n{row}\n")).unwrap();
        }
        // The folder of math alone.
        let alone = read(&folder.path().join("math")).unwrap();
        assert!(alone.summary().starts_with("math train: 14 rows of 7 configurations, digest "), "{}", alone.summary());
        assert!(alone.summary().contains("; no gsm8k"), "{}", alone.summary());
        std::fs::create_dir(folder.path().join("gsm8k")).unwrap();
        std::fs::write(folder.path().join("gsm8k/test.jsonl"), "{\"question\": \"Q\", \"answer\": \"#### 1\"}\n").unwrap();
        let both = read(folder.path()).unwrap().summary();
        assert!(both.starts_with("gsm8k test: 1 rows of test.jsonl") && both.contains("math train: 14 rows"), "{both}");
        let why = alone.unlike_the_networks().unwrap();
        assert!(why.contains("`train` of math has 14 rows, the network's has 7500"), "{why}");
        // One configuration without its rows.
        std::fs::remove_file(folder.path().join("math/geometry/train.jsonl")).unwrap();
        let error = read(folder.path()).err().unwrap().to_string();
        assert!(error.contains("geometry") && error.contains("no split `train`"), "{error}");
    }
}
