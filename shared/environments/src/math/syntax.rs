//! The grammar of a Python expression, as far as it is covered, over tokens.
//!
//! A syntax error is one wherever the text that was read can be the beginning of no expression at all; what comes behind
//! does not matter then.

use super::Stop;
use super::names::{self, Name};
use super::tokens::Token;

/// Deepest nesting. Python has a limit too, further up.
const MAX_DEPTH: usize = 50;
/// Most tokens of an expression that is looked at. Python refuses sums of some thousands.
const MAX_NODES: usize = 600;

/// Where a node stands in its [`Tree`].
pub(super) type Place = usize;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node<'a> {
    Number(&'a str),
    Name(&'a str),
    /// A string, a tuple, a list, a set, `...`: what has no difference that is a number.
    Object(Vec<Place>),
    Unary(&'static str, Place),
    Binary(&'static str, Place, Place),
    /// `<` and its like.
    Order(Vec<Place>),
    /// A call by name.
    Call(&'a str, Vec<Place>),
    /// A call of what is no name.
    CallOf(Place, Vec<Place>),
    Subscript(Place, Vec<Place>),
    /// `!`, or `!!` where it holds.
    Factorial(Place, bool),
}

/// An expression; a node's children stand before it, the root is the last one.
#[derive(Debug, Default)]
pub(super) struct Tree<'a> {
    pub(super) nodes: Vec<Node<'a>>,
}

/// How tightly operators bind, from loose to tight.
fn strength(operator: &str) -> Option<u8> {
    Some(match operator {
        "|" => 1,
        "^" => 2,
        "&" => 3,
        "<<" | ">>" => 4,
        "+" | "-" => 5,
        "*" | "/" | "//" | "%" | "@" => 6,
        _ => return None,
    })
}

pub(super) fn parse<'a>(tokens: &[Token<'a>]) -> Result<Tree<'a>, Stop> {
    let mut parser = Parser { tokens, at: 0, depth: 0, tree: Tree::default() };
    match parser.listed(|token| token.is_none())? {
        (elements, false) if elements.len() == 1 => {}
        (elements, _) => drop(parser.push(Node::Object(elements))?),
    }
    if parser.at < tokens.len() { Err(Stop::Fails) } else { Ok(parser.tree) }
}

struct Parser<'a, 'b> {
    tokens: &'b [Token<'a>],
    at: usize,
    depth: usize,
    tree: Tree<'a>,
}

/// Which trailer of an operand was read last: `!` depends on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Atom,
    KnownCall,
    Other,
}

impl<'a> Parser<'a, '_> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn next_is(&mut self, operator: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Operator(found)) if found == operator);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, operator: &str) -> Result<(), Stop> {
        if self.next_is(operator) { Ok(()) } else { Err(self.unexpected()) }
    }

    /// What an unexpected token means: another construct of Python's that is not covered, or none.
    fn unexpected(&self) -> Stop {
        match self.peek() {
            Some(Token::Name("and" | "or" | "not" | "in" | "is" | "if" | "for" | "async")) if self.at + 1 < self.tokens.len() => {
                Stop::NotCovered
            }
            Some(Token::Operator("==" | "!=")) if self.at + 1 < self.tokens.len() => Stop::NotCovered,
            Some(Token::Operator(":" | "=" | ":=")) if self.depth > 0 => Stop::NotCovered,
            Some(Token::Operator(":=")) => Stop::NotCovered,
            _ => Stop::Fails,
        }
    }

    fn push(&mut self, node: Node<'a>) -> Result<Place, Stop> {
        self.tree.nodes.push(node);
        Ok(self.tree.nodes.len() - 1)
    }

    /// Expressions between commas up to what `ends`, and whether a comma stood there.
    fn listed(&mut self, ends: impl Fn(Option<Token<'a>>) -> bool) -> Result<(Vec<Place>, bool), Stop> {
        let mut elements = vec![self.expression()?];
        let mut comma = false;
        while self.next_is(",") {
            comma = true;
            if ends(self.peek()) {
                break;
            }
            elements.push(self.expression()?);
        }
        if ends(self.peek()) { Ok((elements, comma)) } else { Err(self.unexpected()) }
    }

    fn expression(&mut self) -> Result<Place, Stop> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Stop::NotCovered);
        }
        let first = self.binary(1)?;
        let mut compared = vec![first];
        while let Some(Token::Operator("<" | ">" | "<=" | ">=")) = self.peek() {
            self.at += 1;
            compared.push(self.binary(1)?);
        }
        self.depth -= 1;
        if let Some(Token::Operator("==" | "!=")) = self.peek() {
            return Err(self.unexpected());
        }
        if compared.len() == 1 { Ok(first) } else { self.push(Node::Order(compared)) }
    }

    fn binary(&mut self, least: u8) -> Result<Place, Stop> {
        let mut left = self.factor()?;
        while let Some(Token::Operator(operator)) = self.peek() {
            let Some(strength) = strength(operator).filter(|strength| *strength >= least) else { break };
            self.at += 1;
            let right = self.binary(strength + 1)?;
            left = self.push(Node::Binary(operator, left, right))?;
        }
        Ok(left)
    }

    fn factor(&mut self) -> Result<Place, Stop> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Stop::NotCovered);
        }
        let found = match self.peek() {
            Some(Token::Operator(operator @ ("+" | "-" | "~"))) => {
                self.at += 1;
                let operand = self.factor()?;
                self.push(Node::Unary(operator, operand))
            }
            _ => self.power(),
        };
        self.depth -= 1;
        found
    }

    fn power(&mut self) -> Result<Place, Stop> {
        let base = self.primary()?;
        if !self.next_is("**") {
            return Ok(base);
        }
        let exponent = self.factor()?;
        self.push(Node::Binary("**", base, exponent))
    }

    fn primary(&mut self) -> Result<Place, Stop> {
        let (mut operand, mut last) = self.atom()?;
        loop {
            match self.peek() {
                Some(Token::Factorial(marks)) => {
                    // sympy wraps tokens: behind a call of an unknown name, or a bracket, it wraps too few of them.
                    if last == Last::Other {
                        return Err(Stop::Fails);
                    }
                    self.at += 1;
                    (operand, last) = (self.push(Node::Factorial(operand, marks == 2))?, Last::KnownCall);
                }
                Some(Token::Operator("(")) => {
                    self.at += 1;
                    let arguments = self.enclosed(")")?.0;
                    (operand, last) = match self.tree.nodes[operand] {
                        Node::Name(name) if last == Last::Atom => {
                            let known = !matches!(names::look_up(name), Name::Free);
                            (self.push(Node::Call(name, arguments))?, if known { Last::KnownCall } else { Last::Other })
                        }
                        _ => (self.push(Node::CallOf(operand, arguments))?, Last::Other),
                    };
                }
                Some(Token::Operator("[")) => {
                    self.at += 1;
                    let inside = self.enclosed("]")?.0;
                    if inside.is_empty() {
                        return Err(Stop::Fails);
                    }
                    (operand, last) = (self.push(Node::Subscript(operand, inside))?, Last::Other);
                }
                Some(Token::Operator(".")) => {
                    let name = matches!(self.tokens.get(self.at + 1), Some(Token::Name(_)));
                    let repeated = matches!(self.tokens.get(self.at + 1), Some(Token::Operator("[")));
                    return Err(if name || repeated { Stop::NotCovered } else { Stop::Fails });
                }
                _ => return Ok(operand),
            }
        }
    }

    fn atom(&mut self) -> Result<(Place, Last), Stop> {
        if self.tree.nodes.len() > MAX_NODES {
            return Err(Stop::NotCovered);
        }
        let token = self.peek().ok_or(Stop::Fails)?;
        self.at += 1;
        match token {
            Token::Number(text) => {
                // `0.2[1]` is a repeating decimal.
                if text.contains('.') && matches!(self.peek(), Some(Token::Operator("["))) {
                    return Err(Stop::NotCovered);
                }
                Ok((self.push(Node::Number(text))?, Last::Atom))
            }
            Token::Name("not" | "lambda" | "await" | "yield") if self.at < self.tokens.len() => Err(Stop::NotCovered),
            Token::Name(name) if names::is_keyword(name) => Err(Stop::Fails),
            Token::Name(name) => Ok((self.push(Node::Name(name))?, Last::Atom)),
            Token::Text => {
                while self.peek() == Some(Token::Text) {
                    self.at += 1;
                }
                self.no_factorial()?;
                Ok((self.push(Node::Object(Vec::new()))?, Last::Other))
            }
            Token::Operator("...") => Ok((self.push(Node::Object(Vec::new()))?, Last::Other)),
            Token::Operator("(") => {
                let (elements, comma) = self.enclosed(")")?;
                match elements[..] {
                    [single] if !comma => Ok((single, self.parenthesised(single))),
                    _ => {
                        self.no_factorial()?;
                        Ok((self.push(Node::Object(elements))?, Last::Other))
                    }
                }
            }
            Token::Operator(open @ ("[" | "{")) => {
                let elements = self.enclosed(if open == "[" { "]" } else { "}" })?.0;
                Ok((self.push(Node::Object(elements))?, Last::Other))
            }
            Token::Operator("*" | "**") if self.depth > 2 => Err(Stop::NotCovered),
            Token::Operator(".") if matches!(self.peek(), Some(Token::Operator("["))) => Err(Stop::NotCovered),
            _ => Err(Stop::Fails),
        }
    }

    /// The factorial of a string is that of what it holds, and of a tuple who knows what.
    fn no_factorial(&self) -> Result<(), Stop> {
        if matches!(self.peek(), Some(Token::Factorial(_))) { Err(Stop::NotCovered) } else { Ok(()) }
    }

    /// A name in parentheses is called like any other expression.
    fn parenthesised(&self, place: Place) -> Last {
        if matches!(self.tree.nodes[place], Node::Name(_)) { Last::KnownCall } else { Last::Atom }
    }

    /// What stands before a closing bracket, its opening one read.
    fn enclosed(&mut self, close: &'static str) -> Result<(Vec<Place>, bool), Stop> {
        self.depth += 1;
        let inside = if matches!(self.peek(), Some(Token::Operator(found)) if found == close) {
            (Vec::new(), false)
        } else {
            self.listed(|token| matches!(token, Some(Token::Operator(found)) if found == close) || token.is_none())?
        };
        self.depth -= 1;
        self.expect(close)?;
        Ok(inside)
    }
}
