//! The client against a node of the tests' own: reading, signing, publishing, and drand's relays.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;
mod publishing;
mod reading;
mod relays;
mod signing;
