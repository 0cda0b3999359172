//! What a name means to sympy's parser: a name of sympy's or Python's, or a variable of its own.

/// The lower-case names that sympy 1.14 and Python 3.11 give a meaning to, sorted.
const KNOWN: &str = include_str!("../../data/sympy_names.txt");
/// Words of Python's that are no names.
const KEYWORDS: [&str; 32] = [
    "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del", "elif", "else", "except", "finally",
    "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal", "not", "or", "pass", "raise", "return", "try",
    "while", "with", "yield",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// A variable, or called a function, of which nothing is known.
    Free,
    /// A function that is covered.
    Function(Function),
    /// The number.
    Pi,
    /// `oo`, `zoo`, `nan`.
    Infinite,
    /// `true` and `false`, with which nothing is computed.
    Truth,
    /// A function or class that is not covered: calling it may give anything.
    Callable,
    /// A value that is not covered.
    Uncovered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Abs,
    Binomial,
    Ceiling,
    Cosine,
    CubeRoot,
    Exp,
    Factorial,
    DoubleFactorial,
    Floor,
    Gcd,
    Lcm,
    Log,
    Maximum,
    Minimum,
    Sine,
    SquareRoot,
    Tangent,
}

pub(super) fn is_keyword(name: &str) -> bool {
    KEYWORDS.contains(&name)
}

pub(super) fn look_up(name: &str) -> Name {
    Name::Function(match name {
        "abs" => Function::Abs,
        "binomial" => Function::Binomial,
        "cbrt" => Function::CubeRoot,
        "ceiling" => Function::Ceiling,
        "cos" => Function::Cosine,
        "exp" => Function::Exp,
        "factorial" => Function::Factorial,
        "factorial2" => Function::DoubleFactorial,
        "floor" => Function::Floor,
        "gcd" => Function::Gcd,
        "lcm" => Function::Lcm,
        "ln" | "log" => Function::Log,
        "max" => Function::Maximum,
        "min" => Function::Minimum,
        "sin" => Function::Sine,
        "sqrt" => Function::SquareRoot,
        "tan" => Function::Tangent,
        "pi" => return Name::Pi,
        "oo" | "zoo" | "nan" => return Name::Infinite,
        "true" | "false" => return Name::Truth,
        "ord0" => return Name::Uncovered,
        _ if KNOWN.lines().any(|known| known == name) => return Name::Callable,
        _ => return Name::Free,
    })
}
