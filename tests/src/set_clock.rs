//! A wall clock that a test can set, for the real programs: a library that is loaded before theirs and answers for the kernel.

use std::path::PathBuf;
use std::process::Command;

use crate::Host;

/// The wall clock of a host's commands.
pub struct WallClock(PathBuf);

impl WallClock {
    /// `host` with a wall clock that can be set.
    pub fn of(host: Host) -> (Host, Self) {
        let (source, library) = (host.path().join("set_clock.c"), host.path().join("set_clock.so"));
        std::fs::write(&source, include_str!("set_clock.c")).expect("a source file");
        let built = Command::new("gcc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
        assert!(built.expect("gcc is there").success(), "the library does not build");
        let clock = Self(host.path().join("set_clock"));
        let file = clock.0.display().to_string();
        let host = host.variable("LD_PRELOAD", &library.display().to_string()).variable("GRAIL_SET_CLOCK", &file);
        (host, clock)
    }

    /// From now on it is ahead of the machine's by so many seconds.
    pub fn set_ahead(&self, seconds: i64) {
        let beside = self.0.with_extension("new");
        std::fs::write(&beside, seconds.to_string()).expect("a file");
        std::fs::rename(beside, &self.0).expect("a file");
    }
}
