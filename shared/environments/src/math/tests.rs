//! Answers and their equivalence, and the rows; the vectors of the reference are checked by `make conformance`.

use super::Equivalence::{Equal, NotCovered, NotEqual};
use super::*;
use crate::task::Split;

fn all(wanted: Equivalence, pairs: &[(&str, &str)]) {
    for (prediction, gold) in pairs {
        assert_eq!(equivalence(prediction, gold), wanted, "{prediction} | {gold}");
    }
}

#[test]
fn what_sympy_proves_is_equal() {
    all(
        Equal,
        &[
            ("3/6", "1/2"),
            ("1.50", "3/2"),
            ("2**10", "1024"),
            ("(x+1)**2", "x**2 + 2*x + 1"),
            ("1/(1+sqrt(2))", "sqrt(2)-1"),
            ("sqrt(-4)", "2*sqrt(-1)"),
            ("x/2", "0.5*x"),
            ("log(8)/log(4)", "3/2"),
            ("exp(2)", "exp(1)*exp(1)"),
            ("6!/3!", "120"),
            ("f(x+1)", "f(1+x)"),
            ("7^2", "5"),
            ("5#anything", "5"),
            ("2*π", "π*2"),
            ("１２.５", "12.5"),
            ("1_000.5", "1000.5"),
        ],
    );
}

#[test]
fn what_python_cannot_parse_or_subtract_is_not_equal() {
    all(
        NotEqual,
        &[
            (r"\frac12", "1/2"),
            ("2x", "2*x"),
            ("2(x+1)", "2*x+2"),
            ("(x+1)(x-1)", "x**2-1"),
            ("x^2", "x**2"),
            ("x = 5", "5"),
            ("1,000", "1000"),
            ("(1, 2)", "(2, 1)"),
            ("{1, 2}", "{2, 1}"),
            ("[1, 2)", "3"),
            ("50%", "50"),
            ("$5", "5"),
            ("5 apples", "5"),
            ("x > 5", "5"),
            ("5!!!", "5"),
            ("f(3)!", "6"),
            ("sin", "0"),
            ("true", "1"),
            ("((1)", "1"),
            ("90°", "90"),
            ("√2", "sqrt(2)"),
            ("", ""),
            ("5", ""),
            ("inf", "infinity"),
            ("lambda", "5"),
        ],
    );
}

#[test]
fn what_differs_somewhere_is_not_equal() {
    all(
        NotEqual,
        &[
            ("sqrt(x**2)", "x"),
            ("sqrt(x**2)", "abs(x)"),
            ("sin(x)**2", "1"),
            ("2**0.5", "sqrt(2)"),
            ("0.1+0.2", "0.3"),
            ("pi", "22/7"),
            ("1/3", "0.333333"),
            ("x(x+1)", "x**2+x"),
            ("2**(1/3)", "1.26"),
        ],
    );
}

#[test]
fn what_is_not_certain_is_not_covered() {
    all(
        NotCovered,
        &[
            ("sin(x)**2+cos(x)**2", "1"),
            ("sqrt(3+2*sqrt(2))", "1+sqrt(2)"),
            ("integrate(x)", "x**2/2"),
            ("0.2[1]", "19/90"),
            ("(5)or(6)", "5"),
            ("x.real", "5"),
            ("9**9**9", "5"),
            ("lambda:5", "5"),
            ("f'(x)'", "5"),
        ],
    );
    // An error elsewhere in the text is certain all the same.
    all(NotEqual, &[("integrate(x)+(5)(3)", "5"), ("9**9**9+2x", "5"), ("9**9**9*sin", "5")]);
}

#[test]
fn commands_that_only_shape_the_text_do_not_count() {
    for (text, want) in [
        (r"\left( 1,\,2 \right]", "(1,2]"),
        (r"\leftarrow\left_1\left1", r"\leftarrow\left_1\left1"),
        (r"\dfrac{A}{\tfrac12}", r"\frac{a}{\frac12}"),
        (r"\leftπ", r"\leftπ"),
        ("\u{1c}5\u{a0}0\u{2009}", "50"),
    ] {
        assert_eq!(normalised(text).as_deref(), Some(want), "{text}");
    }
    // Versions of Unicode disagree about what this is.
    assert_eq!(normalised("\\left\u{1E030}"), None);
}

#[test]
fn the_largest_reward_is_805_thousandths() {
    let score = |answer: &str, solution: &str, text: &str| evaluate(answer, solution, text, ThinkingMode::Instructed).unwrap();
    let best = score("1/2", "", "x</end_working_out><SOLUTION>0.5</SOLUTION>");
    assert!(best.success && (best.reward - 0.805).abs() < 1e-12, "{best:?}");
    // The solution's last box makes a success, but no reward.
    let found = score("", r"\boxed{3} or \boxed{7}", "<SOLUTION>7</SOLUTION>");
    assert!(found.success && found.components[0].value == 0.0, "{found:?}");
    let nothing = score("7", "", "");
    assert_eq!((nothing.reward, nothing.success), (0.0, false));
    let unjudged = evaluate("7", "", "<SOLUTION>integrate(7)</SOLUTION>", ThinkingMode::Native).unwrap_err();
    assert_eq!(unjudged.to_string(), "symbolic form not covered");
}

fn data(rows: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for config in CONFIGS {
        std::fs::create_dir(folder.path().join(config)).unwrap();
        for split in ["train", "test"] {
            let row = |row| {
                let problem = format!("{config} {split} {row}");
                serde_json::json!({"problem": problem, "solution": format!("\\boxed{{{row}}}"), "type": config, "level": "Level 5"})
            };
            let lines: String = (0..rows).map(|number| row(number).to_string() + "\n").collect();
            std::fs::write(folder.path().join(config).join(format!("{split}-00000-of-00001.jsonl")), lines).unwrap();
        }
    }
    folder
}

#[test]
fn the_configurations_follow_one_another() {
    let folder = data(80);
    let (train, val) = (problems(folder.path(), Split::Train).unwrap(), problems(folder.path(), Split::Val).unwrap());
    assert_eq!((train.len(), val.len()), (60, 500));
    let test = problems(folder.path(), Split::Test).unwrap();
    assert_eq!((test.len(), test[81].problem.as_str(), test[81].answer.as_str()), (560, "counting_and_probability test 1", "1"));
    assert_eq!((test[0].level, test[559].subject.as_str()), (5, "precalculus"));
    let all: std::collections::HashSet<_> = train.iter().chain(&val).map(|row| &row.problem).collect();
    assert_eq!(all.len(), 560);
}

#[test]
fn a_missing_configuration_and_too_few_rows_are_told() {
    let folder = data(10);
    let error = problems(folder.path(), Split::Train).unwrap_err();
    assert!(error.to_string().contains("500 rows"), "{error}");
    std::fs::remove_dir_all(folder.path().join("geometry")).unwrap();
    let error = problems(folder.path(), Split::Test).unwrap_err();
    assert!(error.to_string().contains("no folder `geometry`"), "{error}");
    std::fs::create_dir(folder.path().join("geometry")).unwrap();
    let error = problems(folder.path(), Split::Test).unwrap_err();
    assert!(error.to_string().contains("no split `test`"), "{error}");
}
