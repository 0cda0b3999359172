//! Says of pairs of mathematical answers whether they are the same: a JSON array of two texts a line on standard input, one
//! word a line on standard output. For `scripts/compare_answers.py`, which asks sympy the same.

use std::io::{BufRead, Write};

use grail_environments::math::equivalence;

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let [prediction, gold]: [String; 2] = serde_json::from_str(&line?)?;
        writeln!(out, "{:?}", equivalence(&prediction, &gold))?;
        out.flush()?;
    }
    Ok(())
}
