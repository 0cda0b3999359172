//! Children on disk: who was started, written down before anybody relies on it, so that a later run finds what an earlier
//! one could not end.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::identity::{Identity, Liveness};
use crate::{clock, proc};

/// The variable by which a child, and whatever inherits from it, is known again.
pub const TOKEN: &str = "GRAIL_CHILD";
/// A record takes a few hundred bytes.
const MAX_RECORD: u64 = 16 << 10;

/// One child that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How logs call it.
    pub name: String,
    /// Its program.
    pub program: PathBuf,
    /// Who it is. It leads a session and a process group of its own.
    pub identity: Identity,
    /// Random text that it and its descendants carry in their environment.
    pub token: String,
}

/// The folder of records. Supervisor and launcher write into the same one.
#[derive(Debug, Clone)]
pub struct Records(PathBuf);

impl Records {
    /// Creates the folder where it is missing.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self(folder.to_path_buf()))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    fn path(&self, pid: u32) -> PathBuf {
        self.0.join(format!("{pid}.json"))
    }

    /// Makes a record durable: file and folder are on the disk when this returns.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        let path = self.path(record.identity.pid);
        let beside = path.with_extension("new");
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)?;
        std::fs::File::open(&self.0)?.sync_all()
    }

    /// The child was reaped.
    pub(crate) fn remove(&self, pid: u32) {
        // A record that stays is judged by its start time later, and does no harm.
        let _ = std::fs::remove_file(self.path(pid));
    }

    /// Every record; files that are none (a torn write, a stranger's file) are removed and named.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn read(&self) -> io::Result<(Vec<Record>, Vec<PathBuf>)> {
        let (mut records, mut refused) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&self.0)?.flatten() {
            let path = entry.path();
            match read_bounded(&path, MAX_RECORD).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
                Some(record) => records.push(record),
                None => {
                    let _ = std::fs::remove_file(&path);
                    refused.push(path);
                }
            }
        }
        Ok((records, refused))
    }

    /// Forgets every record; for a start whose survivors are dealt with.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn clear(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.0)?.flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
        Ok(())
    }
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A fresh token.
pub(crate) fn token() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

/// A process of an earlier run that still lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivor {
    /// Who it is.
    pub identity: Identity,
    /// Its program's short name, for people.
    pub program: String,
    /// The recorded child it is, or descends from.
    pub child: String,
}

/// Finds what is left of recorded children: the session of every recorded leader that lives (identity, not pid or name), and
/// every process that carries a recorded token. Anything else is left alone.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn survivors(records: &[Record]) -> io::Result<Vec<Survivor>> {
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let mut living = Vec::new();
    for record in records {
        living.push(record.identity.standing()? == Liveness::Alive);
    }
    let (own, user) = (std::process::id(), nix::unistd::geteuid().as_raw());
    let mut found = Vec::new();
    for process in proc::all()? {
        let ours = std::fs::metadata(format!("/proc/{}", process.pid)).is_ok_and(|facts| facts.uid() == user);
        if process.pid == own || !process.lives() || !ours {
            continue;
        }
        let carries = |record: &Record| proc::carries(process.pid, format!("{TOKEN}={}", record.token).as_bytes());
        let belongs = |(record, alive): &(&Record, &bool)| (**alive && process.session == record.identity.pid) || carries(record);
        let Some((record, _)) = records.iter().zip(&living).find(belongs) else { continue };
        if let Ok(identity) = Identity::seen(&process) {
            found.push(Survivor { identity, program: process.name, child: record.name.clone() });
        }
    }
    Ok(found)
}

/// Kills survivors and waits until they are gone. Returns those that are still there after `limit`.
///
/// # Errors
/// When the operating system refuses a signal.
pub fn end(survivors: &[Survivor], limit: Duration) -> io::Result<Vec<Survivor>> {
    for survivor in survivors {
        survivor.identity.kill()?;
    }
    let start = clock::monotonic();
    loop {
        let alive: HashSet<u32> = survivors
            .iter()
            .filter(|survivor| survivor.identity.standing().is_ok_and(|standing| standing == Liveness::Alive))
            .map(|survivor| survivor.identity.pid)
            .collect();
        if alive.is_empty() || start.elapsed() >= limit {
            return Ok(survivors.iter().filter(|survivor| alive.contains(&survivor.identity.pid)).cloned().collect());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
