//! Lines on their way to a place that may take nothing for as long as it likes: a terminal after Ctrl-S, a pipe that nobody reads,
//! a disk that hangs. Who logs never waits; what finds no room is counted, and the gap is told in its place once lines go again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use grail_process::clock;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that wait for a place.
const MOST_BYTES: usize = 4 << 20;

/// A place for lines, with a thread of its own that writes them there.
#[derive(Debug, Clone)]
pub struct Lines {
    name: &'static str,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Something changed.
    news: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The thread has taken lines and is not done with them.
    writing: bool,
    /// Lines that found no room: all of them, and those of which the place does not tell yet.
    lost: u64,
    untold: u64,
}

impl Lines {
    /// Starts the thread that writes into `place`.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn into(name: &'static str, place: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let of_thread = shared.clone();
        std::thread::Builder::new().name(format!("log {name}")).spawn(move || of_thread.run(place))?;
        Ok(Self { name, shared })
    }

    /// What the place is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Lines that found no room so far.
    pub fn lost(&self) -> u64 {
        self.shared.waiting().lost
    }

    /// Waits until everything is written, at most until `limit` is over. Blocks the thread.
    pub fn flush(&self, limit: Duration) {
        let end = clock::monotonic() + limit;
        let mut waiting = self.shared.waiting();
        while waiting.writing || !waiting.lines.is_empty() {
            let left = end.saturating_duration_since(clock::monotonic());
            if left.is_zero() {
                return;
            }
            waiting = self.shared.news.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.bytes + line.len() > MOST_BYTES {
            waiting.lost += 1;
            waiting.untold += 1;
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_vec());
        drop(waiting);
        self.news.notify_all();
    }

    fn run(&self, mut place: impl Write) {
        loop {
            let mut waiting = self.waiting();
            while waiting.lines.is_empty() {
                waiting.writing = false;
                self.news.notify_all();
                waiting = self.news.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            waiting.writing = true;
            let lines = std::mem::take(&mut waiting.lines);
            let untold = std::mem::take(&mut waiting.untold);
            drop(waiting);
            for line in lines {
                // What the place refuses is lost: a log must not end what it tells about.
                let _ = place.write_all(&line);
                self.waiting().bytes -= line.len();
            }
            if untold > 0 {
                let _ = place
                    .write_all(format!("… {untold} line(s) of the log are missing here: this place took none.\n").as_bytes());
            }
        }
    }
}

/// One event's line on its way into the queue.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.shared.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_pipe_that_nobody_reads_holds_up_nobody_and_tells_its_gap_once_it_is_read() {
        let (reader, writer) = io::pipe().unwrap();
        let lines = Lines::into("a pipe", writer).unwrap();
        let line = [b'x'; 1023].into_iter().chain([b'\n']).collect::<Vec<u8>>();
        // The pipe takes 64 KiB, the queue 4 MiB; the rest finds no room.
        let began = clock::monotonic();
        while lines.lost() < 100 {
            assert!(began.elapsed() < LONG, "nothing is lost");
            lines.clone().write_all(&line).unwrap();
        }
        lines.flush(Duration::from_millis(50));
        // Told in one place, or in two where the thread had not taken all before some were lost.
        let told = |line: &str| line.strip_prefix("… ")?.split_once(" line(s) of the log are missing")?.0.parse::<u64>().ok();
        let (mut missing, mut whole) = (0, 0);
        let mut came = BufReader::new(reader).lines();
        while missing < 100 {
            let line = came.next().unwrap().unwrap();
            match told(&line) {
                Some(count) => missing += count,
                None => {
                    assert_eq!(line.len(), 1023, "the others are whole");
                    whole += 1;
                }
            }
        }
        assert_eq!((missing, lines.lost()), (100, 100));
        assert!(whole > 4000, "{whole}");
    }
}
