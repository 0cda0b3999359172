//! The protocol's pure rules: randomness, sketches, signatures, selection, the checks of a validator.

mod cryptography;
mod judging;
mod numerics;
mod pipeline;
mod selecting;
mod values;
mod wallets;

use crate::report::Report;

/// Every vector file of `grail/` and `env/` that a pure rule answers for.
pub fn run(report: &mut Report) {
    cryptography::run(report);
    wallets::run(report);
    numerics::run(report);
    judging::run(report);
    selecting::run(report);
    pipeline::run(report);
}
