//! The JSON text of `commit.commitments`. A full window holds millions of `{"sketch": n}` objects, so the usual form is
//! written and scanned directly; everything else goes through `serde_json`.

use grail_protocol::python_json::{DEFAULT, to_string};
use grail_protocol::row::Commitments;
use serde_json::Value;

const OPEN: &[u8] = b"{\"sketch\": ";

/// The text in the network's spacing: `[{"sketch": 1}, {"sketch": 2}]`.
pub(super) fn to_text(commitments: &Commitments) -> Vec<u8> {
    match commitments {
        Commitments::Sketches(sketches) => sketches_to_text(sketches),
        Commitments::Other(value) => to_string(value, DEFAULT).into_bytes(),
    }
}

fn sketches_to_text(sketches: &[u32]) -> Vec<u8> {
    let mut text = Vec::with_capacity(2 + sketches.len() * (OPEN.len() + 13));
    text.push(b'[');
    for (index, sketch) in sketches.iter().enumerate() {
        if index > 0 {
            text.extend_from_slice(b", ");
        }
        text.extend_from_slice(OPEN);
        push_decimal(&mut text, *sketch);
        text.push(b'}');
    }
    text.push(b']');
    text
}

fn push_decimal(text: &mut Vec<u8>, mut number: u32) {
    let mut digits = [0_u8; 10];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[start..]);
}

/// Parses the text; an error is one of JSON's.
pub(super) fn from_text(text: &[u8]) -> Result<Commitments, serde_json::Error> {
    match (Scanner { rest: text }).sketches() {
        Some(sketches) => Ok(Commitments::Sketches(sketches)),
        None => serde_json::from_slice::<Value>(text).map(Commitments::from),
    }
}

/// Reads exactly a list of `{"sketch": n}` with any JSON spacing; `None` means "not in this form", never "wrong".
struct Scanner<'a> {
    rest: &'a [u8],
}

impl Scanner<'_> {
    fn sketches(mut self) -> Option<Vec<u32>> {
        let mut sketches = Vec::with_capacity(self.rest.len() / 24);
        self.token(b"[")?;
        loop {
            self.token(b"{")?;
            self.token(b"\"sketch\"")?;
            self.token(b":")?;
            sketches.push(self.number()?);
            self.token(b"}")?;
            if self.token(b",").is_none() {
                break;
            }
        }
        self.token(b"]")?;
        self.blanks();
        self.rest.is_empty().then_some(sketches)
    }

    fn blanks(&mut self) {
        let blanks = self.rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.rest = &self.rest[blanks..];
    }

    fn token(&mut self, token: &[u8]) -> Option<()> {
        self.blanks();
        self.rest = self.rest.strip_prefix(token)?;
        Some(())
    }

    fn number(&mut self) -> Option<u32> {
        self.blanks();
        let digits = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        // JSON forbids leading zeros; a fraction or exponent fails at the closing brace.
        if digits == 0 || digits > 10 || (digits > 1 && self.rest[0] == b'0') {
            return None;
        }
        let (number, rest) = self.rest.split_at(digits);
        self.rest = rest;
        let number = number.iter().fold(0_u64, |value, digit| value * 10 + u64::from(digit - b'0'));
        u32::try_from(number).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_usual_form_round_trips() {
        for sketches in [vec![], vec![0], vec![1, 10, u32::MAX, 2_147_483_646]] {
            let text = to_text(&Commitments::Sketches(sketches.clone()));
            assert_eq!(from_text(&text).unwrap(), Commitments::Sketches(sketches));
        }
        assert_eq!(to_text(&Commitments::Sketches(vec![1, 20])), br#"[{"sketch": 1}, {"sketch": 20}]"#);
    }

    #[test]
    fn spacing_is_free() {
        let text = b" [\n{\"sketch\":7} ,{ \"sketch\" : 8 }]\t";
        assert_eq!(from_text(text).unwrap(), Commitments::Sketches(vec![7, 8]));
    }

    #[test]
    fn other_json_is_kept_and_bad_json_refused() {
        assert_eq!(from_text(br#"[{"sketch": -1}]"#).unwrap(), Commitments::Other(json!([{"sketch": -1}])));
        assert_eq!(
            from_text(br#"[{"sketch": 4294967296}]"#).unwrap(),
            Commitments::Other(json!([{"sketch": 4_294_967_296_u64}]))
        );
        assert_eq!(from_text(br#"{"a": 1}"#).unwrap(), Commitments::Other(json!({"a": 1})));
        for bad in ["", "[", "[{\"sketch\": 01}]", "[{\"sketch\": 1},]", "[{\"sketch\": 1}] x", "nope"] {
            assert!(from_text(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
