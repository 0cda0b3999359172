//! What children leave behind is ended: while the supervisor runs, and at its end.

use std::collections::HashSet;
use std::time::Duration;

use grail_process::orphans::Orphan;
use grail_process::{Spawner, clock};
use tokio::signal::unix::{SignalKind, signal};

use crate::board::Board;
use crate::children::ChildEvent;

/// Longest pause between two looks for orphans.
const SWEEP: Duration = Duration::from_secs(1);

/// Ends what children leave behind, when the kernel says that a child ended, and once a second for what it does not say.
pub async fn sweep(spawner: Spawner, board: Board) {
    let mut children = signal(SignalKind::child()).ok();
    let mut told = HashSet::new();
    loop {
        let ended = async {
            match &mut children {
                Some(children) => _ = children.recv().await,
                None => std::future::pending().await,
            }
        };
        let _ = tokio::time::timeout(SWEEP, ended).await;
        match spawner.sweep() {
            Ok(orphans) => tell_orphans(&orphans, &mut told, &board),
            Err(error) => {
                tracing::warn!(%error, "Orphans cannot be looked for; a child's own processes may outlive it.");
                return;
            }
        }
    }
}

/// An orphan is met at least twice: when it is killed and when it is reaped.
fn tell_orphans(orphans: &[Orphan], told: &mut HashSet<u32>, board: &Board) {
    for Orphan { pid, name, killed } in orphans {
        if !killed {
            told.remove(pid);
        } else if told.insert(*pid) {
            board.event(ChildEvent::OrphanEnded { pid: *pid, program: name.clone() });
        }
    }
}

/// Nothing that was started here outlives the supervisor, as far as the kernel lets go of it: children whose task was not ended in
/// time are killed with all that is below them, which a parent-death signal would not reach.
pub async fn end_all(spawner: &Spawner, board: &Board, limit: Duration) {
    let began = clock::monotonic();
    // A start that the stop cut off may still be under way.
    let _ = tokio::time::timeout(limit / 2, spawner.settle()).await;
    let mut told = HashSet::new();
    loop {
        // Swept first, so that orphans are told of.
        let swept = spawner.sweep();
        tell_orphans(swept.as_deref().unwrap_or_default(), &mut told, board);
        match (swept, spawner.end_all()) {
            (Ok(met), Ok(0)) if met.is_empty() => return,
            (Err(error), _) | (_, Err(error)) => {
                return tracing::warn!(%error, "What is left of the children cannot be looked for; it may outlive the supervisor.");
            }
            (Ok(_), Ok(_)) if began.elapsed() < limit => tokio::time::sleep(Duration::from_millis(10)).await,
            (Ok(_), Ok(left)) => {
                return tracing::error!(left, "Processes that were killed are still there; the kernel holds them.");
            }
        }
    }
}
