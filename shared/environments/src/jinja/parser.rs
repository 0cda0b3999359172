//! From tokens to statements and expressions, as Jinja's own parser reads them.

use super::ast::{Body, Expression, For, Macro, Statement, Target};
use super::lexer::Token;

mod expression;

/// Deepest nesting of statements, and of loops. Python allows a hundred levels of indentation, and twenty loops.
const MAX_BLOCKS: usize = 40;
const MAX_LOOPS: usize = 18;
/// Deepest nesting of one expression, and its longest chain of operators. Jinja's own limit is the stack of Python.
const MAX_DEPTH: usize = 40;

pub(super) type Parsed<T> = Result<T, String>;

pub(super) struct Parser {
    tokens: Vec<Token>,
    at: usize,
    blocks: usize,
    depth: usize,
    /// Loops around the current statement, up to the function that they stand in.
    loops: usize,
}

/// Parses a whole template. The frames are not filled in yet.
pub(super) fn parse(tokens: Vec<Token>) -> Parsed<Vec<Statement>> {
    let mut parser = Parser { tokens, at: 0, blocks: 0, depth: 0, loops: 0 };
    let statements = parser.statements(&[])?;
    match parser.current() {
        Token::End => Ok(statements),
        other => Err(format!("unexpected {}", shown(other))),
    }
}

/// A token for an error message.
fn shown(token: &Token) -> String {
    match token {
        Token::Data(_) => "text".to_owned(),
        Token::VariableBegin => "`{{`".to_owned(),
        Token::VariableEnd => "`}}`".to_owned(),
        Token::BlockBegin => "`{%`".to_owned(),
        Token::BlockEnd => "`%}`".to_owned(),
        Token::Name(name) => format!("`{name}`"),
        Token::Str(_) => "a string".to_owned(),
        Token::Int(_) | Token::Float(_) => "a number".to_owned(),
        Token::Operator(operator) => format!("`{operator}`"),
        Token::End => "the end of the template".to_owned(),
    }
}

impl Parser {
    fn current(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn look(&self) -> &Token {
        self.tokens.get(self.at + 1).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.current().clone();
        self.at += 1;
        token
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.current(), Token::Name(found) if found == name)
    }

    fn is_operator(&self, operator: &str) -> bool {
        matches!(self.current(), Token::Operator(found) if *found == operator)
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, token: &Token) -> Parsed<()> {
        if self.current() == token {
            self.at += 1;
            return Ok(());
        }
        Err(format!("expected {}, got {}", shown(token), shown(self.current())))
    }

    fn expect_operator(&mut self, operator: &'static str) -> Parsed<()> {
        self.expect(&Token::Operator(operator))
    }

    fn expect_name(&mut self) -> Parsed<String> {
        match self.next() {
            Token::Name(name) => Ok(name),
            other => Err(format!("expected a name, got {}", shown(&other))),
        }
    }

    /// Statements up to one of the closing tags, whose name is the current token then; without any, to the end.
    fn statements(&mut self, closing: &[&str]) -> Parsed<Vec<Statement>> {
        let mut statements = Vec::new();
        loop {
            match self.next() {
                Token::Data(text) => statements.push(Statement::Text(text)),
                Token::VariableBegin => {
                    statements.push(Statement::Print(self.tuple(true, &[], false)?));
                    self.expect(&Token::VariableEnd)?;
                }
                Token::BlockBegin => {
                    if closing.iter().any(|name| self.is_name(name)) {
                        return Ok(statements);
                    }
                    self.blocks += 1;
                    if self.blocks > MAX_BLOCKS {
                        return Err(format!("blocks are nested more than {MAX_BLOCKS} deep"));
                    }
                    self.statement(&mut statements)?;
                    self.blocks -= 1;
                    self.expect(&Token::BlockEnd)?;
                }
                Token::End if closing.is_empty() => {
                    self.at -= 1;
                    return Ok(statements);
                }
                Token::End => return Err(format!("the template ends where `{}` is expected", closing.join("` or `"))),
                other => return Err(format!("unexpected {}", shown(&other))),
            }
        }
    }

    /// A tag's end, its statements, and the name of the closing tag, which is taken.
    fn body(&mut self, closing: &[&str]) -> Parsed<(Vec<Statement>, String)> {
        self.skip_operator(":");
        self.expect(&Token::BlockEnd)?;
        let statements = self.statements(closing)?;
        Ok((statements, self.expect_name()?))
    }

    fn scoped_body(&mut self, closing: &str) -> Parsed<Body> {
        Ok(Body::new(self.body(&[closing])?.0))
    }

    /// A body that Python compiles into a function of its own: no loop around it can be left from inside.
    fn function_body(&mut self, closing: &str) -> Parsed<Body> {
        let loops = std::mem::take(&mut self.loops);
        let body = self.scoped_body(closing)?;
        self.loops = loops;
        Ok(body)
    }

    fn statement(&mut self, statements: &mut Vec<Statement>) -> Parsed<()> {
        let Token::Name(tag) = self.next() else { return Err("a tag has no name".to_owned()) };
        let statement = match tag.as_str() {
            "for" => self.for_loop()?,
            "if" => self.condition()?,
            "set" => self.assignment()?,
            "macro" => {
                let name = self.expect_name()?;
                if is_constant(&name) {
                    return Err(format!("a macro cannot be named `{name}`"));
                }
                let (parameters, defaults) = self.signature()?;
                let body = self.function_body("endmacro")?;
                Statement::Macro(Macro::new(Some(name), parameters, defaults, body))
            }
            "call" => self.call_block()?,
            "generation" => {
                let body = self.function_body("endgeneration")?;
                Statement::Generation(Macro::new(None, Vec::new(), Vec::new(), body))
            }
            "filter" => {
                let filter = self.filter(None, true)?;
                Statement::FilterBlock(filter, self.scoped_body("endfilter")?)
            }
            "with" => self.with()?,
            "print" => return self.print(statements),
            "include" => self.include()?,
            "break" | "continue" if self.loops == 0 => return Err(format!("`{tag}` stands outside of a loop")),
            "break" => Statement::Break,
            "continue" => Statement::Continue,
            "block" | "extends" | "import" | "from" | "autoescape" => return Err(format!("the tag `{tag}` is not supported")),
            _ => return Err(format!("the tag `{tag}` is unknown")),
        };
        statements.push(statement);
        Ok(())
    }

    fn for_loop(&mut self) -> Parsed<Statement> {
        let target = self.target(&["in"], false)?;
        if target.stores("loop") {
            return Err("a loop assigns to `loop`".to_owned());
        }
        if !self.skip_name("in") {
            return Err(format!("expected `in`, got {}", shown(self.current())));
        }
        let iterable = self.tuple(false, &["recursive"], false)?;
        let test = if self.skip_name("if") { Some((self.expression()?, std::sync::Arc::default())) } else { None };
        let recursive = self.skip_name("recursive");
        let outer = self.loops;
        // A recursive loop is a function of its own in Python.
        self.loops = if recursive { 1 } else { outer + 1 };
        if self.loops > MAX_LOOPS {
            return Err(format!("loops are nested more than {MAX_LOOPS} deep"));
        }
        let (statements, closing) = self.body(&["endfor", "else"])?;
        self.loops = if recursive { 0 } else { outer };
        let otherwise = if closing == "else" { Some(self.scoped_body("endfor")?) } else { None };
        self.loops = outer;
        let body = Body::new(statements);
        Ok(Statement::For(std::sync::Arc::new(For { target, iterable, test, recursive, extended: recursive, body, otherwise })))
    }

    fn condition(&mut self) -> Parsed<Statement> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, &[], false)?;
            let (body, closing) = self.body(&["elif", "else", "endif"])?;
            branches.push((Some(test), body));
            match closing.as_str() {
                "elif" => continue,
                "else" => branches.push((None, self.body(&["endif"])?.0)),
                _ => {}
            }
            return Ok(Statement::If(branches));
        }
    }

    fn assignment(&mut self) -> Parsed<Statement> {
        let target = self.target(&[], true)?;
        if self.skip_operator("=") {
            return Ok(Statement::Set(target, self.tuple(true, &[], false)?));
        }
        let mut filter = None;
        while self.is_operator("|") {
            filter = Some(self.filter(filter.map(Box::new), false)?);
        }
        Ok(Statement::SetBlock { target, filter, body: self.scoped_body("endset")? })
    }

    fn call_block(&mut self) -> Parsed<Statement> {
        let (parameters, defaults) = if self.is_operator("(") { self.signature()? } else { (Vec::new(), Vec::new()) };
        let call = self.expression()?;
        if !matches!(call, Expression::Call(..)) {
            return Err("a `call` block without a call".to_owned());
        }
        let body = self.function_body("endcall")?;
        Ok(Statement::CallBlock(call, Macro::new(None, parameters, defaults, body)))
    }

    fn with(&mut self) -> Parsed<Statement> {
        let mut values = Vec::new();
        while *self.current() != Token::BlockEnd {
            if !values.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(&[], false)?;
            self.expect_operator("=")?;
            values.push((target, self.expression()?));
        }
        Ok(Statement::With(values, self.scoped_body("endwith")?))
    }

    fn print(&mut self, statements: &mut Vec<Statement>) -> Parsed<()> {
        let mut any = false;
        while *self.current() != Token::BlockEnd {
            if any {
                self.expect_operator(",")?;
            }
            any = true;
            statements.push(Statement::Print(self.expression()?));
        }
        Ok(())
    }

    /// There is no other template to include: that fails where it is executed, not where it only stands.
    fn include(&mut self) -> Parsed<Statement> {
        let template = self.expression()?;
        while *self.current() != Token::BlockEnd {
            match self.next() {
                Token::Name(word) if ["ignore", "missing", "with", "without", "context"].contains(&word.as_str()) => {}
                other => return Err(format!("unexpected {}", shown(&other))),
            }
        }
        Ok(Statement::Include(template))
    }

    fn signature(&mut self) -> Parsed<(Vec<String>, Vec<Expression>)> {
        let (mut parameters, mut defaults) = (Vec::new(), Vec::new());
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            let name = self.expect_name()?;
            // Python refuses a function whose parameter stands there twice.
            if parameters.contains(&name) || is_constant(&name) {
                return Err(format!("`{name}` cannot be a parameter here"));
            }
            if self.skip_operator("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return Err("a parameter without a default follows one with a default".to_owned());
            }
            parameters.push(name);
        }
        self.expect_operator(")")?;
        Ok((parameters, defaults))
    }

    /// What may be assigned to: names, tuples of them, and attributes of namespaces.
    fn target(&mut self, ends: &[&str], namespaces: bool) -> Parsed<Target> {
        let mut targets = Vec::new();
        let mut tuple = false;
        loop {
            if !targets.is_empty() {
                self.expect_operator(",")?;
            }
            if self.tuple_end(ends) {
                break;
            }
            targets.push(self.single_target(namespaces)?);
            if self.is_operator(",") {
                tuple = true;
            } else {
                break;
            }
        }
        match (tuple, targets.len()) {
            (false, 1) => Ok(targets.remove(0)),
            (false, _) => Err("expected a name to assign to".to_owned()),
            (true, _) => Ok(Target::Tuple(targets)),
        }
    }

    fn single_target(&mut self, namespaces: bool) -> Parsed<Target> {
        if self.skip_operator("(") {
            let target = self.target(&[], false)?;
            self.expect_operator(")")?;
            return Ok(target);
        }
        let name = self.expect_name()?;
        if is_constant(&name) {
            return Err(format!("`{name}` cannot be assigned to"));
        }
        if namespaces && self.skip_operator(".") {
            return Ok(Target::Attribute(name, self.expect_name()?));
        }
        Ok(Target::Name(name))
    }

    fn tuple_end(&self, ends: &[&str]) -> bool {
        matches!(self.current(), Token::VariableEnd | Token::BlockEnd | Token::Operator(")"))
            || ends.iter().any(|name| self.is_name(name))
    }
}

/// Names that are constants, in both spellings.
fn is_constant(name: &str) -> bool {
    matches!(name, "true" | "True" | "false" | "False" | "none" | "None")
}

impl Body {
    pub(super) fn new(statements: Vec<Statement>) -> Self {
        Self { statements, frame: std::sync::Arc::default() }
    }
}

impl Macro {
    fn new(name: Option<String>, parameters: Vec<String>, defaults: Vec<Expression>, body: Body) -> std::sync::Arc<Self> {
        let (takes_caller, takes_named, takes_rest) = (false, false, false);
        std::sync::Arc::new(Self { name, parameters, defaults, body, takes_caller, takes_named, takes_rest })
    }
}

impl Target {
    /// Whether a name is assigned to.
    pub(super) fn stores(&self, name: &str) -> bool {
        match self {
            Self::Name(found) => found == name,
            Self::Attribute(..) => false,
            Self::Tuple(targets) => targets.iter().any(|target| target.stores(name)),
        }
    }
}
