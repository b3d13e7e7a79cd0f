//! What one repository's comparisons overlook.

/// Rules of one repository. The default overlooks nothing but spelling: the same instant with another offset, the
/// same float with other digits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Columns of results that are not compared, by name; `*` stands for any text.
    pub ignore: Vec<String>,
    /// Floats are equal when they differ by at most this share of the larger one; 0: by nothing.
    pub float_tolerance: f64,
    /// Timestamps are equal when they differ by at most this many microseconds.
    pub timestamp_tolerance_us: u64,
    /// Are 1.0 and 1.00 the same?
    pub numeric: Numeric,
    /// Are `{"a": 1}` and `{"a":1.0}`?
    pub json: Json,
}

/// Equality of `numeric`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Numeric {
    /// The number of digits behind the point is part of the value, as applications see it.
    #[default]
    Scale,
    /// 1.0 is 1.00.
    Value,
}

/// Equality of `json` and `jsonb`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Json {
    /// The text that the server sends.
    #[default]
    Text,
    /// The value: white space, order of keys and spelling of numbers do not count; of keys given twice the last does.
    Semantic,
}

impl Rules {
    /// Is a column of this name left out?
    pub fn ignores(&self, column: &str) -> bool {
        self.ignore.iter().any(|pattern| wildcard(pattern.as_bytes(), column.as_bytes()))
    }
}

/// `*` is any text.
fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == text[t] => (p, t) = (p + 1, t + 1),
            Some(_) | None => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                (p, t) = (at + 1, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_ignored_by_name() {
        let rules = Rules { ignore: vec!["updated_*".into(), "seen".into()], ..Rules::default() };
        for (name, expected) in [
            ("updated_at", true),
            ("updated_", true),
            ("seen", true),
            ("unseen", false),
            ("Updated_at", false),
        ] {
            assert_eq!(rules.ignores(name), expected, "{name}");
        }
    }
}
