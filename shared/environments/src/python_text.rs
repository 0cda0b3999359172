//! Python's notions of white space, decimal digits and lines, where they differ from Rust's.
//!
//! The protocol's parsing rules were defined by running Python 3.11 (Unicode 14), so a completion with an unusual
//! character must be read the way Python reads it, or two sides disagree about a reward.

/// First characters of the runs of ten decimal digits (category Nd) of Unicode 14, ascending.
const DIGIT_RUNS: [u32; 61] = [
    0x30, 0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6, 0xE50, 0xED0, 0xF20, 0x1040,
    0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0,
    0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650,
    0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x16A60, 0x16AC0, 0x16B50, 0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0,
];

/// The mathematical digits are five runs of ten in a row.
const MATHEMATICAL_DIGITS: std::ops::RangeInclusive<u32> = 0x1D7CE..=0x1D7FF;

/// The value of a decimal digit in any script: what `\d` matches in Python's `re`.
pub fn decimal_digit(character: char) -> Option<u32> {
    let code = u32::from(character);
    if MATHEMATICAL_DIGITS.contains(&code) {
        return Some((code - MATHEMATICAL_DIGITS.start()) % 10);
    }
    let run = DIGIT_RUNS.partition_point(|&first| first <= code).checked_sub(1)?;
    let value = code - DIGIT_RUNS[run];
    (value < 10).then_some(value)
}

/// Whether `character` is a decimal digit in any script.
pub fn is_decimal(character: char) -> bool {
    decimal_digit(character).is_some()
}

/// Whether Python's `str.isspace` and `\s` hold: Unicode white space and the four ASCII separators U+001C to U+001F.
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// Python's `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `str.splitlines()`, except that a CR LF pair gives one more, empty line.
///
/// Callers look for non-blank lines only, so the difference cannot be seen.
pub fn lines(text: &str) -> impl DoubleEndedIterator<Item = &str> {
    text.split(|character: char| matches!(character, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_every_script_have_their_value() {
        for (digit, value) in [('0', 0), ('9', 9), ('٤', 4), ('４', 4), ('𝟘', 0), ('𝟿', 9), ('𞥙', 9)] {
            assert_eq!(decimal_digit(digit), Some(value), "{digit}");
        }
        for other in ['/', ':', '²', '½', 'Ⅷ', '一', '\0', '\u{10FFFF}'] {
            assert_eq!(decimal_digit(other), None, "{other}");
        }
        // Kawi digits came with Unicode 15: Python 3.11 does not know them.
        assert_eq!(decimal_digit('\u{11F50}'), None);
        let all = (0..=0x10FFFF).filter_map(char::from_u32).filter(|&character| is_decimal(character)).count();
        assert_eq!(all, 61 * 10 + 50);
    }

    #[test]
    fn white_space_is_pythons() {
        assert_eq!(strip("\u{1f}\u{a0} x \u{3000}\u{1c}"), "x");
        assert_eq!(strip("\u{200b}x"), "\u{200b}x");
        assert_eq!((0..=0x10FFFF).filter_map(char::from_u32).filter(|&character| is_space(character)).count(), 29);
    }

    #[test]
    fn lines_end_at_pythons_line_boundaries() {
        assert_eq!(lines("a\nb\u{b}c\u{1d}d\u{2028}e\u{1f}f").collect::<Vec<_>>(), ["a", "b", "c", "d", "e\u{1f}f"]);
    }
}
