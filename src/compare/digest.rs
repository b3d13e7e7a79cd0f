//! A digest of one answer, taken while its bytes pass. Constant size, whatever the rows.
//!
//! Each row has a hash of 128 bits. As a list, rows are the coefficients of a polynomial; as a bag, they are summed.
//! The seed is drawn at start-up, so nobody can make two rows that collide.

use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

use super::Unfit;
use crate::wire::frame::{self, Fields, HEADER};

/// What is known of one answer after its last byte.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// Of the names, types and formats of the columns; `None` when the answer did not describe them.
    pub columns: Option<u128>,
    /// Rows.
    pub rows: u64,
    /// Of the rows in their order.
    pub list: u128,
    /// Of the rows in any order.
    pub bag: u128,
    /// Bytes of the rows, headers left out.
    pub bytes: u64,
    /// Hash of the command tags.
    pub tag: u128,
    /// Of the first error.
    pub sqlstate: Option<[u8; 5]>,
    /// Commands that were completed.
    pub commands: u32,
    suspended: bool,
    copied: bool,
    /// In the middle of a message.
    cut: bool,
}

impl Summary {
    /// Why this answer cannot be compared, if it cannot.
    pub fn unfit(&self) -> Option<Unfit> {
        match self {
            Self { copied: true, .. } => Some(Unfit::Copy),
            Self { suspended: true, .. } => Some(Unfit::Suspended),
            Self { cut: true, .. } => Some(Unfit::Cut),
            Self { .. } => None,
        }
    }

    fn add(&mut self, row: u128, length: usize) {
        self.rows += 1;
        self.bytes += length as u64;
        self.bag = self.bag.wrapping_add(row);
        self.list = self.list.wrapping_mul(STEP).wrapping_add(row);
    }
}

/// Takes the frames of a backend, cut anyhow.
pub struct Digest {
    seed: u64,
    summary: Summary,
    state: State,
}

enum State {
    /// Bytes of a header, or of a control message, that are not all there.
    Gathering(Vec<u8>),
    /// In a row of which `left` bytes are still to come.
    Row { hash: Box<Xxh3>, length: usize, left: usize },
    /// In a message that does not count.
    Skipping(usize),
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Digest").field("summary", &self.summary).finish_non_exhaustive()
    }
}

impl Digest {
    /// Digests compare only when their seeds are equal.
    pub fn new(seed: u64) -> Self {
        Self { seed, summary: Summary::default(), state: State::Gathering(Vec::new()) }
    }

    /// Bytes of the rows so far.
    pub fn bytes(&self) -> u64 {
        self.summary.bytes
    }

    /// The next bytes of the answer.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = match &mut self.state {
                State::Row { hash, length, left } => {
                    let (now, rest) = bytes.split_at(bytes.len().min(*left));
                    hash.update(now);
                    *left -= now.len();
                    if *left == 0 {
                        self.summary.add(hash.digest128(), *length);
                        self.state = State::Gathering(Vec::new());
                    }
                    rest
                }
                State::Skipping(left) => {
                    let n = bytes.len().min(*left);
                    *left -= n;
                    if *left == 0 {
                        self.state = State::Gathering(Vec::new());
                    }
                    &bytes[n..]
                }
                State::Gathering(held) if held.is_empty() => self.frames(bytes),
                State::Gathering(held) => {
                    let wanted = match frame::header(held) {
                        Ok(Some((_, length))) => length,
                        Ok(None) => HEADER,
                        Err(_) => return self.broken(),
                    };
                    let (now, rest) = bytes.split_at(bytes.len().min(wanted - held.len()));
                    held.extend_from_slice(now);
                    if held.len() >= wanted {
                        let held = std::mem::take(held);
                        let left = self.frames(&held).len();
                        debug_assert!(left == 0, "a header or a frame is taken whole");
                    }
                    rest
                }
            };
        }
    }

    /// The answer is over.
    pub fn finish(mut self) -> Summary {
        self.summary.cut |= !matches!(&self.state, State::Gathering(held) if held.is_empty());
        self.summary
    }

    /// Takes whole frames, and the beginning of one that is not; what is left is of the latter.
    fn frames<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        loop {
            let (tag, length) = match frame::header(bytes) {
                Ok(Some(header)) => header,
                Ok(None) => {
                    self.state = State::Gathering(bytes.to_vec());
                    return &[];
                }
                Err(_) => {
                    self.broken();
                    return &[];
                }
            };
            if let Some(body) = bytes.get(HEADER..length) {
                if tag == b'D' {
                    self.summary.add(xxh3_128_with_seed(body, self.seed), body.len());
                } else {
                    self.message(tag, body);
                }
                bytes = &bytes[length..];
                if bytes.is_empty() {
                    self.state = State::Gathering(Vec::new());
                    return bytes;
                }
                continue;
            }
            let begun = &bytes[HEADER..];
            let left = length - bytes.len();
            self.state = match tag {
                b'D' => {
                    let mut hash = Box::new(Xxh3::with_seed(self.seed));
                    hash.update(begun);
                    State::Row { hash, length: length - HEADER, left }
                }
                b'T' | b'C' | b'E' if length <= MAX_CONTROL => State::Gathering(bytes.to_vec()),
                _ => {
                    self.message(tag, &[]);
                    State::Skipping(left)
                }
            };
            return &[];
        }
    }

    fn message(&mut self, tag: u8, body: &[u8]) {
        let summary = &mut self.summary;
        match tag {
            b'T' => {
                let described = columns_digest(body, self.seed);
                summary.columns =
                    Some(summary.columns.unwrap_or(0).wrapping_mul(STEP).wrapping_add(described));
            }
            b'C' => {
                summary.tag =
                    summary.tag.wrapping_mul(STEP).wrapping_add(xxh3_128_with_seed(body, self.seed));
                summary.commands += 1;
            }
            b'E' if summary.sqlstate.is_none() => {
                let code = frame::error_field(body, b'C').and_then(|code| code.try_into().ok());
                summary.sqlstate = Some(code.unwrap_or(*b"XX000"));
            }
            b'd' | b'G' | b'H' | b'W' => summary.copied = true,
            b's' => summary.suspended = true,
            _ => {}
        }
    }

    fn broken(&mut self) {
        self.summary.cut = true;
        self.state = State::Skipping(usize::MAX);
    }
}

/// Of names, type OIDs and formats: where a column comes from (table OID and number) is each database's own affair.
fn columns_digest(body: &[u8], seed: u64) -> u128 {
    let mut hash = Xxh3::with_seed(seed);
    for column in described(body).unwrap_or_default() {
        hash.update(column.name);
        hash.update(&[0]);
        hash.update(&column.type_oid.to_be_bytes());
        hash.update(&column.format.to_be_bytes());
    }
    hash.digest128()
}

/// A column as a RowDescription has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Described<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The table that it is of, or 0.
    pub table_oid: u32,
    /// Its number there, or 0.
    pub number: i16,
    /// Its type.
    pub type_oid: u32,
    /// 0 text, 1 binary.
    pub format: i16,
}

/// Reads the body of a RowDescription.
///
/// # Errors
/// When it breaks the protocol.
pub fn described(body: &[u8]) -> Result<Vec<Described<'_>>, frame::Malformed> {
    let mut fields = Fields(body);
    let count = fields.int16()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let name = fields.cstr()?;
        let table_oid = fields.int32()?.cast_unsigned();
        let number = fields.int16()?;
        let type_oid = fields.int32()?.cast_unsigned();
        let (_size, _modifier, format) = (fields.int16()?, fields.int32()?, fields.int16()?);
        columns.push(Described { name, table_oid, number, type_oid, format });
    }
    Ok(columns)
}

/// Odd, and far from a power of two.
pub(super) const STEP: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
/// A longer control message is not looked at.
const MAX_CONTROL: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compare::{Quick, quick};

    fn frame_of(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = i32::try_from(body.len() + 4).unwrap();
        [&[tag], &length.to_be_bytes()[..], body].concat()
    }

    fn digest(frames: &[Vec<u8>]) -> Summary {
        let mut digest = Digest::new(7);
        for frame in frames {
            digest.feed(frame);
        }
        digest.finish()
    }

    fn answer(rows: &[&str]) -> Vec<Vec<u8>> {
        let mut frames = vec![frame_of(b'T', &description("id", 23))];
        frames.extend(rows.iter().map(|row| frame_of(b'D', row.as_bytes())));
        frames.push(frame_of(b'C', format!("SELECT {}\0", rows.len()).as_bytes()));
        frames
    }

    fn description(name: &str, oid: i32) -> Vec<u8> {
        let mut body = vec![0, 1];
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&[0, 0, 0, 1, 1, 0, 2]);
        body.extend_from_slice(&oid.to_be_bytes());
        body.extend_from_slice(&[0, 4, 255, 255, 255, 255, 0, 0]);
        body
    }

    #[test]
    fn digests_say_what_is_worth_a_second_look() {
        let error = |code: &str| vec![frame_of(b'E', format!("SERROR\0C{code}\0\0").as_bytes())];
        let plain = answer(&["a", "b"]);
        for (shadow, total, expected) in [
            (answer(&["a", "b"]), true, Quick::Match),
            (answer(&["b", "a"]), true, Quick::Suspicion),
            (answer(&["b", "a"]), false, Quick::OrderOnly),
            (answer(&["a"]), false, Quick::Suspicion),
            (answer(&["a", "b", "b"]), false, Quick::Suspicion),
            (answer(&["a", "c"]), false, Quick::Suspicion),
            (answer(&["a", "b"])[1..].to_vec(), false, Quick::Match), // not described
            (
                [vec![frame_of(b'T', &description("ID", 23))], answer(&["a", "b"])[1..].to_vec()].concat(),
                false,
                Quick::Suspicion,
            ),
            (
                [vec![frame_of(b'T', &description("id", 20))], answer(&["a", "b"])[1..].to_vec()].concat(),
                false,
                Quick::Suspicion,
            ),
            (error("42P01"), false, Quick::Suspicion),
            ([plain.clone(), vec![frame_of(b's', b"")]].concat(), false, Quick::Unfit(Unfit::Suspended)),
            ([plain.clone(), vec![frame_of(b'd', b"x")]].concat(), false, Quick::Unfit(Unfit::Copy)),
            ([plain.clone(), vec![b"D\0\0\0\x09x".to_vec()]].concat(), false, Quick::Unfit(Unfit::Cut)),
            ([plain.clone(), vec![b"D\0\0\0\x01".to_vec()]].concat(), false, Quick::Unfit(Unfit::Cut)),
        ] {
            assert_eq!(quick(&digest(&plain), &digest(&shadow), total), expected, "{shadow:?}");
        }
        assert_eq!(quick(&digest(&error("42P01")), &digest(&error("42P01")), true), Quick::Match);
        assert_eq!(quick(&digest(&error("42P01")), &digest(&error("42501")), true), Quick::Suspicion);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            rows in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20),
            cuts in proptest::collection::vec(1_usize..200, 0..60),
        ) {
            let mut frames = vec![frame_of(b'T', &description("a", 25))];
            frames.extend(rows.iter().map(|row| frame_of(b'D', row)));
            frames.extend([frame_of(b'N', b"note"), frame_of(b'C', b"SELECT\0"), frame_of(b'Z', b"I")]);
            let whole = digest(&[frames.concat()]);
            prop_assert_eq!(&whole, &digest(&frames));
            prop_assert_eq!(usize::try_from(whole.rows).unwrap(), rows.len());
            let bytes = frames.concat();
            let (mut rest, mut pieces) = (&bytes[..], Digest::new(7));
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                pieces.feed(now);
                rest = later;
            }
            for byte in rest.chunks(1) {
                pieces.feed(byte);
            }
            prop_assert_eq!(whole, pieces.finish());
        }

        #[test]
        fn the_bag_forgets_the_order_and_nothing_else(
            rows in proptest::collection::vec("[a-c]{0,2}", 1..30),
            seed in any::<u64>(),
        ) {
            let mut other = rows.clone();
            let mut x = seed | 1;
            for i in (1..other.len()).rev() {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                other.swap(i, usize::try_from(x >> 33).unwrap() % (i + 1));
            }
            let of = |rows: &[String]| digest(&answer(&rows.iter().map(String::as_str).collect::<Vec<_>>()));
            let (a, b) = (of(&rows), of(&other));
            prop_assert_eq!(a.bag, b.bag);
            prop_assert_eq!(rows == other, a.list == b.list);
            let at = usize::try_from(seed >> 1).unwrap() % rows.len();
            other[at].push('d');
            prop_assert_ne!(a.bag, of(&other).bag);
        }
    }
}
