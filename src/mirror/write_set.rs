//! What one transaction changed on its lead: the answer of `crossfade.write_set`. Pure.

use bytes::Bytes;

/// Keys and final rows of one transaction.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WriteSet {
    /// The top-level transaction id (xid8); `None`: it has written nothing.
    pub xid: Option<String>,
    /// Its row in the lead's journal.
    pub journal: Option<i64>,
    /// Log position of the lead's last checkpoint: [`super::recovery::Gid::epoch`].
    pub epoch: Option<u64>,
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
    /// From rows of (relation, ops, key, image, epoch), the first of which is about the transaction.
    pub fn read(rows: impl IntoIterator<Item = Option<Vec<Option<Bytes>>>>) -> Result<Self, Malformed> {
        let mut set: Option<Self> = None;
        for row in rows {
            let row: [Option<Bytes>; 5] = row.and_then(|r| r.try_into().ok()).ok_or(Malformed)?;
            let [table, operations, key, image, epoch] = row;
            let table: i32 = number(table.as_ref()).ok_or(Malformed)?;
            let operations = operations.ok_or(Malformed)?;
            match &mut set {
                None if table == 0 => {
                    let xid = key.map(|k| String::from_utf8_lossy(&k).into_owned());
                    let journal = match image {
                        Some(id) => Some(number(Some(&id)).ok_or(Malformed)?),
                        None => None,
                    };
                    let (epoch, overflow) = (number(epoch.as_ref()), &*operations == b"!");
                    set = Some(Self { xid, journal, epoch, overflow, changes: Vec::new() });
                }
                Some(set) if table > 0 => set.changes.push(Change { table, operations, key, image }),
                None | Some(_) => return Err(Malformed),
            }
        }
        set.ok_or(Malformed)
    }
}

fn number<N: std::str::FromStr>(text: Option<&Bytes>) -> Option<N> {
    std::str::from_utf8(text?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "as `values` gives it")]
    fn row(values: [Option<&'static str>; 4]) -> Option<Vec<Option<Bytes>>> {
        let epoch = Some("5").filter(|_| values[0] == Some("0"));
        let values = values.into_iter().chain([epoch]);
        Some(values.map(|v| v.map(|v| Bytes::from_static(v.as_bytes()))).collect())
    }

    #[test]
    fn answers_are_read() {
        let head = row([Some("0"), Some(""), Some("777"), Some("12")]);
        let set = WriteSet::read([
            head.clone(),
            row([Some("5"), Some("IU"), Some("1"), Some("(1,a)")]),
            row([Some("5"), Some("UD"), Some("2"), None]),
            row([Some("7"), Some("R"), None, Some("(,)")]),
        ])
        .unwrap();
        assert_eq!((set.xid.as_deref(), set.journal, set.overflow), (Some("777"), Some(12), false));
        assert_eq!(set.epoch, Some(5));
        let seen: Vec<_> = set.changes.iter().map(|c| (c.table, c.existed(), c.image.is_some())).collect();
        assert_eq!(seen, [(5, false, true), (5, true, false), (7, false, true)]);
        let nothing = WriteSet::read([row([Some("0"), Some(""), None, None])]).unwrap();
        assert_eq!(nothing, WriteSet { epoch: Some(5), ..WriteSet::default() });
        let big = WriteSet::read([row([Some("0"), Some("!"), Some("9"), Some("1")])]).unwrap();
        assert!(big.overflow);
        for bad in [
            vec![],
            vec![row([Some("5"), Some("I"), Some("1"), None])],
            vec![head.clone(), head.clone()],
            vec![row([None, Some(""), None, None])],
            vec![row([Some("0"), Some(""), None, Some("x")])],
            vec![None],
            vec![head, Some(vec![None; 3])],
        ] {
            assert_eq!(WriteSet::read(bad), Err(Malformed));
        }
    }
}
