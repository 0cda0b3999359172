//! One test in a process of its own: what a process keeps to itself holds for the whole of it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use grail_process::{Launch, Spawner, privacy, proc};
use nix::sys::resource::{Resource, getrlimit};

const SECRET: &str = "GRAIL_TEST_SECRET";
const FOLDER: &str = "GRAIL_TEST_FOLDER";
/// An ordinary user: nothing is closed to root.
const NOBODY: u32 = 65534;

/// Not a test of its own: the supervisor in miniature, as an ordinary user.
#[tokio::test]
async fn supervisor() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    privacy::keep_to_ourselves().unwrap();
    let spawner = Spawner::start().unwrap();
    let sh = |script: String| Launch {
        name: "child".into(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), script.into()],
        environment: vec![("PATH".into(), "/usr/bin:/bin".into()), ("OF_CHILD".into(), "x".into())],
    };
    let this = std::process::id();
    for file in ["environ", "mem", "maps", "auxv"] {
        let said = spawner.ask(sh(format!("head -c 1 /proc/{this}/{file}")), 4096).await.unwrap();
        assert!(!said.status.success() && said.errors.contains("ermission denied"), "{file}: {said:?}");
    }
    let mut child = spawner.spawn(sh("sleep 300; :".into())).await.unwrap();
    assert!(proc::carries(child.pid(), b"OF_CHILD=x"), "the child stays readable to us");
    assert!(!proc::threads(child.pid()).is_empty());
    child.kill().await.unwrap();
    assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
    let (made, file) = (Path::new(&folder).join("made"), Path::new(&folder).join("made/file"));
    std::fs::create_dir(&made).unwrap();
    std::fs::write(&file, "x").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&made), mode(&file)), (0o700, 0o600));
    println!("everything held");
}

#[test]
fn children_read_nothing_of_the_supervisor_and_it_reads_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [folder.path(), &program] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let mut command = Command::new(program);
    command.args(["supervisor", "--exact", "--nocapture"]).env(SECRET, "hush").env(FOLDER, folder.path());
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let done = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && said.contains("everything held"), "{said}");
}
