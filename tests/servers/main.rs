//! Real SGLang and vLLM, on the CPU, under the real supervisor and launcher. Servers of the tests are made by
//! `scripts/setup.py --sglang --vllm`; without one its scenarios are skipped, and say so.
//!
//! `make test` plays the short form, `GRAIL_SERVERS=whole` everything; scenarios are filtered by name:
//! `cargo test --test servers -- windows-sglang`.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

mod damaged;
mod drills;
mod rig;
mod rounding;
mod windows;

use std::process::ExitCode;

use grail_tests::programs;
use grail_tests::side_by_side::{Scenario, play};
use rig::Installed;

fn main() -> ExitCode {
    programs();
    let whole = std::env::var("GRAIL_SERVERS").is_ok_and(|form| form == "whole");
    let mut scenarios = Vec::new();
    for server in Installed::ALL {
        if !whole && server != Installed::Sglang {
            continue;
        }
        if server.python().is_none() {
            println!("SKIPPED {0}: it is not installed in .venv-{0} (python3 scripts/setup.py --{0})", server.name());
            continue;
        }
        let name = |what: &str| format!("{what}-{}", server.name());
        scenarios.push(Scenario::new(name("windows"), move || windows::mined_across_an_update_and_a_death(server)));
        if whole {
            scenarios.push(Scenario::new(name("updates"), drills::run(move || drills::updates(server))));
            scenarios.push(Scenario::new(name("deaths"), drills::run(move || drills::deaths(server))));
            scenarios.push(Scenario::new(name("loading"), move || windows::parents_killed_while_it_loads(server)));
            scenarios.push(Scenario::new(name("frozen"), move || windows::a_stopped_process_is_noticed(server)));
            if server == Installed::Sglang {
                scenarios.push(Scenario::new(name("queue"), drills::run(move || drills::queue_full(server))));
                scenarios.push(Scenario::new(name("bf16"), drills::run(move || rounding::in_bf16(server))));
            }
        }
    }
    play(scenarios, 1)
}
