//! `make conformance`: every vector file that concerns what is built, one line per file.
//!
//! Reads the folder in `GRAIL_VECTORS` (default `tests/vectors`). A file that is absent is skipped loudly; a file that no
//! check claims is reported as such, so that nothing is passed over in silence.

mod chain;
mod chat_templates;
mod checkpoints;
mod client;
mod environments;
mod generation;
mod model;
mod protocol;
mod report;
mod settings;
mod store;

use report::Report;

fn main() -> std::process::ExitCode {
    let mut report = Report::open();
    environments::run(&mut report);
    chat_templates::run(&mut report);
    generation::run(&mut report);
    model::run(&mut report);
    store::run(&mut report);
    checkpoints::run(&mut report);
    protocol::run(&mut report);
    chain::run(&mut report);
    settings::run(&mut report);
    report.finish()
}
