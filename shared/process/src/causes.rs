//! An error with its causes in one line.

use std::error::Error;

/// The error's text, followed by those of its causes which it does not have in it already: many errors of this house and of
/// others tell their cause themselves and name it as their source as well.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        source = error.source();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Told {
        #[error("the file cannot be read: {0}; fetch it again")]
        WithCause(#[source] std::io::Error),
        #[error("the file cannot be read")]
        Without(#[source] std::io::Error),
        #[error("nothing can be done")]
        Above(#[source] Box<Told>),
    }

    fn missing() -> std::io::Error {
        std::io::Error::from_raw_os_error(2)
    }

    #[test]
    fn every_cause_is_told_once() {
        let io = "No such file or directory (os error 2)";
        let cannot = "the file cannot be read";
        assert_eq!(with_causes(&Told::WithCause(missing())), format!("{cannot}: {io}; fetch it again"));
        assert_eq!(with_causes(&Told::Without(missing())), format!("{cannot}: {io}"));
        let above = Told::Above(Box::new(Told::WithCause(missing())));
        assert_eq!(with_causes(&above), format!("nothing can be done: {cannot}: {io}; fetch it again"));
        let above = Told::Above(Box::new(Told::Without(missing())));
        assert_eq!(with_causes(&above), format!("nothing can be done: {cannot}: {io}"));
    }
}
