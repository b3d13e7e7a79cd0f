//! Equality of values by type. A value has one *canonical* form under the rules; what the rules call near is compared
//! in pairs.

use super::{
    json,
    rules::{Json, Numeric, Rules},
    text::{self, Parts},
};
use crate::wire::frame::Fields;

/// A type, as far as its values have more than one spelling. All others are [`Type::Plain`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Type {
    /// Equal are equal bytes.
    Plain,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric`
    Numeric,
    /// `timestamp`
    Timestamp,
    /// `timestamptz`
    TimestampTz,
    /// `json`
    Json,
    /// `jsonb`
    Jsonb,
    /// An array of these.
    Array(Box<Type>),
    /// A row. The types of its fields are known only in binary, unless they are given.
    Record(Vec<Type>),
}

/// How a value is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// As the server's output function writes it.
    Text,
    /// As its send function does.
    Binary,
}

impl Format {
    /// From the protocol's format code.
    pub fn of(code: i16) -> Self {
        if code == 0 { Self::Text } else { Self::Binary }
    }
}

impl Type {
    /// Of the built-in type with this OID (of `pg_type`, the same in every database).
    pub fn of(oid: u32) -> Self {
        let array = |of| Self::Array(Box::new(of));
        match oid {
            700 => Self::Float4,
            701 => Self::Float8,
            1700 => Self::Numeric,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            114 => Self::Json,
            3802 => Self::Jsonb,
            1021 => array(Self::Float4),
            1022 => array(Self::Float8),
            1231 => array(Self::Numeric),
            1115 => array(Self::Timestamp),
            1185 => array(Self::TimestampTz),
            199 => array(Self::Json),
            3807 => array(Self::Jsonb),
            2249 => Self::Record(Vec::new()),
            2287 => array(Self::Record(Vec::new())),
            _ => Self::Plain,
        }
    }

    /// Has each of its values one spelling under these rules?
    pub fn is_plain(&self, rules: &Rules) -> bool {
        match self {
            Self::Plain => true,
            Self::Numeric => rules.numeric == Numeric::Scale,
            Self::Json | Self::Jsonb => rules.json == Json::Text,
            Self::Float4
            | Self::Float8
            | Self::Timestamp
            | Self::TimestampTz
            | Self::Array(_)
            | Self::Record(_) => false,
        }
    }

    /// May values be equal that have no common form, because they are near each other?
    pub fn is_loose(&self, rules: &Rules) -> bool {
        match self {
            Self::Float4 | Self::Float8 => rules.float_tolerance > 0.0,
            Self::Timestamp | Self::TimestampTz => rules.timestamp_tolerance_us > 0,
            Self::Array(of) => of.is_loose(rules),
            Self::Record(of) => {
                of.iter().any(|of| of.is_loose(rules))
                    || of.is_empty() && (rules.float_tolerance > 0.0 || rules.timestamp_tolerance_us > 0)
            }
            Self::Plain | Self::Numeric | Self::Json | Self::Jsonb => false,
        }
    }

    /// Appends the form that all spellings of the value share. A value that cannot be read stands for itself.
    pub fn canonical(&self, format: Format, value: &[u8], rules: &Rules, out: &mut Vec<u8>) {
        let begin = out.len();
        out.push(1);
        if self.write(format, value, rules, out, 0).is_none() {
            out.truncate(begin);
            out.push(0);
            out.extend_from_slice(value);
        }
    }

    fn write(
        &self,
        format: Format,
        value: &[u8],
        rules: &Rules,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Option<()> {
        match self {
            Self::Plain => return None,
            Self::Float4 | Self::Float8 => {
                let number = self.float(format, value)?;
                let number = if number == 0.0 { 0.0 } else { number };
                let bits = if number.is_nan() { f64::NAN.to_bits() } else { number.to_bits() };
                out.extend_from_slice(&bits.to_be_bytes());
            }
            Self::Numeric if rules.numeric == Numeric::Scale => return None,
            Self::Numeric => match format {
                Format::Text => json::decimal(std::str::from_utf8(value).ok()?, out)?,
                Format::Binary => numeric(value, out)?,
            },
            Self::Timestamp | Self::TimestampTz => {
                out.extend_from_slice(&self.instant(format, value)?.to_be_bytes());
            }
            Self::Json | Self::Jsonb if rules.json == Json::Text => return None,
            Self::Json | Self::Jsonb => json::canonical(self.json(format, value)?, out)?,
            Self::Array(_) | Self::Record(_) => {
                if depth >= MOST_NESTED {
                    return None;
                }
                let (parts, types) = self.parts(format, value)?;
                out.extend_from_slice(&(parts.values.len() as u64).to_be_bytes());
                out.extend_from_slice(&parts.shape);
                for (value, of) in parts.values.iter().zip(types.iter().cycle()) {
                    let at = out.len();
                    out.extend_from_slice(&u32::MAX.to_be_bytes());
                    let Some(value) = value else { continue };
                    out.push(1);
                    if of.write(format, value, rules, out, depth + 1).is_none() {
                        out.truncate(at + 4);
                        out.push(0);
                        out.extend_from_slice(value);
                    }
                    let length = u32::try_from(out.len() - at - 4).ok()?;
                    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
                }
            }
        }
        Some(())
    }

    /// Are these values equal, or near enough for the rules?
    pub fn near(&self, format: Format, a: &[u8], b: &[u8], rules: &Rules) -> bool {
        self.near_at(format, a, b, rules, 0)
    }

    fn near_at(&self, format: Format, a: &[u8], b: &[u8], rules: &Rules, depth: usize) -> bool {
        if a == b {
            return true;
        }
        let near = match self {
            Self::Float4 | Self::Float8 => {
                self.float(format, a).zip(self.float(format, b)).is_some_and(|(a, b)| {
                    a.total_cmp(&b).is_eq()
                        || (a - b).abs() <= rules.float_tolerance * a.abs().max(b.abs())
                            && (a - b).is_finite()
                })
            }
            Self::Timestamp | Self::TimestampTz => self
                .instant(format, a)
                .zip(self.instant(format, b))
                .is_some_and(|(a, b)| a.abs_diff(b) <= rules.timestamp_tolerance_us),
            Self::Array(_) | Self::Record(_) if depth < MOST_NESTED && self.is_loose(rules) => {
                self.parts(format, a).zip(self.parts(format, b)).is_some_and(|((a, types), (b, other))| {
                    a.shape == b.shape
                        && types == other
                        && a.values.len() == b.values.len()
                        && a.values.iter().zip(&b.values).zip(types.iter().cycle()).all(
                            |((a, b), of)| match (a, b) {
                                (Some(a), Some(b)) => of.near_at(format, a, b, rules, depth + 1),
                                (None, None) => true,
                                (Some(_), None) | (None, Some(_)) => false,
                            },
                        )
                })
            }
            Self::Plain | Self::Numeric | Self::Json | Self::Jsonb | Self::Array(_) | Self::Record(_) => {
                false
            }
        };
        near || {
            let form = |value| {
                let mut out = Vec::new();
                self.canonical(format, value, rules, &mut out);
                out
            };
            form(a) == form(b)
        }
    }

    fn float(&self, format: Format, value: &[u8]) -> Option<f64> {
        match (format, self) {
            (Format::Text, Self::Float4) => {
                Some(f64::from(std::str::from_utf8(value).ok()?.parse::<f32>().ok()?))
            }
            (Format::Text, _) => std::str::from_utf8(value).ok()?.parse().ok(),
            (Format::Binary, Self::Float4) => Some(f64::from(f32::from_be_bytes(value.try_into().ok()?))),
            (Format::Binary, _) => Some(f64::from_be_bytes(value.try_into().ok()?)),
        }
    }

    /// Microseconds, counted from 2000.
    fn instant(&self, format: Format, value: &[u8]) -> Option<i64> {
        match format {
            Format::Binary => Some(i64::from_be_bytes(value.try_into().ok()?)),
            Format::Text => iso_instant(std::str::from_utf8(value).ok()?, *self == Self::TimestampTz),
        }
    }

    fn json<'a>(&self, format: Format, value: &'a [u8]) -> Option<&'a [u8]> {
        match (self, format) {
            (Self::Jsonb, Format::Binary) => value.strip_prefix(&[1]), // its version
            _ => Some(value),
        }
    }

    /// The elements or fields, and their types (repeated as needed).
    fn parts(&self, format: Format, value: &[u8]) -> Option<(Parts, Vec<Type>)> {
        let unknown = |of: Vec<Type>| if of.is_empty() { vec![Type::Plain] } else { of };
        match (self, format) {
            (Self::Array(of), Format::Text) => Some((text::array(value)?, vec![(**of).clone()])),
            (Self::Array(of), Format::Binary) => Some((binary_array(value)?, vec![(**of).clone()])),
            (Self::Record(of), Format::Text) => Some((text::row(value)?, unknown(of.clone()))),
            (Self::Record(of), Format::Binary) => {
                let (parts, found) = binary_row(value)?;
                Some((parts, unknown(if of.len() == found.len() { of.clone() } else { found })))
            }
            _ => None,
        }
    }
}

/// Dimensions and elements; the OID of the type and whether there may be a NULL are no part of the value.
fn binary_array(value: &[u8]) -> Option<Parts> {
    let mut fields = Fields(value);
    let dimensions = usize::try_from(fields.int32().ok()?).ok()?;
    let (_nulls, _oid) = (fields.int32().ok()?, fields.int32().ok()?);
    let bounds = fields.0.get(..dimensions.checked_mul(8)?)?;
    let mut parts = Parts { shape: bounds.to_vec(), values: Vec::new() };
    fields.0 = &fields.0[bounds.len()..];
    while !fields.0.is_empty() {
        parts.values.push(fields.value().ok()?.map(<[u8]>::to_vec));
    }
    Some(parts)
}

fn binary_row(value: &[u8]) -> Option<(Parts, Vec<Type>)> {
    let mut fields = Fields(value);
    let (mut parts, mut types) = (Parts::default(), Vec::new());
    for _ in 0..fields.int32().ok()? {
        types.push(Type::of(fields.int32().ok()?.cast_unsigned()));
        parts.values.push(fields.value().ok()?.map(<[u8]>::to_vec));
    }
    fields.0.is_empty().then_some((parts, types))
}

/// A binary numeric without its display scale.
fn numeric(value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut fields = Fields(value);
    let (_digits, mut weight) = (fields.int16().ok()?, fields.int16().ok()?);
    let (sign, _scale) = (fields.int16().ok()?, fields.int16().ok()?);
    let mut digits = fields.0;
    while let Some(rest) = digits.strip_prefix(&[0, 0]) {
        digits = rest;
        weight = weight.checked_sub(1)?;
    }
    while let Some(rest) = digits.strip_suffix(&[0, 0]).filter(|_| digits.len().is_multiple_of(2)) {
        digits = rest;
    }
    let special = sign.cast_unsigned() >= 0xc000;
    if digits.is_empty() && !special {
        out.push(b'0');
        return Some(());
    }
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(digits);
    Some(())
}

/// `2024-02-29 12:34:56.789+05:30 BC`, as `DateStyle = ISO` has it. With `zone` the offset must be there.
fn iso_instant(text: &str, zone: bool) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (text, before_christ) = text.strip_suffix(" BC").map_or((text, false), |rest| (rest, true));
    let (date, time) = text.split_once(' ')?;
    let mut date = date.split('-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let year = if before_christ { 1 - year } else { year };
    let (time, offset) = match time.find(['+', '-']) {
        Some(at) if zone => {
            let seconds = clock(&time[at + 1..])? / SECOND;
            (&time[..at], if time.as_bytes()[at] == b'-' { -seconds } else { seconds })
        }
        None if !zone => (time, 0),
        Some(_) | None => return None,
    };
    let days = days_from_2000(year, month, day)?;
    days.checked_mul(86_400 * SECOND)?.checked_add(clock(time)?)?.checked_sub(offset * SECOND)
}

/// Microseconds of `12:34:56.789`, `05:30`, `05`.
fn clock(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut micros = 0;
    let mut unit = 3_600 * SECOND;
    for part in whole.split(':') {
        micros += part.parse::<u32>().ok().map(i64::from)? * unit;
        unit /= 60;
    }
    if fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(micros + format!("{fraction:0<6}").parse::<i64>().ok()?)
}

/// Of the proleptic Gregorian calendar (Hinnant's `days_from_civil`).
fn days_from_2000(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year.abs() > 300_000 {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 730_425)
}

const SECOND: i64 = 1_000_000;
/// Rows in rows in arrays: deeper ones are compared byte for byte.
const MOST_NESTED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn strict() -> Rules {
        Rules::default()
    }

    fn lenient() -> Rules {
        Rules {
            float_tolerance: 1e-9,
            timestamp_tolerance_us: 1_000,
            numeric: Numeric::Value,
            json: Json::Semantic,
            ..Rules::default()
        }
    }

    /// Equal by the strict rules, and by the lenient ones?
    #[track_caller]
    fn check(of: &Type, format: Format, a: &[u8], b: &[u8], expected: [bool; 2]) {
        let shown = || format!("{of:?} {} {}", String::from_utf8_lossy(a), String::from_utf8_lossy(b));
        for (rules, expected) in [strict(), lenient()].iter().zip(expected) {
            assert_eq!(of.near(format, a, b, rules), expected, "{} {rules:?}", shown());
            let form = |value| {
                let mut out = Vec::new();
                of.canonical(format, value, rules, &mut out);
                out
            };
            if !of.is_loose(rules) {
                assert_eq!(form(a) == form(b), expected, "canonical {}", shown());
            }
            if of.is_plain(rules) {
                assert_eq!(a == b, expected, "plain {}", shown());
            }
        }
    }

    #[test]
    fn texts() {
        const SAME: [bool; 2] = [true, true];
        const RULE: [bool; 2] = [false, true];
        const NOT: [bool; 2] = [false, false];
        let of = |name: &str| match name {
            "float4" => Type::Float4,
            "float8" => Type::Float8,
            "numeric" => Type::Numeric,
            "timestamp" => Type::Timestamp,
            "timestamptz" => Type::TimestampTz,
            "json" => Type::Json,
            "jsonb" => Type::Jsonb,
            "float8[]" => Type::of(1022),
            "numeric[]" => Type::of(1231),
            "timestamptz[]" => Type::of(1185),
            "jsonb[]" => Type::of(3807),
            "(numeric,text)" => Type::Record(vec![Type::Numeric, Type::Plain]),
            "record" => Type::of(2249),
            _ => Type::Plain,
        };
        for (name, a, b, expected) in [
            ("int4", "1", "1", SAME),
            ("int4", "1", "01", NOT),
            ("text", "a", "a ", NOT),
            ("bool", "t", "f", NOT),
            ("numeric", "1.0", "1.0", SAME),
            ("numeric", "1.0", "1.00", RULE),
            ("numeric", "100", "1e2", RULE),
            ("numeric", "-0.10", "-0.1", RULE),
            ("numeric", "0", "0.000", RULE),
            ("numeric", "1.0", "1.01", NOT),
            ("numeric", "1", "-1", NOT),
            ("numeric", "NaN", "NaN", SAME),
            ("numeric", "NaN", "Infinity", NOT),
            ("numeric", "10", "1", NOT),
            ("numeric", "99999999999999999999.1", "99999999999999999999.2", NOT),
            ("float8", "0.1", "0.10000000000000001", SAME),
            ("float8", "0.1", "0.1000000000000001", RULE),
            ("float8", "0.1", "0.11", NOT),
            ("float8", "1e3", "1000", SAME),
            ("float8", "-0", "0", SAME),
            ("float8", "NaN", "NaN", SAME),
            ("float8", "NaN", "0", NOT),
            ("float8", "Infinity", "-Infinity", NOT),
            ("float8", "Infinity", "1e308", NOT),
            ("float4", "0.1", "0.10000000149", SAME),
            ("float4", "0.1", "0.1001", NOT),
            ("timestamptz", "2024-03-01 00:30:00+00", "2024-02-29 19:30:00-05", SAME),
            ("timestamptz", "2024-03-01 00:30:00+05:30", "2024-02-29 19:00:00+00", SAME),
            ("timestamptz", "2024-03-01 00:30:00+00", "2024-03-01 00:30:00.0005+00", RULE),
            ("timestamptz", "2024-03-01 00:30:00+00", "2024-03-01 00:30:00.002+00", NOT),
            ("timestamptz", "2024-03-01 00:30:00+00", "2024-03-01 00:30:00+01", NOT),
            ("timestamptz", "0044-03-15 00:00:00+00 BC", "0044-03-15 01:00:00+01 BC", SAME),
            ("timestamptz", "infinity", "infinity", SAME),
            ("timestamptz", "infinity", "-infinity", NOT),
            ("timestamptz", "2000-01-01 00:00:00+00", "infinity", NOT),
            ("timestamptz", "Sat Mar 02 2024", "Sat Mar 02 2024", SAME),
            ("timestamptz", "Sat Mar 02 2024", "Sun Mar 03 2024", NOT),
            ("timestamp", "2024-03-01 00:30:00", "2024-03-01 00:30:00", SAME),
            ("timestamp", "2024-03-01 00:30:00", "2024-03-01 00:30:00.001", RULE),
            ("timestamp", "1999-12-31 23:59:59.9999", "2000-01-01 00:00:00", RULE),
            ("timestamp", "0001-01-01 00:00:00", "0001-01-01 00:00:00 BC", NOT),
            ("json", r#"{"a": 1}"#, r#"{"a":1.0}"#, RULE),
            ("json", r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#, RULE),
            ("json", r#"{"a":1}"#, r#"{"a":2}"#, NOT),
            ("json", "not json", "not json", SAME),
            ("jsonb", r#"{"a": 1.0}"#, r#"{"a": 1.00}"#, RULE),
            ("jsonb", "[1, 2]", "[2, 1]", NOT),
            ("float8[]", "{0.1,NULL}", "{0.10000000000000001,NULL}", SAME),
            ("float8[]", "{0.1,NULL}", "{0.1,0}", NOT),
            ("float8[]", "{0.1}", "{0.1000000000000001}", RULE),
            ("float8[]", "{{1},{2}}", "{{1,2}}", NOT),
            ("numeric[]", "{1.0}", "{1.00}", RULE),
            ("numeric[]", "{1.0}", "{1.0,1.0}", NOT),
            ("numeric[]", "{1,2}", "[0:1]={1,2}", NOT),
            ("timestamptz[]", r#"{"2024-03-01 00:30:00+00"}"#, r#"{"2024-03-01 01:30:00+01"}"#, SAME),
            ("jsonb[]", r#"{"{\"a\": 1}"}"#, r#"{"{\"a\": 1.0}"}"#, RULE),
            ("(numeric,text)", "(1.0,a)", "(1.00,a)", RULE),
            ("(numeric,text)", "(1.0,a)", "(1.0,b)", NOT),
            ("(numeric,text)", "(1.0,)", "(1.0,\"\")", NOT),
            ("record", "(1,a)", "(1,\"a\")", SAME),
            ("record", "(1,a)", "(1,b)", NOT),
        ] {
            check(&of(name), Format::Text, a.as_bytes(), b.as_bytes(), expected);
            check(&of(name), Format::Text, b.as_bytes(), a.as_bytes(), expected);
        }
    }

    fn numeric_of(weight: i16, sign: u16, scale: i16, digits: &[i16]) -> Vec<u8> {
        let mut out = Vec::new();
        for n in
            [i16::try_from(digits.len()).unwrap(), weight, sign.cast_signed(), scale].iter().chain(digits)
        {
            out.extend_from_slice(&n.to_be_bytes());
        }
        out
    }

    fn array_of(nulls: i32, oid: i32, values: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for n in [1, nulls, oid, i32::try_from(values.len()).unwrap(), 1] {
            out.extend_from_slice(&n.to_be_bytes());
        }
        for value in values {
            out.extend_from_slice(&i32::try_from(value.len()).unwrap().to_be_bytes());
            out.extend_from_slice(value);
        }
        out
    }

    #[test]
    fn binaries() {
        let check = |of: &Type, a: &[u8], b: &[u8], expected| check(of, Format::Binary, a, b, expected);
        let one = |scale| numeric_of(0, 0, scale, &[1]);
        check(&Type::Numeric, &one(1), &one(1), [true, true]);
        check(&Type::Numeric, &one(1), &one(2), [false, true]);
        check(&Type::Numeric, &one(0), &numeric_of(1, 0, 0, &[1]), [false, false]);
        check(&Type::Numeric, &one(0), &numeric_of(0, 0x4000, 0, &[1]), [false, false]);
        check(&Type::Numeric, &numeric_of(0, 0, 0, &[256]), &numeric_of(0, 0, 0, &[1]), [false, false]);
        check(&Type::Numeric, &numeric_of(0, 0, 2, &[]), &numeric_of(0, 0, 0, &[]), [false, true]);
        check(&Type::Numeric, &numeric_of(0, 0xc000, 0, &[]), &numeric_of(0, 0xd000, 0, &[]), [false, false]);
        check(&Type::Float8, &1.0_f64.to_be_bytes(), &(1.0_f64 + 1e-12).to_be_bytes(), [false, true]);
        check(&Type::Float8, &0.0_f64.to_be_bytes(), &(-0.0_f64).to_be_bytes(), [true, true]);
        check(&Type::Float4, &1.0_f32.to_be_bytes(), &2.0_f32.to_be_bytes(), [false, false]);
        check(&Type::TimestampTz, &5_i64.to_be_bytes(), &9_i64.to_be_bytes(), [false, true]);
        check(&Type::Jsonb, b"\x01{\"a\": 1}", b"\x01{\"a\": 1.0}", [false, true]);
        let numerics = |scale, nulls, oid| array_of(nulls, oid, &[&one(scale)]);
        check(&Type::of(1231), &numerics(1, 0, 1700), &numerics(1, 1, 1700), [true, true]);
        check(&Type::of(1231), &numerics(1, 0, 1700), &numerics(2, 0, 1700), [false, true]);
        let row = |scale: i16, last: &[u8]| {
            let mut out = vec![0, 0, 0, 2];
            for (oid, value) in [(1700_i32, &one(scale)[..]), (25, last)] {
                out.extend_from_slice(&oid.to_be_bytes());
                out.extend_from_slice(&i32::try_from(value.len()).unwrap().to_be_bytes());
                out.extend_from_slice(value);
            }
            out
        };
        check(&Type::of(2249), &row(1, b"a"), &row(2, b"a"), [false, true]);
        check(&Type::of(2249), &row(1, b"a"), &row(1, b"b"), [false, false]);
    }

    #[test]
    fn text_and_binary_are_the_same_instant() {
        for (text, micros) in [
            ("2000-01-01 00:00:00+00", 0),
            ("1999-12-31 23:59:59.999999+00", -1),
            ("2024-02-29 12:34:56.5+00", 762_525_296_500_000),
            ("0001-01-01 00:00:00+00", -63_082_281_600_000_000),
            ("0001-12-31 23:00:00-01 BC", -63_082_281_600_000_000),
        ] {
            assert_eq!(iso_instant(text, true), Some(micros), "{text}");
        }
    }

    /// A row in a row in a row ...: as deep as a message allows.
    #[test]
    fn deep_values_end() {
        let mut value = b"x".to_vec();
        for _ in 0..2_000 {
            let mut outer = vec![0, 0, 0, 1];
            outer.extend_from_slice(&2249_i32.to_be_bytes());
            outer.extend_from_slice(&i32::try_from(value.len()).unwrap().to_be_bytes());
            outer.extend_from_slice(&value);
            value = outer;
        }
        let mut out = Vec::new();
        Type::of(2249).canonical(Format::Binary, &value, &lenient(), &mut out);
        assert!(out.len() < 2 * value.len());
        let mut other = value.clone();
        *other.last_mut().unwrap() = b'y';
        assert!(!Type::of(2249).near(Format::Binary, &value, &other, &lenient()));
    }
}
