//! The rows of the seven configurations and how they become splits.

use std::path::Path;

use grail_protocol::python_random::PythonRandom;

use super::first_boxed;
use crate::dataset::{Dataset, DatasetError, SourceSplit};
use crate::error::EnvironmentError;
use crate::python_text::decimal_digit;
use crate::shuffle::{SHUFFLE_SEED, chosen};
use crate::task::Split;

/// The configurations of the data set, in the order in which their rows count.
pub const CONFIGS: [&str; 7] =
    ["algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus"];
/// How many rows the network's data set has over all configurations (EleutherAI/hendrycks_math): whoever has others asks
/// other questions.
pub const NETWORK_ROWS: [(SourceSplit, usize); 2] = [(SourceSplit::Train, 7500), (SourceSplit::Test, 5000)];
/// The columns of a row that are read.
pub const COLUMNS: [&str; 4] = ["problem", "solution", "type", "level"];
/// Rows of the source's train splits that become the `val` split.
const VALIDATION_ROWS: usize = 500;

/// One row of the data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The user message, untouched.
    pub problem: String,
    /// The worked solution.
    pub solution: String,
    /// What the first `\boxed{}` of the solution holds; empty where there is none.
    pub answer: String,
    /// The row's `type`.
    pub subject: String,
    /// The first number in the row's `level`, 0 without one.
    pub level: u64,
}

/// The problems of one split, in the order that the protocol's row index counts.
///
/// # Errors
/// A configuration that is missing or has bad rows, a split that ends up without rows, and split names that math does not
/// have.
pub fn problems(path: &Path, split: Split) -> Result<Vec<Problem>, EnvironmentError> {
    let source_split = match split {
        Split::Test => SourceSplit::Test,
        Split::Train | Split::Val => SourceSplit::Train,
        Split::Validation => return Err(EnvironmentError::split("math", "validation", "`train`, `val` or `test`")),
    };
    let mut configs = Vec::new();
    for config in CONFIGS {
        configs.push(read(&source(path, config)?, source_split)?);
    }
    let rows = if split == Split::Test { configs.concat() } else { select(configs, split) };
    if rows.is_empty() {
        return Err(EnvironmentError::EmptySplit {
            path: path.to_owned(),
            split,
            why: format!("{VALIDATION_ROWS} rows of `train` become `val` and the rest stays in `train`"),
        });
    }
    Ok(rows)
}

/// The data files of one configuration: those of the folder with its name.
///
/// # Errors
/// A folder that is missing or is ambiguous.
pub fn source(path: &Path, config: &str) -> Result<Dataset, DatasetError> {
    let folder = path.join(config);
    if !folder.is_dir() {
        let what = format!(
            "it has no folder `{config}`: the data set has one per configuration ({}), each with train and test files",
            CONFIGS.join(", ")
        );
        return Err(DatasetError::File { path: path.to_owned(), what });
    }
    Dataset::open(&folder)
}

fn read(dataset: &Dataset, split: SourceSplit) -> Result<Vec<Problem>, DatasetError> {
    let rows = dataset.rows(split, COLUMNS)?;
    let problem = |[problem, solution, subject, level]: [String; 4]| {
        let answer = first_boxed(&solution).unwrap_or_default().to_owned();
        Problem { problem, answer, solution, subject, level: level_number(&level) }
    };
    Ok(rows.into_iter().map(problem).collect())
}

/// The first digits of a text as a number. `Level ?` is 0; so is what is too large to be a level.
fn level_number(level: &str) -> u64 {
    let digits = level.chars().map(decimal_digit).skip_while(Option::is_none).map_while(|digit| digit);
    digits.map(u64::from).try_fold(0_u64, |number, digit| number.checked_mul(10)?.checked_add(digit)).unwrap_or(0)
}

fn select(configs: Vec<Vec<Problem>>, split: Split) -> Vec<Problem> {
    let sizes: Vec<usize> = configs.iter().map(Vec::len).collect();
    let validation = validation_indices(&sizes);
    let keep = split == Split::Val;
    configs.into_iter().zip(validation).flat_map(|(rows, indices)| chosen(rows, &indices, keep)).collect()
}

/// Which rows of each configuration form `val`, sorted: 500 in all, shared out by size, and chosen by one generator that
/// goes on from configuration to configuration. The last one takes what is left.
pub fn validation_indices(sizes: &[usize]) -> Vec<Vec<usize>> {
    let total: usize = sizes.iter().sum();
    let mut random = PythonRandom::from_integer(SHUFFLE_SEED);
    let mut left = VALIDATION_ROWS;
    let mut validation = Vec::new();
    for (config, &rows) in sizes.iter().enumerate() {
        let share = if config + 1 == sizes.len() {
            left
        } else {
            (VALIDATION_ROWS as f64 * rows as f64 / total.max(1) as f64).round_ties_even() as usize
        };
        let quota = share.min(rows).min(left);
        left -= quota;
        let mut order: Vec<usize> = (0..rows).collect();
        random.shuffle(&mut order);
        order.truncate(quota);
        order.sort_unstable();
        validation.push(order);
    }
    validation
}
