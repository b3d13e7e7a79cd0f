//! What one transaction changed on its lead: the answer of `crossfade.write_set`. Pure.

use std::collections::HashMap;

use bytes::{Buf, Bytes};

/// Keys and final rows of one transaction.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WriteSet {
    /// The top-level transaction id (xid8); `None`: it has written nothing.
    pub xid: Option<String>,
    /// Its row in the lead's journal.
    pub journal: Option<i64>,
    /// It is too big for the way through memory: all of it is in the journal.
    pub overflow: bool,
    /// In order of first appearance.
    pub changes: Vec<Change>,
}

/// What became of one row, or of a whole table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// `crossfade.tables.number`
    pub table: i32,
    /// Letters of its operations, in order: I, U, D; R whole row, T truncated.
    pub operations: Bytes,
    /// Text of the key.
    pub key: Option<Bytes>,
    /// Record text of the final row; `None`: it is gone.
    pub image: Option<Bytes>,
}

impl Change {
    /// Was the row there before the transaction?
    pub fn existed(&self) -> bool {
        matches!(self.operations.first(), Some(b'U' | b'D'))
    }
}

/// The answer is not what this version's `crossfade.write_set` gives.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "crossfade.write_set answered in a form that this version does not know; run crossfade mirror install"
)]
pub struct Malformed;

impl WriteSet {
    /// From a text array in binary: `!` or nothing, transaction, its row in the journal, then in pairs an entry
    /// (`IU5:key`) and its final row. An entry of a key that came before adds its operations to it: the row is the same.
    pub fn read(array: Bytes) -> Result<Self, Malformed> {
        let mut values = elements(array)?.into_iter();
        let (Some(Some(overflow)), Some(xid), Some(journal)) = (values.next(), values.next(), values.next())
        else {
            return Err(Malformed);
        };
        let xid = xid.map(|x| String::from_utf8_lossy(&x).into_owned());
        let journal = journal.map(|id| number(&id).ok_or(Malformed)).transpose()?;
        let mut set = Self { xid, journal, overflow: &*overflow == b"!", changes: Vec::new() };
        let mut places = HashMap::new();
        while let Some(entry) = values.next() {
            let (Some(entry), Some(image)) = (entry, values.next()) else { return Err(Malformed) };
            let change = Change::read(&entry, image)?;
            let place = (change.table, change.key.clone());
            if let Some(&at) = places.get(&place).filter(|_| place.1.is_some()) {
                let known: &mut Change = &mut set.changes[at];
                known.operations = [&known.operations[..], &change.operations].concat().into();
            } else {
                places.insert(place, set.changes.len());
                set.changes.push(change);
            }
        }
        Ok(set)
    }
}

impl Change {
    fn read(entry: &Bytes, image: Option<Bytes>) -> Result<Self, Malformed> {
        let letters = entry.iter().take_while(|b| b.is_ascii_uppercase()).count();
        let colon = entry.iter().position(|&b| b == b':').filter(|&at| at > letters && letters > 0);
        let colon = colon.ok_or(Malformed)?;
        let table = number(&entry[letters..colon]).ok_or(Malformed)?;
        let (operations, rest) = (entry.slice(..letters), entry.slice(colon + 1..));
        let (key, image) = match &*operations {
            b"T" => (None, None),
            b"R" => (None, Some(rest)),
            _ => (Some(rest), image),
        };
        Ok(Self { table, operations, key, image })
    }
}

/// The elements of a one-dimensional array in binary (`array_send`: dimensions, whether there are NULLs, the type of an
/// element; of each dimension its length and first index; of each element its length and bytes).
fn elements(mut array: Bytes) -> Result<Vec<Option<Bytes>>, Malformed> {
    let word = |array: &mut Bytes| array.try_get_i32().map_err(|_| Malformed);
    let dimensions = word(&mut array)?;
    word(&mut array)?;
    word(&mut array)?;
    if dimensions != 1 {
        return Err(Malformed);
    }
    let count = usize::try_from(word(&mut array)?).map_err(|_| Malformed)?;
    word(&mut array)?;
    // Four bytes for each at least: what a hostile count could cost is bounded.
    if count > array.len() / 4 {
        return Err(Malformed);
    }
    let mut elements = Vec::with_capacity(count);
    for _ in 0..count {
        elements.push(match usize::try_from(word(&mut array)?) {
            Ok(length) if length <= array.len() => Some(array.split_to(length)),
            Ok(_) => return Err(Malformed),
            Err(_) => None,
        });
    }
    Ok(elements)
}

fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;

    fn array(values: &[Option<&str>]) -> Bytes {
        let mut out = BytesMut::new();
        let count = i32::try_from(values.len()).unwrap();
        for word in [1, 1, 25, count, 1] {
            out.put_i32(word);
        }
        for value in values {
            match value {
                Some(text) => {
                    out.put_i32(i32::try_from(text.len()).unwrap());
                    out.put_slice(text.as_bytes());
                }
                None => out.put_i32(-1),
            }
        }
        out.freeze()
    }

    #[test]
    fn answers_are_read() {
        let set = WriteSet::read(array(&[
            Some(""),
            Some("777"),
            Some("12"),
            Some("T9:"),
            None,
            Some("I5:1"),
            Some("(1,a)"),
            Some("UD5:2:x"),
            None,
            Some("R7:(,)"),
            None,
            Some("U5:1"),
            Some("(1,a)"),
            Some("R7:(,)"),
            None,
        ]))
        .unwrap();
        assert_eq!((set.xid.as_deref(), set.journal, set.overflow), (Some("777"), Some(12), false));
        let text = |bytes: &Option<Bytes>| bytes.as_ref().map(|b| String::from_utf8_lossy(b).into_owned());
        let seen = set.changes.iter().map(|c| {
            let operations = std::str::from_utf8(&c.operations).unwrap();
            (c.table, operations, text(&c.key), text(&c.image), c.existed())
        });
        let some = |text: &str| Some(text.to_owned());
        let expected = [
            (9, "T", None, None, false),
            (5, "IU", some("1"), some("(1,a)"), false),
            (5, "UD", some("2:x"), None, true),
            (7, "R", None, some("(,)"), false),
            (7, "R", None, some("(,)"), false),
        ];
        assert_eq!(seen.collect::<Vec<_>>(), expected);
        assert_eq!(WriteSet::read(array(&[Some(""), None, None])), Ok(WriteSet::default()));
        assert!(WriteSet::read(array(&[Some("!"), Some("9"), Some("1")])).unwrap().overflow);
    }

    #[test]
    fn anything_else_is_refused() {
        let head = [Some(""), Some("7"), None];
        let with = |entry, image| array(&[&head[..], &[entry, image]].concat());
        let whole = with(Some("I5:1"), None);
        assert!(WriteSet::read(whole.clone()).is_ok());
        for bad in [
            array(&[]),
            array(&head[..2]),
            array(&[None, None, None]),
            array(&[Some(""), Some("7"), Some("x")]),
            array(&[&head[..], &[Some("I5:1")]].concat()),
            with(None, None),
            with(Some("5:1"), None),
            with(Some("I:1"), None),
            with(Some("I5"), None),
            with(Some("Ix:1"), None),
            Bytes::new(),
            whole.slice(..whole.len() - 1),
            Bytes::from_static(b"\0\0\0\x01\0\0\0\0\0\0\0\x19\x7f\xff\xff\xff\0\0\0\x01"),
        ] {
            assert_eq!(WriteSet::read(bad), Err(Malformed));
        }
    }
}
