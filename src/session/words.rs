//! The server's words about a statement whose name or text on the server is not the client's.

use bytes::BytesMut;

use super::prepared::PREFIX;
use crate::wire::frame::{self, Fields, HEADER};

/// A text was sent with another name in it: where positions begin to differ, and by how much (characters).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moved {
    /// Position of the name, from 1.
    pub at: usize,
    /// Characters of the name as the client wrote it.
    pub old: usize,
    /// Characters of the name as it was sent.
    pub new: usize,
}

/// The ErrorResponse `error` (a whole frame) with names of ours replaced by what `name_of` says their number means,
/// and its position that of the client's text; `None` when it is the same.
pub fn in_client_words(
    error: &[u8],
    name_of: impl Fn(u64) -> Option<Vec<u8>>,
    moved: Option<Moved>,
) -> Option<BytesMut> {
    let body = error.get(HEADER..)?;
    let about_names =
        matches!(frame::error_field(body, b'C'), Some(b"26000" | b"42P05" | b"08P01" | b"42601"));
    let mut new = BytesMut::with_capacity(error.len());
    frame::put(&mut new, b'E', |out| {
        let mut fields = Fields(body);
        while let (Ok(code), Ok(value)) = (fields.byte(), fields.cstr()) {
            out.extend_from_slice(&[code]);
            match code {
                b'P' => out.extend_from_slice(&position(value, moved)),
                b'M' | b'D' | b'H' | b'W' if about_names => out.extend_from_slice(&renamed(value, &name_of)),
                _ => out.extend_from_slice(value),
            }
            out.extend_from_slice(&[0]);
        }
        out.extend_from_slice(&[0]);
    });
    (new != error).then_some(new)
}

fn renamed(text: &[u8], name_of: impl Fn(u64) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(PREFIX.len()).position(|w| w == PREFIX.as_bytes()) {
        let word = rest[..at].last().is_none_or(|b| !b.is_ascii_alphanumeric() && *b != b'_');
        let (before, after) = rest.split_at(at + PREFIX.len());
        let digits = after.iter().take_while(|b| b.is_ascii_digit()).count();
        let number = std::str::from_utf8(&after[..digits]).ok().and_then(|d| d.parse().ok());
        if let Some(name) = number.filter(|_| word).and_then(&name_of) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(&name);
            rest = &after[digits..];
        } else {
            out.extend_from_slice(before);
            rest = after;
        }
    }
    out.extend_from_slice(rest);
    out
}

fn position(value: &[u8], moved: Option<Moved>) -> Vec<u8> {
    let sent = std::str::from_utf8(value).ok().and_then(|p| p.parse::<usize>().ok());
    match (sent, moved) {
        (Some(sent), Some(Moved { at, old, new })) if sent > at => {
            (sent + old).saturating_sub(new).max(at).to_string().into_bytes()
        }
        _ => value.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_positions() {
        #[track_caller]
        fn check(fields: &str, moved: Option<Moved>, want: Option<&str>) {
            let error = |fields: &str| {
                let mut out = BytesMut::new();
                frame::put(&mut out, b'E', |b| {
                    b.extend_from_slice(fields.replace('|', "\0").as_bytes());
                    b.extend_from_slice(&[0, 0]);
                });
                out
            };
            let name_of = |n| (n == 7).then(|| b"mine".to_vec());
            assert_eq!(in_client_words(&error(fields), name_of, moved), want.map(error), "{fields}");
        }
        check("C42P05|M\"cf_7\" exists", None, Some("C42P05|M\"mine\" exists"));
        check("C42P05|M»cf_7« cf_8 xcf_7 cf_", None, Some("C42P05|M»mine« cf_8 xcf_7 cf_"));
        check("C42P05|Mnothing", None, None);
        check("C42P01|Mrelation \"cf_7\"", None, None);
        let moved = Some(Moved { at: 9, old: 1, new: 6 });
        check("C42703|Mx|P16", moved, Some("C42703|Mx|P11"));
        check("C42703|Mx|P3", moved, None);
    }
}
