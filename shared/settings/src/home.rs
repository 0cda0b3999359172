//! Paths that begin in somebody's home folder: never a folder that is called `~`.

use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

/// The home folder: `HOME`, else what the passwd entry says.
pub fn folder(variable: Option<&str>) -> Option<PathBuf> {
    let told = variable.filter(|path| !path.is_empty()).map(PathBuf::from);
    told.or_else(|| User::from_uid(Uid::effective()).ok().flatten().map(|user| user.dir))
}

/// `~`, `~user` and `$HOME` at the beginning replaced; every other text is a path as it stands.
///
/// # Errors
/// Why it means no folder.
pub fn expand(text: &str, home: Option<&Path>) -> Result<PathBuf, String> {
    let (first, rest) = text.split_once('/').unwrap_or((text, ""));
    let own =
        || home.map(Path::to_path_buf).ok_or("needs a home folder: HOME is not set, and there is no passwd entry".to_owned());
    let begin = match (first, first.strip_prefix('~')) {
        ("~" | "$HOME" | "${HOME}", _) => own()?,
        (_, Some(user)) => match User::from_name(user) {
            Ok(Some(user)) => user.dir,
            _ => {
                return Err(format!(
                    "begins with the home folder of {user:?}, and there is no such user here; write the whole path"
                ));
            }
        },
        _ if first.starts_with('$') => {
            return Err(format!("begins with the variable {first}, and only $HOME is known here; write the whole path"));
        }
        _ => return Ok(text.into()),
    };
    Ok(if rest.is_empty() { begin } else { begin.join(rest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_expanded_or_refused() {
        let home = Path::new("/home/miner");
        let of = |text: &str| expand(text, Some(home)).map(|path| path.display().to_string());
        for text in ["~/x", "$HOME/x", "${HOME}/x"] {
            assert_eq!(of(text).unwrap(), "/home/miner/x");
        }
        assert_eq!((of("~").unwrap(), of("a/~/b").unwrap()), ("/home/miner".into(), "a/~/b".into()));
        let root = User::from_uid(Uid::from_raw(0)).unwrap().unwrap();
        assert_eq!(of("~root/x").unwrap(), root.dir.join("x").display().to_string());
        assert!(of("~no-such-user/x").unwrap_err().contains("no such user"));
        assert!(of("$XDG_DATA_HOME/x").unwrap_err().contains("only $HOME"));
        assert!(expand("~/x", None).unwrap_err().contains("HOME is not set"));
        // Whoever runs this may have no entry, as in a container.
        let entry = User::from_uid(Uid::effective()).unwrap().map(|user| user.dir);
        assert_eq!((folder(None), folder(Some(""))), (entry.clone(), entry));
        assert_eq!(folder(Some("/h")), Some("/h".into()));
    }
}
