//! JSON in one form, whatever its text is like, and checksums over sets of rows. Floor 0.
//!
//! SQLite keeps JSON as the text that came, PostgreSQL in a form of its own: other orders of keys, spaces, `1e2` as `100`. Both
//! keep the value of each number to its last digit, so here a number is its decimal digits and an exponent.

use std::{borrow::Cow, fmt};

use sha2::{Digest, Sha256};

use super::JsonError;

/// Deeper than anything that is stored.
const MAX_DEPTH: usize = 256;

/// The same JSON without spaces and line breaks between its parts.
#[must_use]
pub fn compact(text: &str) -> Cow<'_, str> {
    let is_space = |byte: u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
    if !text.bytes().any(is_space) {
        return Cow::Borrowed(text);
    }
    let mut compact = String::with_capacity(text.len());
    let (mut is_in_text, mut is_escaped, mut start) = (false, false, 0);
    for (at, byte) in text.bytes().enumerate() {
        if is_in_text {
            is_in_text = byte != b'"' || is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
        } else if byte == b'"' {
            is_in_text = true;
        } else if is_space(byte) {
            compact.push_str(&text[start..at]);
            start = at + 1;
        }
    }
    compact.push_str(&text[start..]);
    Cow::Owned(compact)
}

/// Writes JSON in a form that is the same for every text of the same value.
///
/// # Errors
/// When it is no JSON.
pub fn write_canonical(text: &str, out: &mut Vec<u8>) -> Result<(), JsonError> {
    let mut reader = Reader { text, at: 0 };
    reader.value(out, 0)?;
    match reader.next() {
        None => Ok(()),
        Some(_) => Err(JsonError::NotJson),
    }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

/// A member of an object as it was written: where it begins, where its key ends, and where it ends.
struct Member {
    start: usize,
    value: usize,
    end: usize,
}

impl Reader<'_> {
    /// The next byte that is no space. It is not passed by.
    fn next(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let spaces = rest
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t'));
        self.at += spaces.count();
        self.text.as_bytes().get(self.at).copied()
    }

    fn value(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<(), JsonError> {
        if depth > MAX_DEPTH {
            return Err(JsonError::TooDeep);
        }
        match self.next() {
            Some(b'{') => self.object(out, depth),
            Some(b'[') => {
                out.push(b'[');
                self.at += 1;
                while self.next() != Some(b']') {
                    self.value(out, depth + 1)?;
                    self.separator(b']')?;
                }
                self.at += 1;
                out.push(b']');
                Ok(())
            }
            Some(b'"') => self.string(out),
            Some(b'-' | b'0'..=b'9') => self.number(out),
            Some(b'a'..=b'z') => {
                let rest = &self.text.as_bytes()[self.at..];
                let letters = rest.iter().take_while(|byte| byte.is_ascii_lowercase());
                let word = &rest[..letters.count()];
                if !matches!(word, b"true" | b"false" | b"null") {
                    return Err(JsonError::NotJson);
                }
                out.extend_from_slice(word);
                self.at += word.len();
                Ok(())
            }
            _ => Err(JsonError::NotJson),
        }
    }

    /// Passes a comma by; none is needed before the end.
    fn separator(&mut self, end: u8) -> Result<(), JsonError> {
        match self.next() {
            Some(b',') => {
                self.at += 1;
                Ok(())
            }
            Some(byte) if byte == end => Ok(()),
            _ => Err(JsonError::NotJson),
        }
    }

    /// Keys come by their length and then by their bytes, as PostgreSQL has them; of those that are the same, the last counts.
    fn object(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<(), JsonError> {
        out.push(b'{');
        self.at += 1;
        let start = out.len();
        let mut members: Vec<Member> = Vec::new();
        let mut is_sorted = true;
        while self.next() != Some(b'}') {
            let member = out.len();
            if self.next() != Some(b'"') {
                return Err(JsonError::NotJson);
            }
            self.string(out)?;
            let value = out.len();
            if self.next() != Some(b':') {
                return Err(JsonError::NotJson);
            }
            self.at += 1;
            self.value(out, depth + 1)?;
            self.separator(b'}')?;
            if let Some(last) = members.last() {
                is_sorted &= is_before(&out[last.start..last.value], &out[member..value]);
            }
            members.push(Member {
                start: member,
                value,
                end: out.len(),
            });
        }
        self.at += 1;
        if !is_sorted {
            let written = out.split_off(start);
            let key = |member: &Member| &written[member.start - start..member.value - start];
            members.sort_by(|left, right| {
                let (left, right) = (key(left), key(right));
                left.len().cmp(&right.len()).then(left.cmp(right))
            });
            for (index, member) in members.iter().enumerate() {
                let next = members.get(index + 1);
                if next.is_none_or(|next| key(next) != key(member)) {
                    out.extend_from_slice(&written[member.start - start..member.end - start]);
                }
            }
        }
        out.push(b'}');
        Ok(())
    }

    fn string(&mut self, out: &mut Vec<u8>) -> Result<(), JsonError> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let mut end = start;
        let mut has_escapes = false;
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => {
                    has_escapes = true;
                    end += 2;
                }
                Some(_) => end += 1,
                None => return Err(JsonError::NotJson),
            }
        }
        self.at = end + 1;
        out.push(b'"');
        if has_escapes {
            let text: String = serde_json::from_str(&self.text[start - 1..=end])
                .map_err(|_| JsonError::NotJson)?;
            put_bytes(out, text.as_bytes());
        } else {
            put_bytes(out, &bytes[start..end]);
        }
        Ok(())
    }

    fn number(&mut self, out: &mut Vec<u8>) -> Result<(), JsonError> {
        let rest = &self.text.as_bytes()[self.at..];
        let length = rest
            .iter()
            .take_while(|byte| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'))
            .count();
        let number = &self.text[self.at..self.at + length];
        self.at += length;
        let (is_negative, number) = match number.strip_prefix('-') {
            Some(number) => (true, number),
            None => (false, number),
        };
        let (mantissa, exponent) = match number.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => {
                (mantissa, exponent.parse().map_err(|_| JsonError::NotJson)?)
            }
            None => (number, 0_i64),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let start = out.len();
        out.push(if is_negative { b'-' } else { b'+' });
        let digits = whole.bytes().chain(fraction.bytes());
        out.extend(digits.skip_while(|digit| *digit == b'0'));
        let mut exponent = exponent - fraction.len() as i64;
        while out.len() > start + 1 && out.last() == Some(&b'0') {
            out.pop();
            exponent += 1;
        }
        if out.len() == start + 1 {
            out.truncate(start);
            out.push(b'0');
        } else {
            out.push(b'e');
            out.extend_from_slice(&exponent.to_le_bytes());
        }
        Ok(())
    }
}

/// Whether one key comes before another one: both as they were written, with their length first.
fn is_before(left: &[u8], right: &[u8]) -> bool {
    left.len().cmp(&right.len()).then(left.cmp(right)).is_lt()
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The fields of one row, one behind the other so that no two rows with different fields have the same bytes.
#[derive(Clone, Debug, Default)]
pub struct Fields(Vec<u8>);

impl Fields {
    /// Begins the next row.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds a text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        put_bytes(&mut self.0, text.as_bytes());
        self
    }

    /// Adds a text or none.
    pub fn optional_text(&mut self, text: Option<&str>) -> &mut Self {
        self.0.push(u8::from(text.is_some()));
        self.text(text.unwrap_or_default())
    }

    /// Adds a number.
    pub fn number(&mut self, number: i64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// Adds a number or none.
    pub fn optional_number(&mut self, number: Option<i64>) -> &mut Self {
        self.0.push(u8::from(number.is_some()));
        self.number(number.unwrap_or_default())
    }

    /// Adds a value of JSON.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn json(&mut self, text: &str) -> Result<&mut Self, JsonError> {
        write_canonical(text, &mut self.0)?;
        Ok(self)
    }
}

/// How many rows a set has, and the sum of their SHA-256, whatever order they come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum {
    count: u64,
    sum: [u64; 4],
}

impl Checksum {
    /// Adds a row.
    pub fn add(&mut self, row: &Fields) {
        let digest = Sha256::digest(&row.0);
        let mut sum = [0; 4];
        for (word, bytes) in sum.iter_mut().zip(digest.chunks_exact(8)) {
            *word = bytes
                .iter()
                .rev()
                .fold(0, |word, byte| (word << 8) | u64::from(*byte));
        }
        self.join(Self { count: 1, sum });
    }

    /// Adds the rows of another set.
    pub fn join(&mut self, other: Self) {
        self.count += other.count;
        let mut carry = 0;
        for (word, more) in self.sum.iter_mut().zip(other.sum) {
            let total = u128::from(*word) + u128::from(more) + carry;
            *word = total as u64;
            carry = total >> 64;
        }
    }

    /// How many rows there are.
    #[must_use]
    pub fn count(self) -> u64 {
        self.count
    }
}

/// The sum, in hexadecimal digits.
impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.sum;
        write!(f, "{d:016x}{c:016x}{b:016x}{a:016x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        write_canonical(text, &mut out).unwrap();
        out
    }

    #[test]
    fn texts_of_the_same_value_have_one_form() {
        for (left, right) in [
            (
                r#"{"b":1,"aa":[true,null],"a":"x"}"#,
                r#" { "a" : "x", "b": 1, "aa": [ true , null ] } "#,
            ),
            ("1e2", "100"),
            ("1.50", "15e-1"),
            ("-0.0", "0"),
            ("1.2345678901234567e19", "12345678901234567000"),
            (r#""\u00e9\n\/""#, r#""é\u000a/""#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"a\"":1,"b":{}}"#, r#"{"b":{},"a\u0022":1}"#),
        ] {
            assert_eq!(canonical(left), canonical(right), "{left} {right}");
        }
    }

    #[test]
    fn texts_of_other_values_have_other_forms() {
        for (left, right) in [
            ("9007199254740993", "9007199254740992"),
            ("[1,2]", "[2,1]"),
            ("[1,2]", "[12]"),
            ("1", "-1"),
            ("10", "1"),
            (r#""1""#, "1"),
            (r#"{"a":null}"#, "{}"),
            (r#"["a","b"]"#, r#"["a\",\"b"]"#),
        ] {
            assert_ne!(canonical(left), canonical(right), "{left} {right}");
        }
        for text in ["", "{", "[1", "nul", "1 2", r#"{"a"}"#, r#""a"#, "[1 2]"] {
            let mut out = Vec::new();
            assert!(write_canonical(text, &mut out).is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_is_between_the_parts_is_left_out() {
        assert_eq!(
            compact("{ \"a b\": \"c \\\" d\",\n\t\"e\": [1, 2] }"),
            r#"{"a b":"c \" d","e":[1,2]}"#
        );
        assert!(matches!(compact("[1]"), Cow::Borrowed("[1]")));
    }

    #[test]
    fn a_checksum_is_of_the_set_whatever_its_order() {
        let sum = |rows: &[&str]| {
            let mut sum = Checksum::default();
            for row in rows {
                let mut fields = Fields::default();
                fields.text(row);
                sum.add(&fields);
            }
            sum
        };
        assert_eq!(sum(&["a", "b", "c"]), sum(&["c", "a", "b"]));
        assert_ne!(sum(&["a", "b"]), sum(&["a", "c"]));
        assert_ne!(sum(&["a", "b"]), sum(&["a", "b", "b"]));
        let mut joined = sum(&["a"]);
        joined.join(sum(&["b"]));
        assert_eq!(joined, sum(&["a", "b"]));
        assert_eq!(joined.count(), 2);
    }
}
