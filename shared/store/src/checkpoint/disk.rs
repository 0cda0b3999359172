//! Work on the disk: only where there is room, and off the async threads.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::CheckpointError;
use super::error::local;

/// Bytes that stay free on a disk that is filled on purpose.
const SPARE_BYTES: u64 = 256 << 20;

/// Refuses to begin what the disk has no room for.
pub(super) fn check_room(dir: &Path, bytes: u64) -> Result<(), CheckpointError> {
    let disk = statvfs(dir).map_err(|errno| local(dir)(errno.into()))?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    let needed = bytes.saturating_add(SPARE_BYTES);
    if bytes == 0 || free >= needed {
        return Ok(());
    }
    Err(CheckpointError::NoRoom { path: dir.to_owned(), needed, free })
}

/// Runs disk and hash work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    place: &Path,
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, CheckpointError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(local(place)(std::io::Error::other(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_has_no_room_for_is_refused_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_room(folder.path(), 0).is_ok());
        let error = check_room(folder.path(), 1 << 60).unwrap_err();
        assert!(matches!(&error, CheckpointError::NoRoom { free, .. } if *free > 0), "{error}");
        assert!(error.to_string().contains("GRAIL_CACHE_DIR"), "{error}");
    }
}
