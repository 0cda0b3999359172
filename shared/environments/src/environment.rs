//! The registry of environments: what a checkpoint names, opened (grail-environments 1, 2.2, 5, 6.1).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::ThinkingMode;
use crate::dataset::Dataset;
use crate::error::EnvironmentError;
use crate::gsm8k;
use crate::math;
use crate::task::{Evaluation, Gold, Split, Task, Unjudged, row_index, task_number};

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

impl EnvironmentId {
    /// Every id of the protocol's prompt registry.
    pub const ALL: [Self; 7] =
        [Self::Gsm8k, Self::Math, Self::Mbpp, Self::PythonCode, Self::HumanEval, Self::Sat, Self::TritonKernel];
    /// The ids whose rules are built.
    pub const BUILT: [Self; 2] = [Self::Gsm8k, Self::Math];

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

    /// Where its data set lies: in the folder of its name below `dataset`, where there is one, else at `dataset` itself.
    pub fn dataset(self, dataset: &Path) -> PathBuf {
        // One data set goes by two names.
        let name = if self == Self::PythonCode { Self::Mbpp.as_str() } else { self.as_str() };
        let own = dataset.join(name);
        if own.is_dir() { own } else { dataset.to_owned() }
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

/// An opened environment: the rules of one id over the rows of one split. Cheap to clone; never changes.
#[derive(Debug, Clone)]
pub struct Environment {
    id: EnvironmentId,
    split: Split,
    rules: Rules,
}

#[derive(Debug, Clone)]
enum Rules {
    Gsm8k(Arc<[gsm8k::Problem]>),
    Math(Arc<[math::Problem]>),
}

impl Environment {
    /// Opens the environment that a checkpoint names, reading its data set from `dataset`: a file or a folder, or a folder
    /// with one folder per environment ([`EnvironmentId::dataset`]).
    ///
    /// # Errors
    /// An id that is unknown or whose rules are not built, parameters that the environment does not accept, and a data
    /// set that cannot be used.
    pub fn open(env_id: &str, env_params: &Value, dataset: &Path) -> Result<Self, EnvironmentError> {
        let id: EnvironmentId = env_id.parse()?;
        let split = id.split(env_params)?;
        let dataset = &id.dataset(dataset);
        match (id, split) {
            (EnvironmentId::Gsm8k, Some(split)) => {
                let problems = gsm8k::problems(&Dataset::open(dataset)?, split)?;
                Ok(Self { id, split, rules: Rules::Gsm8k(problems.into()) })
            }
            (EnvironmentId::Math, Some(split)) => {
                let problems = math::problems(dataset, split)?;
                Ok(Self { id, split, rules: Rules::Math(problems.into()) })
            }
            _ => Err(EnvironmentError::NotBuilt { id: id.as_str(), built: Self::built() }),
        }
    }

    fn built() -> String {
        EnvironmentId::BUILT.map(EnvironmentId::as_str).join(", ")
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
            Rules::Math(problems) => problems.len(),
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
                let gsm8k::Problem { question, answer } = problems[row].clone();
                Task { id, user_message: question, gold: Gold::Gsm8k(answer) }
            }
            Rules::Math(problems) => {
                let math::Problem { problem, solution, answer, .. } = problems[row].clone();
                Task { id, user_message: problem, gold: Gold::Math { answer, solution } }
            }
        }
    }

    /// Scores a completion: its ids decoded with special tokens kept. Its time has a bound, whatever the text.
    ///
    /// # Errors
    /// A completion of which it is not certain here what the network gives for it.
    pub fn evaluate(&self, task: &Task, completion: &str, mode: ThinkingMode) -> Result<Evaluation, Unjudged> {
        match &task.gold {
            Gold::Gsm8k(answer) => Ok(gsm8k::evaluate(answer, completion, mode)),
            Gold::Math { answer, solution } => math::evaluate(answer, solution, completion, mode),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
        assert!(open("mbpp").contains("no rules in this version (built: gsm8k, math)"));
        assert!(open("math").contains("no folder `algebra`"));
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
        let Gold::Gsm8k(gold) = &task.gold else { panic!("{task:?}") };
        assert_eq!(gold.replace("#### ", "Q"), task.user_message);
        let completion = format!("</think><SOLUTION>{}</SOLUTION>", &task.user_message[1..]);
        assert!(val.evaluate(&task, &completion, ThinkingMode::Native).unwrap().success);
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
                let Gold::Gsm8k(answer) = &task.gold else { panic!("{task:?}") };
                let completion = format!("{answer}</end_working_out><SOLUTION>{}</SOLUTION>", gsm8k::gold(answer));
                let evaluation = environment.evaluate(&task, &completion, ThinkingMode::Instructed).unwrap();
                assert!(evaluation.success && evaluation.reward > 0.73, "{task:?}");
            }
        }
    }
}
