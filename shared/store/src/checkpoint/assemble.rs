//! From links and base to a directory: what changed as files first, for those who hold the base, then the whole.

use std::path::{Path, PathBuf};

use super::cache::{METADATA, Partial, is_weights, verify_on_disk};
use super::changes::{self, Changes, LinkError};
use super::disk::check_room;
use super::error::local;
use super::ownership::Hold;
use super::rebuild::rebuild;
use super::sparse::{SparseError, SparseFormat};
use super::weights::{tensor_places, weights_hash};
use super::{CheckpointError, Manifest, Metadata};

/// Name of a rebuilt checkpoint's weights.
const WEIGHTS: &str = "model.safetensors";
/// Name of a link's description.
pub(super) const DELTA_METADATA: &str = "delta_metadata.json";
/// Name of a link's body.
pub(super) const DELTA_BODY: &str = "delta_sparse.bin.zst";

/// A link that is on the disk.
pub(super) struct Link {
    /// Its checkpoint.
    pub window: u64,
    /// Of its body.
    pub format: SparseFormat,
    /// Where it lies.
    pub partial: Partial,
}

impl Link {
    /// Judges as much of a downloaded link as can be judged without its base.
    pub(super) fn judge(target: u64, window: u64, partial: Partial, limit: u64) -> Result<Self, CheckpointError> {
        let judged = changes::format_of(&partial.path().join(DELTA_METADATA)).and_then(|format| {
            let format = format.map_err(broken_at(target, window))?;
            let opened = changes::open_body(&partial.path().join(DELTA_BODY), format, limit);
            opened.map(|_| format).map_err(|error| refused(target, window, error))
        });
        match judged {
            Ok(format) => Ok(Self { window, format, partial }),
            Err(error) => Err(partial.give_up(error)),
        }
    }
}

/// A checkpoint that is put together.
pub(super) struct Assembly {
    /// Its window.
    pub window: u64,
    /// As published.
    pub metadata: Metadata,
    /// Of the base, as it lies in the cache.
    pub base: Metadata,
    /// Where the base lies.
    pub base_dir: PathBuf,
    /// Bytes of a decompressed body at most.
    pub limit: u64,
}

impl Assembly {
    /// Decodes the links into files of changes, and tells where these are and how many elements each changes.
    #[allow(clippy::type_complexity, reason = "one caller takes it apart")]
    pub(super) fn decode(&self, links: Vec<Link>, dir: Partial) -> Result<(Vec<(PathBuf, u64)>, Hold), CheckpointError> {
        let decoded: Result<Vec<_>, _> = links.iter().map(|link| self.decode_link(link, dir.path())).collect();
        links.into_iter().for_each(|link| link.partial.discard());
        match decoded {
            Ok(decoded) => {
                // For this run only: a later one starts from the whole checkpoint.
                let (dir, hold) = dir.put()?;
                Ok((decoded.into_iter().map(|(name, entries)| (dir.join(name), entries)).collect(), hold))
            }
            Err(error) => {
                dir.discard();
                Err(error)
            }
        }
    }

    fn decode_link(&self, link: &Link, dir: &Path) -> Result<(String, u64), CheckpointError> {
        let places = tensor_places(&self.base_dir)?;
        let name = format!("changes-{}.safetensors", link.window);
        let body = changes::open_body(&link.partial.path().join(DELTA_BODY), link.format, self.limit);
        let decoded = body.and_then(|body| changes::decode(body, &places, &dir.join(&name)));
        Ok((name, decoded.map_err(|error| refused(self.window, link.window, error))?))
    }

    /// Rebuilds the weights, compares their hash, and installs the directory.
    pub(super) fn build(self, changes: &[PathBuf], target: Partial) -> Result<(PathBuf, Metadata, Hold), CheckpointError> {
        let window = self.window;
        match self.fill(changes, &target) {
            Ok(metadata) => {
                let (dir, hold) = target.install(|dir| {
                    // The weights by the hash that is made faster.
                    verify_on_disk(dir, window, &metadata.file_manifest, |name| !is_weights(name))?;
                    check_hash(window, &metadata, weights_hash(dir)?)
                })?;
                Ok((dir, metadata, hold))
            }
            Err(error) => {
                target.discard();
                // They lead nowhere. Best effort: what stays is removed by the next cleaning.
                changes.first().and_then(|file| file.parent()).map(std::fs::remove_dir_all);
                Err(error)
            }
        }
    }

    fn fill(self, changes: &[PathBuf], target: &Partial) -> Result<Metadata, CheckpointError> {
        let places = tensor_places(&self.base_dir)?;
        check_room(target.path(), places.values().map(|place| place.length).sum())?;
        let changes: Vec<Changes> = changes.iter().map(|file| Changes::open(file)).collect::<Result<_, _>>()?;
        let weights = target.path().join(WEIGHTS);
        let rebuilt = rebuild(&places, &changes, &weights)?;
        check_hash(self.window, &self.metadata, rebuilt.weights_hash)?;
        let mut manifest = vec![(WEIGHTS.to_owned(), rebuilt.sha256)];
        for (name, sha256) in self.base.file_manifest.files().filter(|(name, _)| !is_of_weights(name)) {
            let (from, to) = (self.base_dir.join(name), target.path().join(name));
            std::fs::copy(&from, &to).map_err(local(&to))?;
            manifest.push((name.to_owned(), sha256.to_owned()));
        }
        let metadata = Metadata {
            file_manifest: Manifest::new(manifest),
            checkpoint_type: Some("FULL".into()),
            reconstructed_from_delta: Some(true),
            original_anchor_window: self.metadata.anchor_window,
            window: Some(self.window),
            ..self.metadata
        };
        write_metadata(target, &metadata)?;
        Ok(metadata)
    }
}

/// Weights, and the index that says in which file which tensor is: it would send a reader to the base's.
fn is_of_weights(name: &str) -> bool {
    is_weights(name) || name.ends_with(".safetensors.index.json")
}

/// Compares the hash of what is there with the published one.
pub(super) fn check_hash(window: u64, metadata: &Metadata, got: String) -> Result<(), CheckpointError> {
    match metadata.hash() {
        Some(want) if got.eq_ignore_ascii_case(want) => Ok(()),
        want => {
            let want = want.unwrap_or("nothing").to_owned();
            Err(CheckpointError::WrongWeights { window, got, want })
        }
    }
}

/// Writes the cache's own metadata.
pub(super) fn write_metadata(partial: &Partial, metadata: &Metadata) -> Result<(), CheckpointError> {
    let path = partial.path().join(METADATA);
    std::fs::write(&path, metadata.to_json()).map_err(local(&path))
}

/// An error that names the link.
pub(super) fn broken_at(window: u64, link: u64) -> impl FnOnce(String) -> CheckpointError {
    move |why| CheckpointError::BrokenLink { window, link, why }
}

/// Why a link is refused. What the network's own decoder does not look at is not everybody's reason.
fn refused(window: u64, link: u64, error: LinkError) -> CheckpointError {
    match error {
        LinkError::Sparse(error @ SparseError::Tensor { .. }) => {
            CheckpointError::Unverifiable { window, why: format!("its link {link} contradicts itself: {error}") }
        }
        LinkError::Misfit { name, why } => {
            CheckpointError::Unverifiable { window, why: format!("its link {link} does not fit its base: tensor {name}: {why}") }
        }
        LinkError::Sparse(error) => broken_at(window, link)(format!("cannot be decoded: {error}")),
        LinkError::Checkpoint(error) => error,
    }
}
