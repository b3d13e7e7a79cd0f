//! One side's answer, recorded frame by frame in bounded memory.
//!
//! While the rows are few a [`Recorder`] keeps them; then only sums by *bucket*, and the rows of the buckets in its
//! [`Focus`]. Rows that belong together (by key, else by value) share a bucket, so the buckets whose sums differ hold
//! all that differs.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::{
    Unfit,
    digest::{STEP, described},
    rules::Rules,
    value::{Format, Type},
};
use crate::wire::frame::{self, Fields};

/// A column of a result.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// OID of its type, as the source knows it.
    pub oid: u32,
    /// How its values compare.
    pub of: Type,
    /// How they are written.
    pub format: Format,
}

/// Buckets whose rows are kept, sorted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Focus(pub(super) Vec<u16>);

/// Takes one side's answer, frame by frame.
#[derive(Debug)]
pub struct Recorder<'a> {
    rules: &'a Rules,
    key: &'a [String],
    focus: Option<Focus>,
    seed: u64,
    scratch: Vec<u8>,
    profile: Profile,
}

/// One side's answer, as far as it is needed to compare it.
#[derive(Debug, Default)]
pub struct Profile {
    pub(super) columns: Vec<Column>,
    pub(super) treatment: Vec<Treatment>,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Hashes of the bytes, of the canonical values, and of those that are not loose.
    pub(super) raw: Sums,
    pub(super) strict: Sums,
    pub(super) place: Sums,
    /// Empty while all rows are kept.
    pub(super) buckets: Vec<u128>,
    pub(super) kept: HashMap<u128, Kept>,
    pub(super) kept_bytes: usize,
    /// Bytes of rows that may be kept.
    pub(super) most: usize,
    pub(super) whole: bool,
    /// Which buckets' rows are kept when not all are.
    pub(super) focus: Option<Focus>,
    /// Even those were too many.
    pub(super) overflowed: bool,
    pub(super) tag: Vec<u8>,
    pub(super) sqlstate: Option<[u8; 5]>,
    pub(super) unfit: Option<Unfit>,
}

#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) list: u128,
    pub(super) bag: u128,
}

impl Sums {
    fn add(&mut self, row: u128) {
        self.bag = self.bag.wrapping_add(row);
        self.list = self.list.wrapping_mul(STEP).wrapping_add(row);
    }
}

/// What a column takes part in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Treatment {
    Ignored,
    Key,
    Strict,
    /// Compared in pairs of rows.
    Loose,
}

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) body: Box<[u8]>,
    pub(super) bucket: u16,
    /// Of the first of them, from 0.
    pub(super) at: u64,
    pub(super) count: u64,
}

impl<'a> Recorder<'a> {
    /// Columns named `key` identify a row where the result has all of them. Of a large result the rows in `focus` are
    /// kept, up to `most` bytes.
    pub fn new(rules: &'a Rules, key: &'a [String], focus: Option<Focus>, most: usize, seed: u64) -> Self {
        let profile = Profile { whole: true, most, ..Profile::default() };
        Self { rules, key, focus, seed, scratch: Vec::new(), profile }
    }

    /// The next frame of the answer; OIDs are the source's.
    pub fn take(&mut self, tag: u8, body: &[u8]) {
        let profile = &mut self.profile;
        match tag {
            b'T' => match described(body) {
                Ok(columns) if profile.columns.is_empty() && profile.rows == 0 => {
                    let column = |c: &super::digest::Described<'_>| Column {
                        name: String::from_utf8_lossy(c.name).into_owned(),
                        oid: c.type_oid,
                        of: Type::of(c.type_oid),
                        format: Format::of(c.format),
                    };
                    profile.columns = columns.iter().map(column).collect();
                    profile.treatment = treatment(&profile.columns, self.key, self.rules);
                }
                Ok(_) | Err(_) => profile.unfit = Some(Unfit::Cut),
            },
            b'D' => self.row(body),
            b'C' => profile.tag = body.strip_suffix(&[0]).unwrap_or(body).to_vec(),
            b'E' if profile.sqlstate.is_none() => {
                let code = frame::error_field(body, b'C').and_then(|code| code.try_into().ok());
                profile.sqlstate = Some(code.unwrap_or(*b"XX000"));
            }
            b's' => profile.unfit = Some(Unfit::Suspended),
            b'd' | b'G' | b'H' | b'W' => profile.unfit = Some(Unfit::Copy),
            _ => {}
        }
    }

    /// The answer is over.
    pub fn finish(self) -> Profile {
        self.profile
    }

    fn row(&mut self, body: &[u8]) {
        let [raw, strict, place, anchor] = self.hashes(body);
        let profile = &mut self.profile;
        let at = profile.rows;
        profile.rows += 1;
        profile.bytes += body.len() as u64;
        profile.raw.add(raw);
        profile.strict.add(strict);
        profile.place.add(place);
        let bucket = u16::try_from(anchor % BUCKETS as u128).expect("fewer buckets than 2^16");
        if let Some(sum) = profile.buckets.get_mut(usize::from(bucket)) {
            *sum = sum.wrapping_add(strict);
        }
        let wanted =
            profile.whole || profile.focus.as_ref().is_some_and(|f| f.0.binary_search(&bucket).is_ok());
        if !wanted {
            return;
        }
        if let Some(kept) = profile.kept.get_mut(&strict) {
            kept.count += 1;
            return;
        }
        profile.kept_bytes += body.len() + size_of::<Kept>();
        profile.kept.insert(strict, Kept { body: body.into(), bucket, at, count: 1 });
        if profile.kept_bytes > profile.most {
            self.forget();
        }
    }

    /// Too many rows: those out of focus go, then all.
    fn forget(&mut self) {
        let profile = &mut self.profile;
        if std::mem::take(&mut profile.whole) {
            profile.spread();
            profile.focus = self.focus.take();
            profile.keep_focus();
        }
        // Fewer buckets, or none.
        while profile.kept_bytes > profile.most {
            match &mut profile.focus {
                Some(Focus(buckets)) if buckets.len() > 1 => buckets.truncate(buckets.len() / 2),
                _ => {
                    profile.focus = None;
                    profile.overflowed = true;
                }
            }
            profile.keep_focus();
        }
    }

    /// Of the bytes, of the canonical values, of those that are not loose, and of what tells where the row belongs.
    fn hashes(&mut self, body: &[u8]) -> [u128; 4] {
        let raw = xxh3_128_with_seed(body, self.seed);
        let Profile { columns, treatment, .. } = &self.profile;
        let plain = |(c, t): (&Column, &Treatment)| *t == Treatment::Strict && c.of.is_plain(self.rules);
        if columns.iter().zip(treatment).all(plain) {
            return [raw; 4];
        }
        let Some(cells) = cells(body).filter(|cells| cells.len() == columns.len()) else { return [raw; 4] };
        let mut hash = |wanted: &dyn Fn(Treatment) -> bool| {
            self.scratch.clear();
            for ((column, &treatment), cell) in columns.iter().zip(treatment).zip(&cells) {
                if !wanted(treatment) {
                    continue;
                }
                let at = self.scratch.len();
                self.scratch.extend_from_slice(&u32::MAX.to_be_bytes());
                let Some(cell) = cell else { continue };
                column.of.canonical(column.format, cell, self.rules, &mut self.scratch);
                let length = u32::try_from(self.scratch.len() - at - 4).unwrap_or(u32::MAX - 1);
                self.scratch[at..at + 4].copy_from_slice(&length.to_be_bytes());
            }
            xxh3_128_with_seed(&self.scratch, self.seed)
        };
        let strict = hash(&|t| t != Treatment::Ignored);
        let loose = treatment.contains(&Treatment::Loose);
        let place = if loose { hash(&|t| matches!(t, Treatment::Key | Treatment::Strict)) } else { strict };
        let keyed = treatment.contains(&Treatment::Key);
        let anchor = if keyed { hash(&|t| t == Treatment::Key) } else { place };
        [raw, strict, place, anchor]
    }
}

fn treatment(columns: &[Column], key: &[String], rules: &Rules) -> Vec<Treatment> {
    let once =
        |name: &String| columns.iter().filter(|c| c.name == *name).count() == 1 && !rules.ignores(name);
    let keyed = !key.is_empty() && key.iter().all(once);
    let of = |column: &Column| {
        if rules.ignores(&column.name) {
            Treatment::Ignored
        } else if keyed && key.contains(&column.name) {
            Treatment::Key
        } else if column.of.is_loose(rules) {
            Treatment::Loose
        } else {
            Treatment::Strict
        }
    };
    columns.iter().map(of).collect()
}

/// The values of a `DataRow`'s body.
pub(super) fn cells(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let mut fields = Fields(body);
    let count = fields.int16().ok()?;
    let cells = (0..count).map(|_| fields.value()).collect::<Result<Vec<_>, _>>().ok()?;
    fields.0.is_empty().then_some(cells)
}

impl Focus {
    /// As many of the unequal buckets as can be kept.
    pub(super) fn new(unequal: &[u16], a: &Profile, s: &Profile) -> Self {
        let bytes = |p: &Profile| p.bytes + p.rows * size_of::<Kept>() as u64;
        let each = bytes(a).max(bytes(s)) / BUCKETS as u64;
        let most = usize::try_from(a.most as u64 / 2 / each.max(1)).unwrap_or(usize::MAX).max(1);
        Self(unequal.iter().copied().take(most).collect())
    }
}

impl Profile {
    /// Rows of the answer.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of rows that are kept now.
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// SQLSTATE, when it failed.
    pub fn sqlstate(&self) -> Option<[u8; 5]> {
        self.sqlstate
    }

    /// From now on sums are kept.
    fn spread(&mut self) {
        self.buckets = vec![0; BUCKETS];
        for (strict, kept) in &self.kept {
            let sum = &mut self.buckets[usize::from(kept.bucket)];
            *sum = sum.wrapping_add(strict.wrapping_mul(u128::from(kept.count)));
        }
    }

    /// Rows out of focus go.
    fn keep_focus(&mut self) {
        let focus = self.focus.as_ref().map_or(&[][..], |focus| &focus.0);
        self.kept.retain(|_, kept| focus.binary_search(&kept.bucket).is_ok());
        self.kept_bytes = self.kept.values().map(|kept| kept.body.len() + size_of::<Kept>()).sum();
        self.kept.shrink_to_fit();
    }

    /// Sums by bucket.
    pub(super) fn sums(&self) -> Vec<u128> {
        if !self.whole {
            return self.buckets.clone();
        }
        let mut sums = vec![0_u128; BUCKETS];
        for (strict, kept) in &self.kept {
            let sum = &mut sums[usize::from(kept.bucket)];
            *sum = sum.wrapping_add(strict.wrapping_mul(u128::from(kept.count)));
        }
        sums
    }

    /// Rows that the other lacks, first come first, each as often as it does (to a bound).
    pub(super) fn without(&self, other: &Profile, within: impl Fn(&Kept) -> bool) -> Vec<&Kept> {
        let surplus = |(strict, kept): (&u128, &Kept)| {
            let there = other.kept.get(strict).map_or(0, |k| k.count);
            usize::try_from(kept.count.saturating_sub(there)).unwrap_or(usize::MAX).min(MOST_PAIRED)
        };
        let mut found: Vec<&Kept> = self
            .kept
            .iter()
            .filter(|(_, kept)| within(kept))
            .flat_map(|entry| std::iter::repeat_n(entry.1, surplus(entry)))
            .collect();
        found.sort_by_key(|kept| kept.at);
        found
    }

    /// The bytes of a row that count.
    pub(super) fn compared(&self, body: &[u8]) -> Vec<u8> {
        let Some(cells) = cells(body) else { return body.to_vec() };
        let counted = cells.iter().zip(&self.treatment).filter(|(_, t)| **t != Treatment::Ignored);
        counted.flat_map(|(cell, _)| [cell.unwrap_or(b"\0null"), b"\0"].concat()).collect()
    }

    /// `id=42`
    pub(super) fn key_of(&self, body: &[u8]) -> Option<String> {
        let cells = cells(body)?;
        let part = |((column, treatment), cell): ((&Column, &Treatment), Option<&[u8]>)| {
            (*treatment == Treatment::Key).then(|| format!("{}={}", column.name, shown(column, cell)))
        };
        let parts: Vec<String> =
            self.columns.iter().zip(&self.treatment).zip(cells).filter_map(part).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    pub(super) fn shown_row(&self, body: &[u8]) -> String {
        let values = cells(body).unwrap_or_default();
        let texts: Vec<String> = self.columns.iter().zip(values).take(20).map(|(c, v)| shown(c, v)).collect();
        texts.join(", ")
    }
}

/// A value for people: its text, or what the bytes of a common type mean; cut short.
pub(super) fn shown(column: &Column, value: Option<&[u8]>) -> String {
    let Some(value) = value else { return "NULL".to_owned() };
    let hex = |bytes: &[u8]| {
        let mut text = String::from("\\x");
        for byte in bytes.iter().take(MOST_SHOWN / 2) {
            let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).expect("below 16");
            text.extend([digit(byte >> 4), digit(byte & 15)]);
        }
        text
    };
    let integer = |bytes: &[u8]| {
        bytes.iter().fold(if bytes[0] >= 0x80 { -1_i64 } else { 0 }, |n, &b| n << 8 | i64::from(b))
    };
    match (column.format, column.oid) {
        (Format::Binary, 20 | 21 | 23 | 26) if (1..=8).contains(&value.len()) => integer(value).to_string(),
        (Format::Binary, 16) => if value == [1] { "t" } else { "f" }.to_owned(),
        (Format::Binary, 18 | 19 | 25 | 114 | 1042 | 1043) | (Format::Text, _) => {
            String::from_utf8_lossy(value).chars().take(MOST_SHOWN).collect()
        }
        (Format::Binary, _) => hex(value),
    }
}

/// How finely a large result is cut: 64 KiB of sums.
const BUCKETS: usize = 4_096;
/// Rows on each side that are paired.
pub(super) const MOST_PAIRED: usize = 200;
/// Characters of a value that are shown.
const MOST_SHOWN: usize = 200;
