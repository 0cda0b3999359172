//! What of this process others may see: the key is in its memory, and secrets are in its environment.

use std::io;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};

/// From now on what this process makes is its user's alone, it leaves no core dump, and other processes of the same user, its
/// children among them, can neither read its memory nor its environment. What it starts stays readable to it: a program that is
/// executed is dumpable again. Children inherit the limit and the mask.
///
/// To be called before anything else, above all before a thread is started.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_to_ourselves() -> io::Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(nix::sys::prctl::set_dumpable(false)?)
}
