//! A program that is started to say something and to end.

use std::process::ExitStatus;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{Launch, SpawnError, Spawner};

/// What a program said.
#[derive(Debug)]
pub struct ProgramOutput {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, as far as it was read.
    pub output: String,
    /// Standard error, as far as it was read.
    pub errors: String,
}

impl Spawner {
    /// Starts a program, waits for its end, and gives the first `most` bytes of either stream. Cancelled, it ends the program.
    ///
    /// # Errors
    /// When the program cannot be executed.
    pub async fn ask(&self, launch: Launch, most: u64) -> Result<ProgramOutput, SpawnError> {
        let mut child = self.spawn(launch).await?;
        let (mut output, mut errors) = (String::new(), String::new());
        if let Some(pipes) = child.take_output() {
            (output, errors) = tokio::join!(read(pipes.stdout, most), read(pipes.stderr, most));
        }
        Ok(ProgramOutput { status: child.exited().await, output, errors })
    }
}

async fn read(mut pipe: impl AsyncRead + Unpin, most: u64) -> String {
    let mut bytes = Vec::new();
    // What broke off is judged like anything else that was printed.
    let _ = (&mut pipe).take(most).read_to_end(&mut bytes).await;
    // The pipe must be empty for the child to end.
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&bytes).into_owned()
}
