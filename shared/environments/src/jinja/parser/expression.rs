//! Expressions, by Jinja's order of precedence.

use super::super::ast::{Arguments, Binary, Comparison, Constant, Expression, Unary};
use super::super::lexer::Token;
use super::{MAX_DEPTH, Parsed, Parser, shown};

impl Parser {
    /// An expression, or several with commas as a tuple.
    pub(super) fn tuple(&mut self, conditions: bool, ends: &[&str], parentheses: bool) -> Parsed<Expression> {
        let mut items = Vec::new();
        let mut tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if self.tuple_end(ends) {
                break;
            }
            items.push(if conditions { self.expression()? } else { self.or()? });
            if self.is_operator(",") {
                tuple = true;
            } else {
                break;
            }
        }
        match (tuple, items.len()) {
            (false, 1) => Ok(items.remove(0)),
            (false, _) if !parentheses => Err(format!("expected an expression, got {}", shown(self.current()))),
            _ => Ok(Expression::Tuple(items)),
        }
    }

    pub(super) fn expression(&mut self) -> Parsed<Expression> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("an expression is nested more than {MAX_DEPTH} deep"));
        }
        let mut chain = 0;
        let mut expression = self.or()?;
        while self.skip_name("if") {
            limit(&mut chain)?;
            let test = Box::new(self.or()?);
            let otherwise = if self.skip_name("else") { Some(Box::new(self.expression()?)) } else { None };
            expression = Expression::Condition { test, then: Box::new(expression), otherwise };
        }
        self.depth -= 1;
        Ok(expression)
    }

    fn or(&mut self) -> Parsed<Expression> {
        let mut chain = 0;
        let mut left = self.and()?;
        while self.skip_name("or") {
            limit(&mut chain)?;
            left = Expression::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expression> {
        let mut chain = 0;
        let mut left = self.not()?;
        while self.skip_name("and") {
            limit(&mut chain)?;
            left = Expression::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed<Expression> {
        if !self.skip_name("not") {
            return self.comparison();
        }
        self.deeper(|parser| Ok(Expression::Unary(Unary::Not, Box::new(parser.not()?))))
    }

    /// Runs a rule that calls itself, within the limit of depth.
    fn deeper(&mut self, rule: impl FnOnce(&mut Self) -> Parsed<Expression>) -> Parsed<Expression> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("an expression is nested more than {MAX_DEPTH} deep"));
        }
        let expression = rule(self);
        self.depth -= 1;
        expression
    }

    fn comparison(&mut self) -> Parsed<Expression> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(comparison) = self.comparison_operator() {
            rest.push((comparison, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expression::Compare(Box::new(first), rest) })
    }

    fn comparison_operator(&mut self) -> Option<Comparison> {
        let comparison = match self.current() {
            Token::Operator("==") => Comparison::Equal,
            Token::Operator("!=") => Comparison::NotEqual,
            Token::Operator("<") => Comparison::Less,
            Token::Operator("<=") => Comparison::LessOrEqual,
            Token::Operator(">") => Comparison::Greater,
            Token::Operator(">=") => Comparison::GreaterOrEqual,
            Token::Name(name) if name == "in" => Comparison::In,
            Token::Name(name) if name == "not" && matches!(self.look(), Token::Name(next) if next == "in") => {
                self.at += 1;
                Comparison::NotIn
            }
            _ => return None,
        };
        self.at += 1;
        Some(comparison)
    }

    fn sum(&mut self) -> Parsed<Expression> {
        self.binary(&[("+", Binary::Add), ("-", Binary::Subtract)], Self::concat)
    }

    fn binary(&mut self, operators: &[(&str, Binary)], operand: fn(&mut Self) -> Parsed<Expression>) -> Parsed<Expression> {
        let mut chain = 0;
        let mut left = operand(self)?;
        while let Some((_, operator)) = operators.iter().find(|(operator, _)| self.is_operator(operator)) {
            limit(&mut chain)?;
            self.at += 1;
            left = Expression::Binary(*operator, Box::new(left), Box::new(operand(self)?));
        }
        Ok(left)
    }

    fn concat(&mut self) -> Parsed<Expression> {
        let mut parts = vec![self.product()?];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expression::Concat(parts) })
    }

    fn product(&mut self) -> Parsed<Expression> {
        let operators = [("*", Binary::Multiply), ("/", Binary::Divide), ("//", Binary::FloorDivide), ("%", Binary::Modulo)];
        self.binary(&operators, Self::power)
    }

    /// Grouped to the left, other than Python's own.
    fn power(&mut self) -> Parsed<Expression> {
        self.binary(&[("**", Binary::Power)], |parser| parser.unary(true))
    }

    fn unary(&mut self, filters: bool) -> Parsed<Expression> {
        let operator = match self.current() {
            Token::Operator("-") => Some(Unary::Negative),
            Token::Operator("+") => Some(Unary::Positive),
            _ => None,
        };
        let expression = match operator {
            Some(operator) => {
                self.at += 1;
                self.deeper(|parser| Ok(Expression::Unary(operator, Box::new(parser.unary(false)?))))?
            }
            None => self.primary()?,
        };
        let expression = self.postfix(expression)?;
        if filters { self.filters(expression) } else { Ok(expression) }
    }

    fn primary(&mut self) -> Parsed<Expression> {
        match self.next() {
            Token::Name(name) => Ok(match name.as_str() {
                "true" | "True" => Expression::Constant(Constant::Bool(true)),
                "false" | "False" => Expression::Constant(Constant::Bool(false)),
                "none" | "None" => Expression::Constant(Constant::None),
                _ => Expression::Name(name),
            }),
            Token::Str(mut text) => {
                while let Token::Str(more) = self.current() {
                    text.push_str(more);
                    self.at += 1;
                }
                Ok(Expression::Constant(Constant::Str(text)))
            }
            Token::Int(value) => Ok(Expression::Constant(Constant::Int(value))),
            Token::Float(value) => Ok(Expression::Constant(Constant::Float(value))),
            Token::Operator("(") => {
                let inner = self.deeper(|parser| parser.tuple(true, &[], true))?;
                self.expect_operator(")")?;
                Ok(inner)
            }
            Token::Operator("[") => Ok(Expression::List(self.items("]")?)),
            Token::Operator("{") => self.dict(),
            other => Err(format!("unexpected {}", shown(&other))),
        }
    }

    fn items(&mut self, closing: &'static str) -> Parsed<Vec<Expression>> {
        let mut items = Vec::new();
        while !self.is_operator(closing) {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_operator(closing) {
                break;
            }
            items.push(self.expression()?);
        }
        self.expect_operator(closing)?;
        Ok(items)
    }

    fn dict(&mut self) -> Parsed<Expression> {
        let mut pairs = Vec::new();
        while !self.is_operator("}") {
            if !pairs.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_operator("}") {
                break;
            }
            let key = self.expression()?;
            self.expect_operator(":")?;
            pairs.push((key, self.expression()?));
        }
        self.expect_operator("}")?;
        Ok(Expression::Dict(pairs))
    }

    fn postfix(&mut self, mut expression: Expression) -> Parsed<Expression> {
        let mut chain = 0;
        loop {
            expression = match self.current() {
                Token::Operator(".") => self.attribute(expression)?,
                Token::Operator("[") => self.subscript(expression)?,
                Token::Operator("(") => Expression::Call(Box::new(expression), self.arguments()?),
                _ => return Ok(expression),
            };
            limit(&mut chain)?;
        }
    }

    fn filters(&mut self, mut expression: Expression) -> Parsed<Expression> {
        let mut chain = 0;
        loop {
            expression = match self.current() {
                Token::Operator("|") => self.filter(Some(Box::new(expression)), false)?,
                Token::Name(name) if name == "is" => self.test(expression)?,
                Token::Operator("(") => Expression::Call(Box::new(expression), self.arguments()?),
                _ => return Ok(expression),
            };
            limit(&mut chain)?;
        }
    }

    fn attribute(&mut self, of: Expression) -> Parsed<Expression> {
        self.expect_operator(".")?;
        match self.next() {
            Token::Name(name) => Ok(Expression::Attribute(Box::new(of), name)),
            Token::Int(index) => Ok(Expression::Item(Box::new(of), Box::new(Expression::Constant(Constant::Int(index))))),
            other => Err(format!("expected a name or number, got {}", shown(&other))),
        }
    }

    fn subscript(&mut self, of: Expression) -> Parsed<Expression> {
        self.expect_operator("[")?;
        let first = self.subscripted(of)?;
        if self.is_operator(",") {
            return Err("a subscript with a comma is not supported".to_owned());
        }
        self.expect_operator("]")?;
        Ok(first)
    }

    fn subscripted(&mut self, of: Expression) -> Parsed<Expression> {
        let mut parts: [Option<Expression>; 3] = [None, None, None];
        if !self.is_operator(":") {
            let index = self.expression()?;
            if !self.is_operator(":") {
                return Ok(Expression::Item(Box::new(of), Box::new(index)));
            }
            parts[0] = Some(index);
        }
        for part in &mut parts[1..] {
            if !self.skip_operator(":") {
                break;
            }
            if ![":", "]", ","].iter().any(|operator| self.is_operator(operator)) {
                *part = Some(self.expression()?);
            }
        }
        Ok(Expression::Slice(Box::new(of), Box::new(parts)))
    }

    pub(super) fn arguments(&mut self) -> Parsed<Arguments> {
        self.expect_operator("(")?;
        let mut arguments = Arguments::default();
        let mut comma = false;
        while !self.is_operator(")") {
            if comma {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            comma = true;
            self.argument(&mut arguments)?;
        }
        self.expect_operator(")")?;
        Ok(arguments)
    }

    fn argument(&mut self, arguments: &mut Arguments) -> Parsed<()> {
        let before = arguments.rest.is_none() && arguments.named_rest.is_none();
        let named = matches!(self.current(), Token::Name(_)) && matches!(self.look(), Token::Operator("="));
        let allowed = if self.is_operator("*") {
            before
        } else if named || self.is_operator("**") {
            arguments.named_rest.is_none()
        } else {
            before && arguments.named.is_empty()
        };
        if !allowed {
            return Err("the arguments of a call are in a wrong order".to_owned());
        }
        if self.skip_operator("*") {
            arguments.rest = Some(Box::new(self.expression()?));
        } else if self.skip_operator("**") {
            arguments.named_rest = Some(Box::new(self.expression()?));
        } else if named {
            let name = self.expect_name()?;
            self.expect_operator("=")?;
            // Python refuses a call that names an argument twice.
            if arguments.named.iter().any(|(known, _)| *known == name) {
                return Err(format!("the argument `{name}` stands there twice"));
            }
            arguments.named.push((name, self.expression()?));
        } else {
            arguments.positional.push(self.expression()?);
        }
        Ok(())
    }

    fn dotted_name(&mut self) -> Parsed<String> {
        let mut name = self.expect_name()?;
        while self.skip_operator(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name)
    }

    /// One filter; `inline` where the bar before it is left out.
    pub(super) fn filter(&mut self, of: Option<Box<Expression>>, inline: bool) -> Parsed<Expression> {
        let mut of = of;
        let mut bare = inline;
        let mut chain = 0;
        loop {
            if !bare {
                self.expect_operator("|")?;
            }
            bare = false;
            let name = self.dotted_name()?;
            let arguments = if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
            let filter = Expression::Filter(of, name, arguments);
            limit(&mut chain)?;
            if !self.is_operator("|") {
                return Ok(filter);
            }
            of = Some(Box::new(filter));
        }
    }

    fn test(&mut self, of: Expression) -> Parsed<Expression> {
        self.at += 1;
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let mut arguments = Arguments::default();
        let ends = ["else", "or", "and"].iter().any(|word| self.is_name(word));
        match self.current() {
            Token::Operator("(") => arguments = self.arguments()?,
            Token::Name(next) if next == "is" => return Err("tests with `is` cannot be chained".to_owned()),
            Token::Name(_) | Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Operator("[" | "{") if !ends => {
                let argument = self.primary()?;
                arguments.positional.push(self.postfix(argument)?);
            }
            _ => {}
        }
        let test = Expression::Test(Box::new(of), name, arguments);
        Ok(if negated { Expression::Unary(Unary::Not, Box::new(test)) } else { test })
    }
}

/// Counts one more link of a chain; each is a level of the tree.
fn limit(chain: &mut usize) -> Parsed<()> {
    *chain += 1;
    if *chain > MAX_DEPTH { Err(format!("an expression has more than {MAX_DEPTH} operators in a row")) } else { Ok(()) }
}
