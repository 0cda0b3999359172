//! The child's side, `grail-supervisor read-checkpoint`: loads template and tokenizer, and answers until the link closes.
//!
//! Everything happens on the main thread, whose stack the kernel bounds. Nothing is caught: a panic, an overflow and memory that
//! runs out all end the process, and what it wrote last says why.
// The one place where a checkpoint's template and tokenizer may be touched.
#![allow(clippy::disallowed_methods)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use grail_environments::{ChatTokenizer, ThinkingMode};
use grail_link::message::{FromReader, Question, ToReader};
use grail_link::{Connection, LinkError};
use grail_process::bounds::allow_cpu;

/// A longer text is no completion's: 8,192 tokens have some tens of kilobytes.
const MOST_TEXT: usize = 16 << 20;
/// More ids are no prompt's.
const MOST_IDS: usize = 4 << 20;
/// What a template is tried with.
const TRIAL: &str = "What is 2 + 2?";

/// Arguments of the hidden verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where the supervisor listens.
    #[arg(long)]
    socket: PathBuf,
    /// The checkpoint's directory.
    #[arg(long)]
    checkpoint: PathBuf,
    /// The thinking mode.
    #[arg(long)]
    mode: String,
    /// Seconds of computing time for loading.
    #[arg(long)]
    load_seconds: u64,
    /// Seconds of computing time for an answer.
    #[arg(long)]
    answer_seconds: u64,
}

/// Runs the child.
pub fn main(arguments: &Arguments) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(serve(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("read-checkpoint: {error}");
    ExitCode::from(1)
}

async fn serve(arguments: &Arguments) -> Result<(), LinkError> {
    let mut link: Connection<ToReader, FromReader> = Connection::connect(&arguments.socket).await?;
    let answer_time = Duration::from_secs(arguments.answer_seconds);
    let (chat, mode) = match open(arguments, answer_time) {
        Ok(opened) => opened,
        Err(reason) => return link.outbox.send(&FromReader::Refused { reason }).await,
    };
    link.outbox.send(&FromReader::Opened { eos_token_id: chat.eos_token_id() }).await?;
    while let Some(ToReader { questions }) = link.inbox.receive().await? {
        for question in questions {
            allow_cpu(answer_time)?;
            link.outbox.send(&answer(&chat, mode, question)).await?;
        }
    }
    Ok(())
}

fn open(arguments: &Arguments, answer_time: Duration) -> Result<(ChatTokenizer, ThinkingMode), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    allow_cpu(Duration::from_secs(arguments.load_seconds)).map_err(|error| text(&error))?;
    let mode: ThinkingMode = arguments.mode.parse().map_err(|error| text(&error))?;
    let chat = ChatTokenizer::open(&arguments.checkpoint).map_err(|error| text(&error))?;
    allow_cpu(answer_time).map_err(|error| text(&error))?;
    let ids = chat.prompt_ids(TRIAL, mode).map_err(|error| text(&error))?;
    chat.decode(&ids).map_err(|error| text(&error))?;
    Ok((chat, mode))
}

fn answer(chat: &ChatTokenizer, mode: ThinkingMode, question: Question) -> FromReader {
    let failed = |reason: String| FromReader::Failed { reason };
    match question {
        Question::Prompt(user_message) => match chat.prompt_ids(&user_message, mode) {
            Ok(ids) if ids.len() > MOST_IDS => failed(format!("the prompt has {} tokens, more than {MOST_IDS}", ids.len())),
            Ok(ids) => FromReader::Prompt(ids),
            Err(error) => failed(error.to_string()),
        },
        Question::Text(ids) => match chat.decode(&ids) {
            Ok(text) if text.len() > MOST_TEXT => failed(format!("{} tokens are a text of {} bytes", ids.len(), text.len())),
            Ok(text) => FromReader::Text(text),
            Err(error) => failed(error.to_string()),
        },
    }
}
