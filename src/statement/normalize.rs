//! Strips literals from a text, so that statements that differ only by them share one plan.
//!
//! Only a cache key is made here; nothing is split or judged by it. What the lexer is not sure of makes
//! it answer `None`, and the text is then analysed by itself.

/// Writes `sql` with numbers as `0` and strings as `''` to `out`. `false`: not understood, `out` is of no use.
pub fn normalize(sql: &[u8], standard_conforming_strings: bool, out: &mut Vec<u8>) -> bool {
    out.clear();
    // What stands between two literals is copied at once.
    let (mut at, mut copied) = (0, 0);
    while let Some(&byte) = sql.get(at) {
        let (end, literal): (_, &[u8]) = match CLASS[usize::from(byte)] {
            Class::Word => (Some(at + run(&sql[at..], |b| IN_WORD[usize::from(b)])), b""),
            Class::Digit => {
                (Some(at + run(&sql[at..], |b| b.is_ascii_alphanumeric() || b == b'.' || b == b'_')), b"0")
            }
            Class::Quote => {
                let escapes = match previous_word(sql, at) {
                    b"e" | b"E" => true,
                    b"n" | b"N" | b"&" | b"b" | b"B" | b"x" | b"X" => false,
                    _ => !standard_conforming_strings,
                };
                (quoted(sql, at + 1, b'\'', escapes), b"''")
            }
            Class::Identifier => (quoted(sql, at + 1, b'"', false), b""),
            Class::Dollar => (dollar(sql, at), b""),
            Class::Dash if sql.get(at + 1) == Some(&b'-') => {
                (Some(at + run(&sql[at..], |b| b != b'\n' && b != b'\r')), b"")
            }
            Class::Slash if sql.get(at + 1) == Some(&b'*') => (comment(sql, at), b""),
            Class::Plain | Class::Dash | Class::Slash => (Some(at + 1), b""),
            Class::Nul => (None, b""),
        };
        let Some(end) = end else { return false };
        if !literal.is_empty() {
            out.extend_from_slice(&sql[copied..at]);
            out.extend_from_slice(literal);
            copied = end;
        }
        at = end;
    }
    let Some(rest) = sql.get(copied..) else { return false };
    out.extend_from_slice(rest);
    true
}

/// What a byte begins.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Class {
    Plain,
    Word,
    Digit,
    Quote,
    Identifier,
    Dollar,
    Dash,
    Slash,
    Nul,
}

/// By byte: a look-up costs a third of the comparisons that it stands for.
const CLASS: [Class; 256] = {
    let mut class = [Class::Plain; 256];
    let mut byte = 0_u8;
    loop {
        class[byte as usize] = match byte {
            b'0'..=b'9' => Class::Digit,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 128.. => Class::Word,
            b'\'' => Class::Quote,
            b'"' => Class::Identifier,
            b'$' => Class::Dollar,
            b'-' => Class::Dash,
            b'/' => Class::Slash,
            0 => Class::Nul,
            _ => Class::Plain,
        };
        if byte == u8::MAX {
            break class;
        }
        byte += 1;
    }
};

/// By byte: does a word that has begun go on with it?
const IN_WORD: [bool; 256] = {
    let mut inside = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        inside[byte] = matches!(CLASS[byte], Class::Word | Class::Digit | Class::Dollar);
        byte += 1;
    }
    inside
};

fn is_word(b: u8) -> bool {
    matches!(CLASS[usize::from(b)], Class::Word | Class::Digit)
}

fn run(text: &[u8], f: impl Fn(u8) -> bool) -> usize {
    text.iter().position(|&b| !f(b)).unwrap_or(text.len())
}

/// The word or `&` that touches the quote at `at`.
fn previous_word(sql: &[u8], at: usize) -> &[u8] {
    if at > 0 && sql[at - 1] == b'&' {
        return b"&";
    }
    let start = sql[..at].iter().rposition(|&b| !is_word(b)).map_or(0, |i| i + 1);
    &sql[start..at]
}

/// Index behind the closing quote.
fn quoted(sql: &[u8], mut at: usize, quote: u8, escapes: bool) -> Option<usize> {
    loop {
        match *sql.get(at)? {
            b'\\' if escapes => at += 2,
            0 => return None,
            b if b == quote => {
                if sql.get(at + 1) != Some(&quote) {
                    return Some(at + 1);
                }
                at += 2;
            }
            _ => at += 1,
        }
    }
}

/// `$1`, or `$tag$ ... $tag$` as a whole.
fn dollar(sql: &[u8], at: usize) -> Option<usize> {
    let len = run(&sql[at + 1..], is_word);
    let tag_end = at + 1 + len;
    if sql.get(at + 1).is_some_and(u8::is_ascii_digit) {
        return Some(tag_end);
    }
    if sql.get(tag_end) != Some(&b'$') {
        return Some(at + 1);
    }
    let tag = &sql[at..=tag_end];
    let body = &sql[tag_end + 1..];
    let found = body.windows(tag.len()).position(|w| w == tag)?;
    Some(tag_end + 1 + found + tag.len())
}

fn comment(sql: &[u8], at: usize) -> Option<usize> {
    let (mut depth, mut at) = (1_u32, at + 2);
    while depth > 0 {
        match (sql.get(at)?, sql.get(at + 1)) {
            (b'/', Some(b'*')) => (depth, at) = (depth + 1, at + 2),
            (b'*', Some(b'/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sql: &str, want: Option<&str>) {
        check_with(sql, true, want);
    }

    #[track_caller]
    fn check_with(sql: &str, scs: bool, want: Option<&str>) {
        let mut out = Vec::new();
        let ok = normalize(sql.as_bytes(), scs, &mut out);
        assert_eq!(ok.then(|| String::from_utf8(out).expect("text")).as_deref(), want, "{sql}");
    }

    #[test]
    fn literals_are_stripped() {
        check("SELECT 12, 'it''s', x1, $2", Some("SELECT 0, '', x1, $2"));
        check("SELECT 1.5e10 + 0x1F - 1_000", Some("SELECT 0 + 0 - 0"));
        check(r"SELECT 'a\', 'b'", Some("SELECT '', ''"));
        check(r"SELECT E'a\', 'b'", None);
        check(r"SELECT E'a\'b', 2", Some("SELECT E'', 0"));
        check_with(r"SELECT 'a\'b', 2", false, Some("SELECT '', 0"));
        check(r#"SELECT "a 1", "q""2" "#, Some(r#"SELECT "a 1", "q""2" "#));
        check("SELECT $$it's 1$$, 2", Some("SELECT $$it's 1$$, 0"));
        check("SELECT $a$ $b$ ' $a$, 2", Some("SELECT $a$ $b$ ' $a$, 0"));
        check("SELECT 1 -- it's 5\n, 2", Some("SELECT 0 -- it's 5\n, 0"));
        check("SELECT /* ' /* 1 */ ' */ 1", Some("SELECT /* ' /* 1 */ ' */ 0"));
        check("SELECT a$1, t.c2", Some("SELECT a$1, t.c2"));
        check("SELECT U&'d\\0061', b'01'", Some("SELECT U&'', b''"));
    }

    #[test]
    fn what_is_not_closed_is_not_understood() {
        for sql in ["'a", "\"a", "$a$ b", "/* a", "a\0b"] {
            check(sql, None);
        }
    }
}
