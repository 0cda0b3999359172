//! The registry of environments, choosing a task by seed, and scoring (grail-environments 1, 2.2, 5, 6.1).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::ThinkingMode;
use crate::dataset::{Dataset, DatasetError};
use crate::gsm8k::{self, Problem};
use crate::python_text::{decimal_digit, strip};

/// The environments that a checkpoint's metadata may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EnvironmentId {
    /// Grade-school word problems.
    Gsm8k,
    /// Competition mathematics.
    Math,
    /// Basic Python problems.
    Mbpp,
    /// Another name of `mbpp`.
    PythonCode,
    /// Python functions from their documentation.
    HumanEval,
    /// Satisfiability problems, generated.
    Sat,
    /// GPU kernels; not active in protocol v5.
    TritonKernel,
}

/// A split as `env_params` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// `train`
    Train,
    /// `val`: rows that the protocol takes out of the source's train split.
    Val,
    /// `validation`
    Validation,
    /// `test`
    Test,
}

/// Why an environment cannot be opened. Each means: do not mine this checkpoint's windows.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// An id that the protocol does not register.
    #[error("Unknown environment id `{id}` (known: {known}). Every miner fails in it; do not mine this checkpoint.")]
    Unknown {
        /// The id.
        id: String,
        /// The registered ids.
        known: String,
    },
    /// A registered id without rules here.
    #[error("The environment `{id}` has no rules in this version (built: {built}). Do not mine this checkpoint.")]
    NotBuilt {
        /// The id.
        id: &'static str,
        /// The ids that have rules.
        built: &'static str,
    },
    /// `env_params` is no object.
    #[error("env_params must be a JSON object, got {found}. Do not mine this checkpoint.")]
    Params {
        /// The value, as JSON.
        found: String,
    },
    /// A split that the environment does not have.
    #[error("The environment `{id}` has no split {found}: it must be {accepted}. Do not mine this checkpoint.")]
    Split {
        /// The environment.
        id: &'static str,
        /// The value, as JSON.
        found: String,
        /// What would have been accepted.
        accepted: &'static str,
    },
    /// A split that ends up without rows.
    #[error("The split `{split}` of {path} is empty: {why}. Use a larger data set.")]
    EmptySplit {
        /// The data set.
        path: PathBuf,
        /// The split.
        split: Split,
        /// The rule that left it empty.
        why: String,
    },
    /// The data set cannot be used.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

impl EnvironmentError {
    pub(crate) fn split(id: &'static str, found: &str, accepted: &'static str) -> Self {
        Self::Split { id, found: format!("`{found}`"), accepted }
    }
}

impl EnvironmentId {
    /// Every id of the protocol's prompt registry.
    pub const ALL: [Self; 7] =
        [Self::Gsm8k, Self::Math, Self::Mbpp, Self::PythonCode, Self::HumanEval, Self::Sat, Self::TritonKernel];
    /// The ids whose rules are built.
    pub const BUILT: [Self; 1] = [Self::Gsm8k];

    /// The id as published.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gsm8k => "gsm8k",
            Self::Math => "math",
            Self::Mbpp => "mbpp",
            Self::PythonCode => "python_code",
            Self::HumanEval => "humaneval",
            Self::Sat => "sat",
            Self::TritonKernel => "triton_kernel",
        }
    }

    /// The split that `env_params` selects; `None` for environments without splits.
    ///
    /// Everything but `split` is ignored, and an empty object or null is like an absent one.
    ///
    /// # Errors
    /// `env_params` that is no object, and a split that the environment does not accept.
    pub fn split(self, env_params: &Value) -> Result<Option<Split>, EnvironmentError> {
        let asked = match env_params {
            Value::Null => None,
            Value::Object(params) => params.get("split"),
            other => return Err(EnvironmentError::Params { found: shown(other) }),
        };
        match self {
            Self::HumanEval => Ok(Some(Split::Test)),
            Self::Sat | Self::TritonKernel => Ok(None),
            Self::Gsm8k | Self::Math => self.accepted(asked, "`train`, `val` or `test`", |name| match name {
                "train" => Some(Split::Train),
                "val" => Some(Split::Val),
                "test" => Some(Split::Test),
                _ => None,
            }),
            Self::Mbpp | Self::PythonCode => self.accepted(asked, "`train`, `validation` or `val`", |name| match name {
                "train" => Some(Split::Train),
                "validation" | "val" => Some(Split::Validation),
                _ => None,
            }),
        }
    }

    fn accepted(
        self,
        asked: Option<&Value>,
        accepted: &'static str,
        named: impl Fn(&str) -> Option<Split>,
    ) -> Result<Option<Split>, EnvironmentError> {
        let Some(asked) = asked else { return Ok(Some(Split::Train)) };
        match asked.as_str().and_then(named) {
            Some(split) => Ok(Some(split)),
            None => Err(EnvironmentError::Split { id: self.as_str(), found: shown(asked), accepted }),
        }
    }
}

/// A JSON value for an error message, cut to a readable length.
fn shown(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

impl std::str::FromStr for EnvironmentId {
    type Err = EnvironmentError;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|known| known.as_str() == id).ok_or_else(|| EnvironmentError::Unknown {
            id: id.chars().take(80).collect(),
            known: Self::ALL.map(Self::as_str).join(", "),
        })
    }
}

impl std::fmt::Display for EnvironmentId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Split {
    /// The name, as it begins a task's id.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// One task: what is asked, and what an evaluation compares with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// `<split>_<index>`, with the index as it was asked for.
    pub id: String,
    /// The content of the single user message.
    pub user_message: String,
    /// What the environment needs to score a completion.
    pub gold: Gold,
}

/// What an environment needs to score a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gold {
    /// The `answer` field of a gsm8k row.
    Gsm8k(String),
}

/// The score of one completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// `total_reward`: the components' weighted sum.
    pub reward: f64,
    /// Whether the answer is right; says nothing about form.
    pub success: bool,
    /// The parts of the reward, in the order in which they are added.
    pub components: Vec<Component>,
}

/// One part of a reward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Component {
    /// What is rewarded.
    pub name: &'static str,
    /// The value before weighting.
    pub value: f64,
    /// Its weight.
    pub weight: f64,
}

impl Evaluation {
    /// Adds `weight * value` left to right in f64, as both sides must.
    pub(crate) fn weighted(success: bool, components: Vec<Component>) -> Self {
        let reward = components.iter().fold(0.0, |sum, component| sum + component.weight * component.value);
        Self { reward, success, components }
    }
}

/// The row that a seed chooses out of `rows`: the seed as a fraction of 2^32, scaled in f64 and truncated.
///
/// Used by gsm8k; 0 for an empty list.
pub fn row_index(seed: u32, rows: usize) -> usize {
    (f64::from(seed) / 4_294_967_296.0 * rows as f64) as usize
}

/// The number in a task id: the integer after the last underscore, 0 where there is none.
///
/// Python's `int` decides what an integer is: white space around it, a sign, digits of any script. A number beyond 2^127
/// also counts as none.
pub fn task_number(task_id: &str) -> i128 {
    let last = strip(task_id.rsplit('_').next().unwrap_or_default());
    let (negative, digits) = match last.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, last.strip_prefix('+').unwrap_or(last)),
    };
    if digits.is_empty() {
        return 0;
    }
    let value = digits
        .chars()
        .try_fold(0_i128, |value, character| value.checked_mul(10)?.checked_add(i128::from(decimal_digit(character)?)));
    value.map_or(0, |value| if negative { -value } else { value })
}

/// An opened environment: the rules of one id over the rows of one split. Cheap to clone; never changes.
#[derive(Debug, Clone)]
pub struct Environment {
    id: EnvironmentId,
    split: Split,
    rules: Rules,
}

#[derive(Debug, Clone)]
enum Rules {
    Gsm8k(Arc<[Problem]>),
}

impl Environment {
    /// Opens the environment that a checkpoint names, reading its data set from `dataset` (a file or a folder).
    ///
    /// # Errors
    /// An id that is unknown or whose rules are not built, parameters that the environment does not accept, and a data
    /// set that cannot be used.
    pub fn open(env_id: &str, env_params: &Value, dataset: &Path) -> Result<Self, EnvironmentError> {
        let id: EnvironmentId = env_id.parse()?;
        let split = id.split(env_params)?;
        match (id, split) {
            (EnvironmentId::Gsm8k, Some(split)) => {
                let problems = gsm8k::problems(&Dataset::open(dataset)?, split)?;
                Ok(Self { id, split, rules: Rules::Gsm8k(problems.into()) })
            }
            _ => Err(EnvironmentError::NotBuilt { id: id.as_str(), built: "gsm8k" }),
        }
    }

    /// Which environment this is.
    pub fn id(&self) -> EnvironmentId {
        self.id
    }

    /// The split its tasks come from.
    pub fn split(&self) -> Split {
        self.split
    }

    /// How many tasks there are; never 0.
    pub fn size(&self) -> usize {
        match &self.rules {
            Rules::Gsm8k(problems) => problems.len(),
        }
    }

    /// The task that an environment seed chooses.
    pub fn task(&self, seed: u32) -> Task {
        self.numbered(row_index(seed, self.size()) as i128)
    }

    /// The task of an id such as `train_17`, for tools. Ids beyond the end wrap around, others mean the first task.
    pub fn task_by_id(&self, task_id: &str) -> Task {
        self.numbered(task_number(task_id))
    }

    /// The row is reduced to the list's length, the reported id keeps the number as it was asked for.
    fn numbered(&self, number: i128) -> Task {
        let row = number.rem_euclid(self.size().max(1) as i128) as usize;
        let id = format!("{}_{number}", self.split);
        match &self.rules {
            Rules::Gsm8k(problems) => {
                let Problem { question, answer } = problems[row].clone();
                Task { id, user_message: question, gold: Gold::Gsm8k(answer) }
            }
        }
    }

    /// Scores a completion: its ids decoded with special tokens kept. Linear in its length, never fails.
    pub fn evaluate(&self, task: &Task, completion: &str, mode: ThinkingMode) -> Evaluation {
        match &task.gold {
            Gold::Gsm8k(answer) => gsm8k::evaluate(answer, completion, mode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn data(rows: usize, name: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let text: String = (0..rows)
            .map(|row| json!({"question": format!("Q{row}"), "answer": format!("#### {row}")}).to_string() + "\n")
            .collect();
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn splits_follow_the_table() {
        let split = |id: &str, params: Value| id.parse::<EnvironmentId>().unwrap().split(&params);
        assert_eq!(split("gsm8k", json!({})).unwrap(), Some(Split::Train));
        assert_eq!(split("gsm8k", Value::Null).unwrap(), Some(Split::Train));
        assert_eq!(split("math", json!({"split": "val", "gpu_eval": true})).unwrap(), Some(Split::Val));
        assert_eq!(split("python_code", json!({"split": "val"})).unwrap(), Some(Split::Validation));
        assert_eq!(split("humaneval", json!({"split": 7})).unwrap(), Some(Split::Test));
        assert_eq!(split("sat", json!({"split": "x"})).unwrap(), None);
        for (id, params) in [
            ("gsm8k", json!({"split": "validation"})),
            ("gsm8k", json!({"split": null})),
            ("gsm8k", json!({"split": ["train"]})),
            ("math", json!({"split": "Train"})),
            ("mbpp", json!({"split": "test"})),
            ("gsm8k", json!([])),
        ] {
            assert!(split(id, params.clone()).is_err(), "{id} {params}");
        }
    }

    #[test]
    fn unknown_and_unbuilt_ids_are_told_apart() {
        let open = |id| Environment::open(id, &json!({}), Path::new("absent")).unwrap_err().to_string();
        assert!(open("affine_trace").contains("Unknown environment id `affine_trace`"));
        assert!(open("math").contains("no rules in this version (built: gsm8k)"));
        assert!(open("gsm8k").contains("cannot be read"));
    }

    #[test]
    fn seeds_choose_rows_over_the_whole_range() {
        let (_folder, path) = data(260, "train.jsonl");
        let train = Environment::open("gsm8k", &json!({}), &path).unwrap();
        let val = Environment::open("gsm8k", &json!({"split": "val"}), &path).unwrap();
        assert_eq!((train.size(), val.size()), (10, 250));
        assert_eq!(train.task(0).id, "train_0");
        assert_eq!(val.task(u32::MAX).id, "val_249");
        let task = val.task(1 << 31);
        assert_eq!(task.id, "val_125");
        let Gold::Gsm8k(gold) = &task.gold;
        assert_eq!(gold.replace("#### ", "Q"), task.user_message);
        let completion = format!("</think><SOLUTION>{}</SOLUTION>", &task.user_message[1..]);
        assert!(val.evaluate(&task, &completion, ThinkingMode::Native).success);
    }

    #[test]
    fn a_source_of_at_most_250_rows_has_no_train_split() {
        let (_folder, path) = data(250, "train.jsonl");
        let error = Environment::open("gsm8k", &json!({}), &path).unwrap_err();
        assert!(matches!(error, EnvironmentError::EmptySplit { split: Split::Train, .. }), "{error}");
    }

    #[test]
    fn task_ids_keep_the_number_that_was_asked_for() {
        let (_folder, path) = data(5, "test.jsonl");
        let test = Environment::open("gsm8k", &json!({"split": "test"}), &path).unwrap();
        for (asked, id, question) in [
            ("test_3", "test_3", "Q3"),
            ("test_9999", "test_9999", "Q4"),
            ("test_-1", "test_-1", "Q4"),
            ("x", "test_0", "Q0"),
            ("a_b_ +٢ ", "test_2", "Q2"),
            ("test_", "test_0", "Q0"),
            ("test_99999999999999999999999999999999999999999", "test_0", "Q0"),
        ] {
            let task = test.task_by_id(asked);
            assert_eq!((task.id.as_str(), task.user_message.as_str()), (id, question), "{asked}");
        }
    }

    #[test]
    fn every_problem_of_the_demo_can_be_solved() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/gsm8k");
        for (split, size) in [("train", 450), ("val", 250), ("test", 200)] {
            let environment = Environment::open("gsm8k", &json!({"split": split}), &demo).unwrap();
            assert_eq!(environment.size(), size);
            for row in 0..size {
                let task = environment.task_by_id(&row.to_string());
                let Gold::Gsm8k(answer) = &task.gold;
                let completion = format!("{answer}</end_working_out><SOLUTION>{}</SOLUTION>", gsm8k::gold(answer));
                let evaluation = environment.evaluate(&task, &completion, ThinkingMode::Instructed);
                assert!(evaluation.success && evaluation.reward > 0.73, "{task:?}");
            }
        }
    }
}
