//! JSON in one spelling: keys sorted and once each, numbers without their notation, no white space.

/// Writes the value behind `text` in canonical form; `None` when it is not JSON or too deep to be read here.
pub(super) fn canonical(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut reader = Reader { text, at: 0 };
    reader.value(out, 0)?;
    reader.space();
    (reader.at == text.len()).then_some(())
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek() == Some(byte)).then(|| self.at += 1)
    }

    fn value(&mut self, out: &mut Vec<u8>, depth: usize) -> Option<()> {
        if depth > MOST_NESTED {
            return None;
        }
        self.space();
        match self.peek()? {
            b'{' => self.object(out, depth),
            b'[' => self.array(out, depth),
            b'"' => self.string(out),
            b't' => self.word("true", out),
            b'f' => self.word("false", out),
            b'n' => self.word("null", out),
            b'-' | b'0'..=b'9' => self.number(out),
            _ => None,
        }
    }

    fn word(&mut self, word: &str, out: &mut Vec<u8>) -> Option<()> {
        self.text[self.at..].starts_with(word.as_bytes()).then(|| {
            self.at += word.len();
            out.push(word.as_bytes()[0]);
        })
    }

    fn array(&mut self, out: &mut Vec<u8>, depth: usize) -> Option<()> {
        self.take(b'[')?;
        out.push(b'[');
        self.space();
        if self.take(b']').is_none() {
            loop {
                self.value(out, depth + 1)?;
                self.space();
                if self.take(b',').is_none() {
                    self.take(b']')?;
                    break;
                }
            }
        }
        out.push(b']');
        Some(())
    }

    fn object(&mut self, out: &mut Vec<u8>, depth: usize) -> Option<()> {
        self.take(b'{')?;
        let mut members: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        self.space();
        if self.take(b'}').is_none() {
            loop {
                let (mut key, mut value) = (Vec::new(), Vec::new());
                self.space();
                self.string(&mut key)?;
                self.space();
                self.take(b':')?;
                self.value(&mut value, depth + 1)?;
                members.push((key, value));
                self.space();
                if self.take(b',').is_none() {
                    self.take(b'}')?;
                    break;
                }
            }
        }
        members.reverse(); // of equal keys the last comes first
        members.sort_by(|a, b| a.0.cmp(&b.0));
        members.dedup_by(|later, kept| later.0 == kept.0);
        out.push(b'{');
        for (key, value) in members {
            out.extend(key);
            out.extend(value);
        }
        out.push(b'}');
        Some(())
    }

    /// `"`, the length, and the text without escapes.
    fn string(&mut self, out: &mut Vec<u8>) -> Option<()> {
        self.take(b'"')?;
        out.push(b'"');
        let length_at = out.len();
        out.extend([0; 4]);
        loop {
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => self.escape(out)?,
                _ => out.push(byte),
            }
        }
        let length = u32::try_from(out.len() - length_at - 4).ok()?;
        out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
        Some(())
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Option<()> {
        let byte = self.peek()?;
        self.at += 1;
        out.push(match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut code = self.hex()?;
                if (0xd800..0xdc00).contains(&code) && self.text[self.at..].starts_with(b"\\u") {
                    self.at += 2;
                    let low = self.hex()?.checked_sub(0xdc00)?;
                    code = 0x1_0000 + ((code - 0xd800) << 10) + low;
                }
                let character = char::from_u32(code)?;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Some(());
            }
            _ => return None,
        });
        Some(())
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = std::str::from_utf8(self.text.get(self.at..self.at + 4)?).ok()?;
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }

    fn number(&mut self, out: &mut Vec<u8>) -> Option<()> {
        let number = |b: &u8| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = self.text[self.at..].iter().take_while(|&b| number(b)).count();
        let text = std::str::from_utf8(&self.text[self.at..self.at + length]).ok()?;
        self.at += length;
        decimal(text, out)
    }
}

/// Writes a decimal number without leading and trailing zeros: sign, digits, and the exponent of the last digit.
pub(super) fn decimal(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty()
        || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let digits = [whole, fraction].concat();
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        out.extend_from_slice(b"0;");
        return Some(());
    }
    let trailing = digits.len() - digits.trim_end_matches('0').len();
    let exponent =
        i64::from(exponent) + i64::try_from(trailing).ok()? - i64::try_from(fraction.len()).ok()?;
    out.extend_from_slice(if negative { b"-" } else { b"+" });
    out.extend_from_slice(significant.as_bytes());
    out.extend_from_slice(format!("e{exponent};").as_bytes());
    Some(())
}

/// As deep as values are read: deeper ones are compared as text.
const MOST_NESTED: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        canonical(text.as_bytes(), &mut out).map(|()| out)
    }

    #[test]
    fn one_value_one_spelling() {
        for (a, b, expected) in [
            ("1", "1.0", true),
            ("1", "10e-1", true),
            ("1e2", "100", true),
            ("-0", "0.00", true),
            ("1", "-1", false),
            ("0.1", "0.10000000000000000001", false),
            ("12345678901234567890.1", "12345678901234567890.2", false),
            ("12", "1", false),
            ("[1,2]", " [ 1 , 2 ] ", true),
            ("[1,2]", "[2,1]", false),
            ("[12]", "[1,2]", false),
            ("[]", "{}", false),
            (r#"{"a":1,"b":2}"#, r#"{"b": 2, "a": 1}"#, true),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#, true),
            (r#"{"a":{"b":null}}"#, r#"{"a":{"b":false}}"#, false),
            (r#""\u0041\n\/""#, "\"A\\n/\"", true),
            (r#""\ud83d\ude00""#, "\"\u{1f600}\"", true),
            (r#""ab""#, r#""a""#, false),
            (r#"["a","b"]"#, r#"["ab",""]"#, false),
            ("true", "false", false),
            ("null", "\"n\"", false),
        ] {
            assert_eq!(of(a).unwrap() == of(b).unwrap(), expected, "{a} {b}");
        }
    }

    #[test]
    fn what_is_not_json_is_left_alone() {
        for text in
            ["", "{", "[1", "[1,]", "tru", "1 2", "\"", "\"\\x\"", "\"\\ud800\"", "1e", ".", "{\"a\"}", "--1"]
        {
            assert_eq!(of(text), None, "{text}");
        }
        assert!(of(&format!("{}1{}", "[".repeat(200), "]".repeat(200))).is_some());
        assert!(of(&"[".repeat(100_000)).is_none());
    }
}
