//! `scripts/setup.py`, as make calls it.

use std::path::Path;
use std::process::Command;

use crate::workspace;

/// A checkout's scripts in a folder of their own, with a libtorch of this version, by its own account.
fn checkout(libtorch: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (scripts, libraries) = (folder.path().join("scripts"), folder.path().join("third_party/libtorch/torch/lib"));
    std::fs::create_dir_all(&scripts).unwrap();
    std::fs::create_dir_all(&libraries).unwrap();
    for name in ["setup.py", "reference.py", "servers.py"] {
        std::fs::copy(workspace().join("scripts").join(name), scripts.join(name)).unwrap();
    }
    for name in ["libtorch.so", "libtorch_cpu.so", "libc10.so"] {
        std::fs::write(libraries.join(name), "").unwrap();
    }
    std::fs::write(libraries.with_file_name("build-version"), format!("{libtorch}\n")).unwrap();
    folder
}

/// Runs it where nothing can be downloaded. Its exit code and all it said.
fn set_up(checkout: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new("python3");
    command.arg("-B").arg(checkout.join("scripts/setup.py")).args(arguments);
    let said = command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", "").output().unwrap();
    (said.status.code(), String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr))
}

#[test]
fn unknown_arguments_of_the_set_up_are_refused_by_name() {
    let checkout = checkout("2.11.0");
    for (arguments, named) in
        [(&["--refrence"][..], "--refrence"), (&["--sgl"], "--sgl"), (&["again"], "again"), (&["--beside"], "needs")]
    {
        let (code, said) = set_up(checkout.path(), arguments);
        assert!(code == Some(2) && said.contains(named), "{arguments:?}: {code:?}\n{said}");
    }
}

#[test]
fn another_libtorch_than_the_wanted_one_is_not_taken() {
    for version in ["2.11.0", "2.11.0+cu130"] {
        let (code, said) = set_up(checkout(version).path(), &[]);
        assert!(code == Some(0) && said.contains("libtorch 2.11.0 is in third_party/libtorch"), "{version}: {code:?}\n{said}");
    }
    let old = checkout("2.10.0");
    let (code, said) = set_up(old.path(), &[]);
    assert!(code == Some(1) && said.contains("holds libtorch 2.10.0, 2.11.0 is wanted"), "{code:?}\n{said}");
    // It could not be downloaded: what lies there stays until another is complete.
    assert!(old.path().join("third_party/libtorch/torch/build-version").is_file());
    let torn = checkout("2.11.0");
    std::fs::remove_file(torn.path().join("third_party/libtorch/torch/lib/libc10.so")).unwrap();
    let (code, said) = set_up(torn.path(), &[]);
    assert!(code == Some(1) && said.contains("Fetching torch"), "{code:?}\n{said}");
}

#[test]
fn what_runs_beside_the_set_up_and_the_set_up_itself_both_count() {
    let checkout = checkout("2.11.0");
    let (code, said) = set_up(checkout.path(), &["--beside", "sh", "-c", "echo --built; exit 7"]);
    assert!(code == Some(7) && said.contains("--built"), "{code:?}\n{said}");
    let (code, said) = set_up(checkout.path(), &["--reference", "--beside", "sh", "-c", "exit 0"]);
    // Where there is no wheel for this Python there is nothing to download, and nothing fails.
    let supported = !said.contains("has no wheel for this Python");
    assert!(code == Some(i32::from(supported)) && said.contains("torch"), "{code:?}\n{said}");
    let left: Vec<_> =
        std::fs::read_dir(checkout.path().join("third_party")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["libtorch"], "nothing half-downloaded is left");
}
