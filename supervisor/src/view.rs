//! Progress for a person: a live picture on a terminal, plain lines elsewhere. Reads the board, changes nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use grail_mining::status::{Board, FinishedWindow, WindowStatus};
use grail_supervision::board::ChildStatus;
use grail_supervision::secrets::clean_text;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Redrawn in place.
    Live,
    /// One line whenever something changed, at most one in two seconds.
    Plain,
}

/// Shows progress until `end`, and then how things stand at the end; what is returned tells that it is done. On a thread of its
/// own, because a terminal after Ctrl-S, or a pipe that nobody reads, holds up who writes to it.
///
/// # Errors
/// When the operating system refuses a thread.
pub fn show(board: Board, view: View, end: CancellationToken) -> std::io::Result<oneshot::Receiver<()>> {
    let (done, shown) = oneshot::channel();
    let runtime = Handle::current();
    std::thread::Builder::new().name("view".into()).spawn(move || {
        runtime.block_on(async {
            match view {
                View::Live => live(board, end).await,
                View::Plain => plain(board, end).await,
            }
        });
        // Whoever waited may be gone.
        let _ = done.send(());
    })?;
    Ok(shown)
}

/// Waits for the next tick; `false` once the end has come, so that the caller looks one last time.
async fn next(ticks: &mut tokio::time::Interval, end: &CancellationToken) -> bool {
    tokio::select! {
        _ = ticks.tick() => true,
        () = end.cancelled() => false,
    }
}

async fn plain(board: Board, end: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(2));
    let (mut shown, mut children, mut finished) = (String::new(), BTreeMap::new(), 0);
    let mut going_on = true;
    while going_on {
        going_on = next(&mut ticks, &end).await;
        let (host, status) = (board.host.snapshot(), board.snapshot());
        for (name, child) in &host.children {
            // Ready and busy alternate with every group; that is no news.
            let news = child_line(name, child).replace("busy ", "ready");
            if children.insert(name.clone(), news.clone()).is_none_or(|before| before != news) {
                say(&news);
            }
        }
        for window in status.finished.iter().skip(finished) {
            say(&finished_line(window));
        }
        finished = status.finished.len();
        let line = window_line(&status.window, host.time);
        // The time left alone is no news.
        let news = line.split(" | time").next().unwrap_or_default().to_owned();
        if news != shown {
            say(&line);
            shown = news;
        }
    }
}

/// A reader that went away must not end the miner.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{}", clean_text(line));
}

async fn live(board: Board, end: CancellationToken) {
    let bars = MultiProgress::new();
    let text = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let clock = ProgressStyle::with_template("{msg:<46} [{bar:32}]")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    let window = bars.add(ProgressBar::new(1000).with_style(clock));
    let groups = bars.add(ProgressBar::new_spinner().with_style(text.clone()));
    let mut children: BTreeMap<String, ProgressBar> = BTreeMap::new();
    let (mut finished, mut longest) = (0, 1.0_f64);
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    let mut going_on = true;
    while going_on {
        going_on = next(&mut ticks, &end).await;
        let (host, status) = (board.host.snapshot(), board.snapshot());
        let left = (status.window.deadline - host.time).max(0.0);
        longest = if status.window.deadline == 0.0 { 1.0 } else { longest.max(left) };
        window.set_position((1000.0 * (1.0 - left / longest)) as u64);
        window.set_message(format!("window {} · {} · {left:.0} s left", status.window.window, status.window.phase));
        groups.set_message(groups_text(&status.window));
        for (name, child) in &host.children {
            let bar =
                children.entry(name.clone()).or_insert_with(|| bars.add(ProgressBar::new_spinner().with_style(text.clone())));
            bar.set_message(clean_text(&child_line(name, child)).into_owned());
        }
        for done in status.finished.iter().skip(finished) {
            let _ = bars.println(clean_text(&finished_line(done)));
            longest = 1.0;
        }
        finished = status.finished.len();
    }
}

fn child_line(name: &str, child: &ChildStatus) -> String {
    let revision = child.revision.as_deref().map_or("-".into(), short_revision);
    let ends = if child.ends == 0 {
        String::new()
    } else {
        format!(" · ended {} time(s), last: {}", child.ends, child.last_end.as_deref().unwrap_or("?"))
    };
    format!("  {name:<15} {:<11} revision {revision}{ends}", child.state)
}

/// The window and the first digits of the hash.
fn short_revision(revision: &str) -> String {
    revision.chars().take(revision.find('-').map_or(16, |dash| dash + 9)).collect()
}

fn groups_text(window: &WindowStatus) -> String {
    let rollouts = window.spooled * 16;
    let mean = if rollouts == 0 { 0.0 } else { window.reward_sum / f64::from(rollouts) };
    let right = if rollouts == 0 { 0.0 } else { 100.0 * f64::from(window.successes) / f64::from(rollouts) };
    let dropped: u32 = window.dropped.values().sum();
    let causes: Vec<String> = window.dropped.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
    let causes = if causes.is_empty() { String::new() } else { format!(" ({})", causes.join(", ")) };
    format!(
        "groups: {} generated, {} proved, {} spooled, {dropped} dropped{causes}, {} under way · {rollouts} rollouts, reward {mean:.3}, {right:.0} % right",
        window.generated, window.proved, window.spooled, window.in_flight
    )
}

fn window_line(window: &WindowStatus, now: f64) -> String {
    if window.deadline == 0.0 {
        return format!("window {} · {}", window.window, window.phase);
    }
    let left = (window.deadline - now).max(0.0);
    format!("window {} · {} · {} | time left {left:.0} s", window.window, window.phase, groups_text(window))
}

fn finished_line(window: &FinishedWindow) -> String {
    match &window.reason {
        None => format!(
            "window {} uploaded and read back: {} rollouts, {} KiB, mean reward {:.3}, checkpoint {}, closed in {:.2} s",
            window.window,
            window.rollouts,
            window.bytes / 1024,
            window.mean_reward,
            window.checkpoint_window.map_or("-".into(), |checkpoint| checkpoint.to_string()),
            window.close_seconds
        ),
        Some(reason) => format!("window {} {}: {reason}", window.window, window.outcome),
    }
}
