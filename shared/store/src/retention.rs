//! How many window files stay on disk.

use std::path::{Path, PathBuf};

/// Keeps the `n` newest window files (`<hotkey>-window-<T>.parquet`, newest by T) of `folder` and removes the others.
/// Anything else in the folder is left alone. Returns what was removed.
///
/// # Errors
/// The operating system's, with the path in its text; what was removed before stays removed.
pub fn keep_last(folder: &Path, n: usize) -> std::io::Result<Vec<PathBuf>> {
    let named = |path: &Path, error: std::io::Error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| named(folder, error))? {
        let path = entry.map_err(|error| named(folder, error))?.path();
        if let Some(window) = window_of(&path) {
            files.push((window, path));
        }
    }
    files.sort();
    let surplus = files.len().saturating_sub(n);
    let removed: Vec<PathBuf> = files.into_iter().take(surplus).map(|(_, path)| path).collect();
    for path in &removed {
        std::fs::remove_file(path).map_err(|error| named(path, error))?;
    }
    Ok(removed)
}

fn window_of(path: &Path) -> Option<u64> {
    let (_, window) = path.file_name()?.to_str()?.strip_suffix(".parquet")?.rsplit_once("-window-")?;
    window.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_windows_stay_and_strangers_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a-window-30.parquet", "a-window-600.parquet", "a-window-90.parquet", "notes.parquet", "a-window-x.parquet"]
        {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(keep_last(folder.path(), 2).unwrap(), [folder.path().join("a-window-30.parquet")]);
        assert!(keep_last(folder.path(), 2).unwrap().is_empty());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
    }
}
