//! The GRAIL protocol as pure functions and values: no I/O, no clock, no randomness of its own (an sr25519 signature
//! takes its nonce salt from the operating system, inside the signing library).

#![forbid(unsafe_code)]

pub mod advantage;
pub mod binding;
pub mod challenge;
pub mod commitment;
pub mod constants;
pub mod derivation;
pub mod generation_params;
pub mod hexadecimal;
pub mod keys;
pub mod prf;
pub mod python_json;
pub mod python_random;
pub mod row;
pub mod sketch;
pub mod time_budget;
pub mod validation;
pub mod window;
