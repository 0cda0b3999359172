//! Where the programs of the workers are.

use std::path::{Path, PathBuf};

use grail_supervision::exit::Failure;

/// Where the other programs are.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

/// The other programs.
#[derive(Debug, Clone, Copy)]
pub enum ChildPrograms {
    /// `grail-proof-worker`
    ProofWorker,
    /// `grail-gen-launcher`
    GenLauncher,
}

impl ChildPrograms {
    fn file_name(self) -> &'static str {
        match self {
            Self::ProofWorker => "grail-proof-worker",
            Self::GenLauncher => "grail-gen-launcher",
        }
    }
}

impl Programs {
    /// The given folder, or the one this program lies in; every program named in `needed` must be there.
    ///
    /// # Errors
    /// When one is missing, with the path that was looked at.
    pub fn find(folder: Option<&Path>, needed: &[ChildPrograms]) -> Result<Self, Failure> {
        let folder = match folder {
            Some(folder) => folder.to_path_buf(),
            None => std::env::current_exe()
                .ok()
                .and_then(|path| path.parent().map(Path::to_path_buf))
                .ok_or_else(|| Failure::Internal("cannot tell where this program lies; set programs.folder".into()))?,
        };
        let programs = Self(folder);
        match needed.iter().map(|program| programs.path(*program)).find(|path| !path.is_file()) {
            None => Ok(programs),
            Some(path) => Err(Failure::Unavailable(format!(
                "the program {path:?} is missing; build all programs (`cargo build`) or set programs.folder"
            ))),
        }
    }

    /// The path of one program.
    pub fn path(&self, program: ChildPrograms) -> PathBuf {
        self.0.join(program.file_name())
    }
}
