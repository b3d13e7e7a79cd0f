//! Array and row literals, `{1,"a b",NULL}` and `(1,"a b",)`, taken apart.

/// The parts of an array or a row: what holds them together, and the values in order.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Parts {
    /// Bounds, dimensions, braces.
    pub(super) shape: Vec<u8>,
    /// The elements; `None` is NULL.
    pub(super) values: Vec<Option<Vec<u8>>>,
}

/// `[0:1]={1,{2,NULL}}`; `None` when it is not an array literal.
pub(super) fn array(text: &[u8]) -> Option<Parts> {
    let mut parts = Parts::default();
    let begin = text.iter().position(|&b| b == b'{')?;
    let (bounds, mut rest) = text.split_at(begin);
    if !bounds.is_empty() && (bounds[0] != b'[' || !bounds.ends_with(b"=")) {
        return None;
    }
    parts.shape.extend_from_slice(bounds);
    let mut depth = 0_usize;
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.checked_sub(1)?,
            b',' => {}
            _ => {
                let (value, quoted, left) = scalar(rest, b"},")?;
                let null = !quoted && value.eq_ignore_ascii_case(b"null");
                parts.values.push((!null).then_some(value));
                parts.shape.push(b'v');
                rest = left;
                continue;
            }
        }
        parts.shape.push(byte);
        rest = after;
        if depth == 0 {
            return rest.is_empty().then_some(parts);
        }
    }
    None
}

/// `(1,,"a""b")`; `None` when it is not a row literal.
pub(super) fn row(text: &[u8]) -> Option<Parts> {
    let mut parts = Parts::default();
    let mut rest = text.strip_prefix(b"(")?;
    loop {
        let (value, quoted, left) = scalar(rest, b"),")?;
        parts.values.push((quoted || !value.is_empty()).then_some(value));
        let (&end, after) = left.split_first()?;
        if end == b')' {
            return after.is_empty().then_some(parts);
        }
        rest = after;
    }
}

/// One value without its quotes and escapes, whether it had quotes, and what follows.
fn scalar<'a>(text: &'a [u8], ends: &[u8]) -> Option<(Vec<u8>, bool, &'a [u8])> {
    let (mut value, mut quoted, mut inside, mut at) = (Vec::new(), false, false, 0);
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'\\' => {
                value.push(*text.get(at)?);
                at += 1;
            }
            b'"' if inside && text.get(at) == Some(&b'"') => {
                value.push(b'"');
                at += 1;
            }
            b'"' => (quoted, inside) = (true, !inside),
            _ if !inside && ends.contains(&byte) => return Some((value, quoted, &text[at - 1..])),
            _ => value.push(byte),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(parts: Option<Parts>) -> String {
        let Some(parts) = parts else { return "-".into() };
        let value = |v: &Option<Vec<u8>>| {
            v.as_ref().map_or("NULL".into(), |v| format!("<{}>", String::from_utf8_lossy(v)))
        };
        let values: Vec<String> = parts.values.iter().map(value).collect();
        format!("{} {}", String::from_utf8_lossy(&parts.shape), values.join(" "))
    }

    #[test]
    fn arrays() {
        for (text, expected) in [
            ("{}", "{} "),
            ("{1,2}", "{v,v} <1> <2>"),
            ("{NULL,\"NULL\",\"\"}", "{v,v,v} NULL <NULL> <>"),
            (r#"{"a\"b\\",c d}"#, r#"{v,v} <a"b\> <c d>"#),
            ("{{1},{2}}", "{{v},{v}} <1> <2>"),
            ("[0:1]={1,2}", "[0:1]={v,v} <1> <2>"),
            ("{1", "-"),
            ("x{1}", "-"),
            ("{1}}", "-"),
            ("1", "-"),
        ] {
            assert_eq!(show(array(text.as_bytes())), expected, "{text}");
        }
    }

    #[test]
    fn rows() {
        for (text, expected) in [
            ("(1,,\"\")", " <1> NULL <>"),
            (r#"("a""b","c\\d",e)"#, r#" <a"b> <c\d> <e>"#),
            ("()", " NULL"),
            ("(1", "-"),
            ("(1)2", "-"),
        ] {
            assert_eq!(show(row(text.as_bytes())), expected, "{text}");
        }
    }
}
