//! Answers that are meant to cost: whatever the text, a comparison ends soon and takes little memory.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "what is measured here is this program")]

use std::time::{Duration, Instant};

use grail_environments::math::{Equivalence, equivalence};

/// For one comparison; a debug build on a loaded machine included. They take some milliseconds.
const LONGEST: Duration = Duration::from_secs(20);
/// For the whole program, its texts included.
const MOST_MEMORY: u64 = 400 << 20;

fn hostile() -> Vec<String> {
    let digits = "9".repeat(1_000_000);
    let mut texts: Vec<String> = [
        "9**9**9",
        "9**9**9**9",
        "2**(2**(2**(2**2)))",
        "(9**999)**999",
        "factorial(factorial(9))",
        "9!!!!",
        "((9!)!)!",
        "1000000!",
        "1<<1000000000",
        "binomial(10**9,5*10**8)",
        "(x+y+z+w+u+v)**24",
        "((x+y+z)**20)**20",
        "1e999999999",
        "1e-999999999",
        "10**-999999999",
        "sqrt(sqrt(sqrt(9**500)))",
        "gcd(9**1000,8**1000)",
        "0.1**1000",
        "(1+sqrt(2)+sqrt(3)+sqrt(5)+sqrt(7))**24",
        "x**999999999999999999999",
        "exp(exp(exp(exp(9))))",
        "sin(1e300)",
        "log(9**1000)",
        "9**1000%7**900",
        "[1]*1000000000",
        "'a'*1000000000",
        "f(f(f(f(f(f(f(x)))))))",
    ]
    .map(str::to_owned)
    .to_vec();
    let sum = |term: &str, terms: usize| vec![term; terms].join("+");
    texts.extend([
        digits.clone(),
        format!("1.{digits}"),
        format!("{digits}.0e{digits}"),
        format!("{digits}+1"),
        format!("sqrt({})", &digits[..900]),
        "(".repeat(500_000),
        format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000)),
        "-".repeat(1_000_000),
        format!("{}1", "-".repeat(90_000)),
        "!".repeat(1_000_000),
        "[".repeat(90_000),
        "f(".repeat(30_000),
        sum("1", 40_000),
        sum("1/7", 290),
        sum("sqrt(2)*x", 140),
        sum("1/(x+y)", 90),
        (1..150).map(|number| format!("1/(x{number}+1)")).collect::<Vec<_>>().join("+"),
        (1..140).map(|number| format!("sqrt({})", 1_000_003 + number)).collect::<Vec<_>>().join("*"),
        (1..140).map(|number| format!("(x+{number})")).collect::<Vec<_>>().join("*"),
        (1..100).map(|number| format!("(a{number}+b{number})")).collect::<Vec<_>>().join("*"),
        "9**".repeat(30_000) + "9",
        "x".repeat(1_000_000),
        "\\left".repeat(200_000),
        "\\frac{".repeat(160_000),
        "'".repeat(1_000_001),
        "é".repeat(500_000),
        "1_".repeat(500_000),
        "0.1[1]".repeat(15_000),
        "1,".repeat(45_000),
    ]);
    texts
}

fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

#[test]
fn every_comparison_ends_soon_and_takes_little_memory() {
    let mut slowest = (Duration::ZERO, String::new());
    for text in hostile() {
        for gold in ["5", text.as_str(), "x**2+sqrt(2)", &format!("({text})+1")] {
            let begun = Instant::now();
            let answer = equivalence(&text, gold);
            let took = begun.elapsed();
            let shown: String = text.chars().take(60).collect();
            assert!(took < LONGEST, "{shown}… took {took:?}");
            assert!(answer != Equivalence::Equal || gold == text || text.len() < 200, "{shown}… is no {gold}");
            if took > slowest.0 {
                slowest = (took, shown);
            }
        }
    }
    println!("The slowest took {slowest:?}, the most memory was {} MiB.", peak_memory() >> 20);
    assert!(peak_memory() < MOST_MEMORY, "{} MiB", peak_memory() >> 20);
}
