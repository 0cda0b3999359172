#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| grail_fakes::hostile::feed("chain_value", bytes));
