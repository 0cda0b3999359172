//! Jinja templates as transformers renders them: Jinja2 3.1 in its immutable sandbox, with Python's values.
//!
//! A prompt that differs by one byte from the validators' is rejected, so every rule here is Python's or Jinja's own, and
//! whatever is not certain to be the same is an error: nothing is ever rendered approximately. From text to text in five
//! steps: [`lexer`], [`parser`], [`scope`] (which variable a name means), [`render`] (statements) and [`evaluate`]
//! (expressions); [`value`] is what they compute with.
//!
//! Loops, texts and nesting are bounded, so that an ordinary mistake is told as one. That bounds no stranger: who renders
//! a template that he does not trust does it in a process with limits of its own.

mod ast;
mod attribute;
mod call;
mod evaluate;
mod filters;
mod format;
mod function;
mod iterate;
mod json;
mod lexer;
mod literal;
mod methods;
mod number;
mod parser;
mod printable;
mod render;
mod scope;
mod tests;
mod value;

use std::sync::Arc;

use ast::Statement;
use scope::Frame;

/// Longest template, text or output, in bytes.
pub(crate) const MAX_BYTES: usize = 4 << 20;

fn too_long() -> String {
    format!("a text is longer than {MAX_BYTES} bytes")
}

/// A variable that a template sees.
#[derive(Debug, Clone)]
pub(crate) enum Variable {
    /// None
    None,
    /// A bool.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Variable>),
    /// A dictionary with its keys in order.
    Dict(Vec<(String, Variable)>),
}

/// A compiled template.
pub(crate) struct Template {
    statements: Vec<Statement>,
    frame: Arc<Frame>,
}

impl Template {
    /// Compiles a template, or says why it cannot be.
    pub(crate) fn new(source: &str) -> Result<Self, String> {
        if source.len() > MAX_BYTES {
            return Err(format!("it has {} bytes, more than {MAX_BYTES}", source.len()));
        }
        let mut statements = parser::parse(lexer::tokens(source)?)?;
        let frame = scope::resolve(&mut statements)?;
        Ok(Self { statements, frame })
    }

    /// Renders it with these variables, or says why it cannot be.
    pub(crate) fn render(&self, variables: &[(String, Variable)]) -> Result<String, String> {
        render::render(&self.statements, &self.frame, variables)
    }
}

#[cfg(test)]
mod cases;
