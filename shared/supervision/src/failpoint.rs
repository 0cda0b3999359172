//! Named points at which a test can hold the supervisor, to send a signal in exactly that phase. Without the feature
//! `failpoints` every call is empty and compiles to nothing.
//!
//! ```text
//!  test:        touch FOLDER/<name>                       wait for <name>.reached … remove it
//!  supervisor:  pass(<name>) renames it to <name>.reached ──────▶ waits until it is gone, and goes on
//! ```
//!
//! The folder is the variable `GRAIL_FAILPOINTS`. One passage takes an armed point; later ones go by. A group that has become
//! durable is written down there as well, so that a test knows what must not be lost.

#[cfg(all(feature = "failpoints", not(debug_assertions)))]
compile_error!("the feature `failpoints` holds the supervisor wherever a test wants: it must not be part of a release build");

#[cfg(feature = "failpoints")]
pub use armed::{durable, pass, pass_blocking};

/// Holds here while a test wants it so.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn pass(_name: &'static str) -> impl Future<Output = ()> {
    std::future::ready(())
}

/// [`pass`] for code that is not async.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn pass_blocking(_name: &'static str) {}

/// A group of a window has become durable.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn durable(_window: u64, _group: i64) {}

#[cfg(feature = "failpoints")]
mod armed {
    use std::fs;
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::time::Duration;

    const LOOK: Duration = Duration::from_millis(5);

    /// The test's folder; without one no point is ever armed.
    fn folder() -> Option<&'static PathBuf> {
        static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
        let found = FOLDER.get_or_init(|| {
            let folder = std::env::var_os("GRAIL_FAILPOINTS").map(PathBuf::from);
            if let Some(folder) = &folder {
                tracing::warn!(folder = %folder.display(), "This program was built for tests: failpoints stand in for bad luck.");
            }
            folder
        });
        found.as_ref()
    }

    /// The file that a test removes to let the supervisor go on, if it has armed the point and nobody else has taken it.
    fn take(name: &str) -> Option<PathBuf> {
        let reached = folder()?.join(format!("{name}.reached"));
        fs::rename(folder()?.join(name), &reached).ok().map(|()| reached)
    }

    /// Holds here while a test wants it so.
    pub async fn pass(name: &'static str) {
        let Some(reached) = take(name) else { return };
        while reached.exists() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// [`pass`] for code that is not async; other tasks go on meanwhile.
    pub fn pass_blocking(name: &'static str) {
        let Some(reached) = take(name) else { return };
        tokio::task::block_in_place(|| {
            while reached.exists() {
                std::thread::sleep(LOOK);
            }
        });
    }

    /// A group of a window has become durable: one line of `durable` in the test's folder.
    pub fn durable(window: u64, group: i64) {
        let Some(folder) = folder() else { return };
        let open = fs::OpenOptions::new().create(true).append(true).open(folder.join("durable"));
        // A test that finds no line has lost its knowledge, not the supervisor its group.
        if let Ok(mut file) = open {
            let _ = file.write_all(format!("{window} {group}\n").as_bytes());
        }
    }
}
