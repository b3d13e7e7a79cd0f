//! Bounds hostile text before the grammar reads it: one linear pass, no allocation per token.
//!
//! It never decides what a text means. It follows Postgres' scanner (`scan.l`) closely enough that
//! nothing can hide from it: strings, quoted identifiers, dollar quotes, nested comments.

use super::Unknown;

/// Parentheses and brackets may be nested this deep.
const MAX_NESTING: usize = 400;
/// Comments may be nested this deep.
const MAX_COMMENT_NESTING: usize = 32;
/// The scanner reads a run of operator characters again at every comment that opens in it; more bytes
/// than this to be read again and the text is refused (about 10 ms).
const MAX_RESCANNED_BYTES: usize = 16 << 20;

/// Bounds `sql`. The answer estimates from above how deep its parse tree can be, in tokens.
pub(super) fn depth(sql: &[u8], standard_conforming_strings: bool) -> Result<usize, Unknown> {
    if rescanned_bytes(sql) > MAX_RESCANNED_BYTES {
        return Err(Unknown::TooDeep);
    }
    let mut scan = Scan { sql, at: 0, escapes: !standard_conforming_strings };
    let mut levels = Levels::default();
    while let Some(token) = scan.next()? {
        levels.push(token)?;
    }
    Ok(levels.deepest)
}

/// Cuts `sql` behind its semicolons, for reports on text that the grammar refuses; never for routing
/// (`BEGIN ATOMIC` bodies are cut too).
pub(super) fn cut(sql: &str) -> Vec<&str> {
    let mut scan = Scan { sql: sql.as_bytes(), at: 0, escapes: false };
    let (mut parts, mut from) = (Vec::new(), 0);
    while let Ok(Some(token)) = scan.next() {
        if let Token::Semicolon = token {
            parts.push(&sql[from..scan.at]);
            from = scan.at;
        }
    }
    parts.push(&sql[from..]);
    parts
}

/// What the bound needs to know of a token.
#[derive(Clone, Copy)]
enum Token {
    Open,
    Close,
    Comma,
    Semicolon,
    Dot,
    /// UNION, INTERSECT, EXCEPT: nest to the left across the commas of the select lists.
    SetOperation,
    Other,
}

/// How deep a tree can get: a level of it takes a token, and a comma ends what can nest.
#[derive(Default)]
struct Levels {
    open: Vec<Level>,
    here: Level,
    outer: usize,
    deepest: usize,
}

#[derive(Clone, Copy, Default)]
struct Level {
    tokens: usize,
    set_operations: usize,
}

impl Levels {
    fn push(&mut self, token: Token) -> Result<(), Unknown> {
        match token {
            Token::Open => {
                if self.open.len() >= MAX_NESTING {
                    return Err(Unknown::TooDeep);
                }
                self.here.tokens += 2;
                self.outer += self.here.tokens + self.here.set_operations;
                self.open.push(std::mem::take(&mut self.here));
            }
            Token::Close => {
                self.here = self.open.pop().unwrap_or_default();
                self.outer = self.outer.saturating_sub(self.here.tokens + self.here.set_operations);
            }
            Token::Comma => self.here.tokens = 0,
            // Inside parentheses a semicolon is only legal in CREATE RULE and ends a statement there too.
            Token::Semicolon => self.here = Level::default(),
            Token::SetOperation => self.here.set_operations += 1,
            Token::Dot => self.here.tokens = self.here.tokens.saturating_sub(1),
            Token::Other => self.here.tokens += 1,
        }
        self.deepest = self.deepest.max(self.outer + self.here.tokens + self.here.set_operations);
        Ok(())
    }
}

struct Scan<'a> {
    sql: &'a [u8],
    at: usize,
    /// A backslash escapes in plain strings.
    escapes: bool,
}

impl Scan<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.sql.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn next(&mut self) -> Result<Option<Token>, Unknown> {
        loop {
            let Some(&byte) = self.sql.get(self.at) else { return Ok(None) };
            match (byte, self.peek(1)) {
                (b'-', b'-') => self.line_comment(),
                (b'/', b'*') => self.block_comment()?,
                (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, _) => self.at += 1,
                _ => return Ok(Some(self.token(byte))),
            }
        }
    }

    fn token(&mut self, byte: u8) -> Token {
        match byte {
            b'\'' => self.string(self.escapes),
            b'"' => self.until_quote(b'"', false),
            b'$' => self.dollar(),
            b'(' | b'[' => {
                self.at += 1;
                return Token::Open;
            }
            b')' | b']' => {
                self.at += 1;
                return Token::Close;
            }
            b',' => {
                self.at += 1;
                return Token::Comma;
            }
            b';' => {
                self.at += 1;
                return Token::Semicolon;
            }
            b'e' | b'E' if self.peek(1) == b'\'' => {
                self.at += 1;
                self.string(true);
            }
            // A name of several parts is one node.
            b'.' => {
                self.at += 1;
                return Token::Dot;
            }
            // B'', X'', N'' obey the setting as plain strings do; counting their letter is harmless.
            _ if is_word_start(byte) => return self.word(),
            _ => self.at += 1,
        }
        Token::Other
    }

    fn word(&mut self) -> Token {
        let start = self.at;
        while is_word_start(self.peek(0)) || self.peek(0).is_ascii_digit() || self.peek(0) == b'$' {
            self.at += 1;
        }
        let word = &self.sql[start..self.at];
        let set = [&b"union"[..], b"intersect", b"except"];
        if set.iter().any(|set| word.eq_ignore_ascii_case(set)) { Token::SetOperation } else { Token::Other }
    }

    fn line_comment(&mut self) {
        while self.at < self.sql.len() && !matches!(self.peek(0), b'\n' | b'\r') {
            self.at += 1;
        }
    }

    fn block_comment(&mut self) -> Result<(), Unknown> {
        let mut nesting = 0;
        while self.at < self.sql.len() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    nesting += 1;
                    self.at += 2;
                    if nesting > MAX_COMMENT_NESTING {
                        return Err(Unknown::TooDeep);
                    }
                }
                (b'*', b'/') => {
                    nesting -= 1;
                    self.at += 2;
                    if nesting == 0 {
                        return Ok(());
                    }
                }
                _ => self.at += 1,
            }
        }
        Ok(())
    }

    /// A string with its continuations on later lines, which keep its way of escaping.
    fn string(&mut self, escapes: bool) {
        loop {
            self.until_quote(b'\'', escapes);
            let end = self.at;
            let mut new_line = false;
            loop {
                match (self.peek(0), self.peek(1)) {
                    (b'\n' | b'\r', _) => {
                        new_line = true;
                        self.at += 1;
                    }
                    (b' ' | b'\t' | 0x0b | 0x0c, _) => self.at += 1,
                    (b'-', b'-') => self.line_comment(),
                    _ => break,
                }
            }
            if !new_line || self.peek(0) != b'\'' {
                self.at = end;
                return;
            }
        }
    }

    /// From the opening quote to behind the closing one; a doubled quote ends and begins again.
    fn until_quote(&mut self, quote: u8, escapes: bool) {
        self.at += 1;
        while self.at < self.sql.len() {
            let byte = self.peek(0);
            self.at += 1;
            if byte == b'\\' && escapes {
                self.at += 1;
            } else if byte == quote {
                if self.peek(0) != quote {
                    return;
                }
                self.at += 1;
            }
        }
        self.at = self.at.min(self.sql.len());
    }

    fn dollar(&mut self) {
        let start = self.at;
        self.at += 1;
        if self.peek(0).is_ascii_digit() {
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
            return;
        }
        while is_word_start(self.peek(0)) || self.peek(0).is_ascii_digit() {
            self.at += 1;
        }
        if self.peek(0) != b'$' {
            self.at = start + 1;
            return;
        }
        self.at += 1;
        let tag = &self.sql[start..self.at];
        let rest = &self.sql[self.at..];
        self.at = find(rest, tag).map_or(self.sql.len(), |end| self.at + end + tag.len());
    }
}

/// First occurrence of `tag` (`$x$`): only its dollar signs are looked at, so this is linear.
fn find(text: &[u8], tag: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(dollar) = text[from..].iter().position(|&b| b == b'$') {
        let at = from + dollar;
        if text[at..].starts_with(tag) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

/// Bytes that the scanner reads more than once: in each run of operator characters, its length times
/// the comments that open in it.
fn rescanned_bytes(sql: &[u8]) -> usize {
    let (mut total, mut length, mut openings, mut previous) = (0usize, 0usize, 0usize, 0u8);
    for &byte in sql {
        if b"~!@#^&|`?+-*/%<>=".contains(&byte) {
            length += 1;
            openings += usize::from(previous == b'/' && byte == b'*');
        } else {
            total = total.saturating_add(length.saturating_mul(openings));
            (length, openings) = (0, 0);
        }
        previous = byte;
    }
    total.saturating_add(length.saturating_mul(openings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sql: &str, conforming: bool, expected: Result<usize, Unknown>) {
        assert_eq!(depth(sql.as_bytes(), conforming), expected, "{sql}");
    }

    #[test]
    fn depth_is_counted_outside_of_literals() {
        check("", true, Ok(0));
        check("select 1", true, Ok(2));
        check("select 1, 2, 3", true, Ok(2));
        check("select '((((' -- ((((\n", true, Ok(2));
        check("select $a$ (((( $b$ $a$", true, Ok(2));
        check("select $1(", true, Ok(4));
        check("select a$b$c(", true, Ok(4));
        check("select \"((\"\"((\"", true, Ok(2));
        check("/* (( /* ( */ ( */ 1", true, Ok(1));
        check(r"select e'\'((' '('", true, Ok(3));
        check(r"select '\' ( '", true, Ok(5));
        check(r"select '\' ( '", false, Ok(2));
        check("select e'a'\n '\\'(' ", true, Ok(2));
        check("select 1 union select 1, 2 union select 1", true, Ok(5));
    }

    #[test]
    fn hostile_text_is_refused() {
        check(&"(".repeat(MAX_NESTING + 1), true, Err(Unknown::TooDeep));
        check(&"[".repeat(MAX_NESTING + 1), true, Err(Unknown::TooDeep));
        check(&"/*".repeat(10_000), true, Err(Unknown::TooDeep));
        check(&"/**/".repeat(100_000), true, Err(Unknown::TooDeep));
        check(&"/**/ ".repeat(100_000), true, Ok(0));
        check(&format!("/*{}*/", "=".repeat(100_000)), true, Ok(0));
    }
}
