//! The client against a node of the tests' own: reading, signing, publishing, lies, and drand's relays.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;
mod lies;
mod publishing;
mod reading;
mod relays;
mod signing;
