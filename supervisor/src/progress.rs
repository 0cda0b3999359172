//! How far a command is, for a person who waits: a line on standard error, drawn from what the command counts, where that is a
//! terminal. One that takes no pictures gets a plain line now and then; a file or a pipe gets nothing.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use grail_process::{Meter, Step, Unit};
use grail_supervision::log;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Whoever waits a shorter time needs no picture.
const PATIENCE: Duration = Duration::from_secs(1);
/// From picture to picture, and from plain line to plain line.
const FRAME: Duration = Duration::from_millis(200);
const LINE: Duration = Duration::from_secs(10);
/// A terminal after Ctrl-S must not keep a command from ending.
const LAST_FRAME: Duration = Duration::from_millis(250);
/// Plain letters: what a locale takes is not asked.
const BAR: &str = "=> ";
const SPINNER: &str = "-\\|/ ";

/// What standard error takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// A line that is drawn again and again.
    Picture,
    /// Lines.
    Lines,
    /// It is no terminal.
    Nothing,
}

/// Shown until it is dropped; then the line is gone.
pub struct Shown {
    end: Option<Sender<()>>,
    gone: Receiver<()>,
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.end.take();
        let _ = self.gone.recv_timeout(LAST_FRAME);
    }
}

/// Begins to show what is counted. Without a thread there is no picture, and that is all.
pub fn show(meter: &Meter, surface: Surface) -> Option<Shown> {
    if surface == Surface::Nothing {
        return None;
    }
    let ((end, ended), (going, gone)) = (channel(), channel());
    let meter = meter.clone();
    let draw = move || {
        match surface {
            Surface::Picture => pictures(&meter, &ended),
            Surface::Lines => lines(&meter, &ended),
            Surface::Nothing => {}
        }
        drop(going);
    };
    std::thread::Builder::new().name("progress".into()).spawn(draw).ok()?;
    Some(Shown { end: Some(end), gone })
}

fn waits(ended: &Receiver<()>, time: Duration) -> bool {
    ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
}

fn pictures(meter: &Meter, ended: &Receiver<()>) {
    if !waits(ended, PATIENCE) {
        return;
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let mut shown = 0;
    loop {
        let step = meter.read();
        if step.number != shown {
            shown = step.number;
            bar.reset();
            bar.set_style(style(step.unit));
        }
        if step.unit == Unit::None {
            bar.unset_length();
        } else {
            bar.set_length(step.of.max(step.done));
        }
        bar.set_message(step.doing);
        bar.set_position(step.done);
        log::pictured(true);
        bar.tick();
        if !waits(ended, FRAME) {
            break;
        }
    }
    bar.finish_and_clear();
    log::pictured(false);
}

fn style(unit: Unit) -> ProgressStyle {
    let template = match unit {
        Unit::None => "{spinner} {msg} ({elapsed})".to_owned(),
        Unit::Bytes => "{msg} [{bar:24}] {bytes} of {total_bytes}, {eta} left".to_owned(),
        Unit::Things(things) => format!("{{msg}} [{{bar:24}}] {{pos}} of {{len}} {things}, {{eta}} left"),
    };
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    style.progress_chars(BAR).tick_chars(SPINNER)
}

fn lines(meter: &Meter, ended: &Receiver<()>) {
    while waits(ended, LINE) {
        log::say(&line(&meter.read()));
    }
}

fn line(step: &Step) -> String {
    match step.unit {
        Unit::None => format!("{} …", step.doing),
        _ => format!("{}: {} %", step.doing, (100 * step.done).checked_div(step.of).unwrap_or(0).min(100)),
    }
}
