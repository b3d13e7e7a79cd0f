//! Rewrites type and relation OIDs in place: they differ between the two databases.

use std::collections::HashMap;

/// OIDs of one side, and what they are on the other.
pub type Oids = HashMap<u32, u32>;

/// Rewrites a RowDescription body: relation OID and type OID of every column. Stops at what is malformed.
pub fn row_description(body: &mut [u8], types: &Oids, classes: &Oids) {
    let Some((count, mut rest)) = body.split_first_chunk_mut::<2>() else { return };
    for _ in 0..u16::from_be_bytes(*count) {
        let Some(end) = rest.iter().position(|&b| b == 0) else { return };
        let Some((column, after)) = rest[end + 1..].split_first_chunk_mut::<18>() else { return };
        replace(&mut column[..4], classes);
        replace(&mut column[6..10], types);
        rest = after;
    }
}

/// Rewrites a ParameterDescription body, or the tail of a Parse: a count and OIDs.
pub fn list(body: &mut [u8], types: &Oids) {
    let Some((count, rest)) = body.split_first_chunk_mut::<2>() else { return };
    for oid in rest.chunks_exact_mut(4).take(usize::from(u16::from_be_bytes(*count))) {
        replace(oid, types);
    }
}

/// What a binary value with OIDs in it looks like (`array_send`, `record_send`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// Dimensions, flags, the OID of the elements, then bounds and elements.
    Array,
    /// A count, then OID and value of each column.
    Composite,
}

/// Types whose binary values hold OIDs, and what those OIDs become.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Nested {
    /// By OID, as the values come.
    pub shapes: HashMap<u32, Shape>,
    /// OID -> OID.
    pub types: HashMap<u32, u32>,
}

impl Nested {
    /// The shapes of a row's columns: `None` when nothing in it would change. `types` as they come; `formats` as in
    /// Bind (none: text; one: for all; else one each).
    pub fn columns(&self, types: &[u32], formats: &[u16]) -> Option<Vec<Option<Shape>>> {
        let binary = |i: usize| match formats {
            [] => false,
            [all] => *all == 1,
            each => each.get(i) == Some(&1),
        };
        let shape = |(i, oid): (usize, &u32)| self.shapes.get(oid).copied().filter(|_| binary(i));
        let columns: Vec<_> = types.iter().enumerate().map(shape).collect();
        columns.iter().any(Option::is_some).then_some(columns)
    }

    /// Rewrites a DataRow body. Stops at what is malformed.
    pub fn data_row(&self, body: &mut [u8], columns: &[Option<Shape>]) {
        let Some((_, mut rest)) = body.split_first_chunk_mut::<2>() else { return };
        for shape in columns {
            let Some((value, after)) = split_value(rest) else { return };
            if let Some(shape) = shape {
                self.value(value, *shape, 0);
            }
            rest = after;
        }
    }

    fn value(&self, value: &mut [u8], shape: Shape, depth: usize) {
        // Deeper than any real type; a hostile server must not overflow the stack.
        if depth > 64 {
            return;
        }
        // What is malformed stays as it is from there on.
        let _ = match shape {
            Shape::Array => self.array(value, depth),
            Shape::Composite => self.composite(value, depth),
        };
    }

    fn array(&self, value: &mut [u8], depth: usize) -> Option<()> {
        let (head, rest) = value.split_at_mut_checked(12)?;
        let dimensions = usize::try_from(read(&head[..4])?).ok()?;
        let element = read(&head[8..])?;
        replace(&mut head[8..], &self.types);
        let shape = self.shapes.get(&element)?;
        let (_, mut rest) = rest.split_at_mut_checked(dimensions.checked_mul(8)?)?;
        while !rest.is_empty() {
            let (inner, after) = split_value(rest)?;
            self.value(inner, *shape, depth + 1);
            rest = after;
        }
        Some(())
    }

    fn composite(&self, value: &mut [u8], depth: usize) -> Option<()> {
        let (_, mut rest) = value.split_at_mut_checked(4)?;
        while !rest.is_empty() {
            let (oid, after) = rest.split_at_mut_checked(4)?;
            let column = read(oid)?;
            replace(oid, &self.types);
            let (inner, after) = split_value(after)?;
            if let Some(shape) = self.shapes.get(&column) {
                self.value(inner, *shape, depth + 1);
            }
            rest = after;
        }
        Some(())
    }
}

/// A length and as many bytes; -1 is NULL.
fn split_value(rest: &mut [u8]) -> Option<(&mut [u8], &mut [u8])> {
    let (length, rest) = rest.split_first_chunk_mut::<4>()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
    rest.split_at_mut_checked(length)
}

fn read(oid: &[u8]) -> Option<u32> {
    oid.try_into().ok().map(u32::from_be_bytes)
}

/// The type OIDs of a RowDescription body; `None` when it is malformed.
pub fn types_of(body: &[u8]) -> Option<Vec<u32>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut types = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let end = rest.iter().position(|&b| b == 0)?;
        let (column, after) = rest[end + 1..].split_first_chunk::<18>()?;
        types.push(read(&column[6..10])?);
        rest = after;
    }
    Some(types)
}

/// Result formats at the end of a Bind body behind portal and statement name; `None` when it is malformed.
pub fn result_formats(body: &[u8]) -> Option<Vec<u16>> {
    let (count, rest) = body.split_first_chunk::<2>()?;
    let mut rest = rest.get(2 * usize::from(u16::from_be_bytes(*count))..)?;
    let (values, after) = rest.split_first_chunk::<2>()?;
    rest = after;
    for _ in 0..u16::from_be_bytes(*values) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after.get(usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0)..)?;
    }
    let (_, formats) = rest.split_first_chunk::<2>()?;
    Some(formats.chunks_exact(2).map(|f| u16::from_be_bytes([f[0], f[1]])).collect())
}

fn replace(oid: &mut [u8], map: &Oids) {
    let Ok(bytes) = <[u8; 4]>::try_from(&*oid) else { return };
    if let Some(new) = map.get(&u32::from_be_bytes(bytes)) {
        oid.copy_from_slice(&new.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_rewritten() {
        let column = |class: u32, oid: u32| {
            let mut c = b"col\0".to_vec();
            c.extend(class.to_be_bytes());
            c.extend(1_u16.to_be_bytes());
            c.extend(oid.to_be_bytes());
            c.extend([0, 4, 0, 0, 0, 0, 0, 0]);
            c
        };
        let body = |a, b| [&2_u16.to_be_bytes()[..], &column(a, b), &column(7, 23)].concat();
        let mut got = body(10, 20);
        row_description(&mut got, &HashMap::from([(20, 200)]), &HashMap::from([(10, 100)]));
        assert_eq!(got, body(100, 200));
        row_description(&mut got[..9], &HashMap::new(), &HashMap::new());
    }

    fn value(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn array(element: u32, values: &[&[u8]]) -> Vec<u8> {
        let head = [1, 0, element, u32::try_from(values.len()).unwrap(), 1].map(u32::to_be_bytes).concat();
        [head, values.iter().flat_map(|v| value(v)).collect()].concat()
    }

    fn composite(columns: &[(u32, &[u8])]) -> Vec<u8> {
        let count = u32::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        let each = columns.iter().flat_map(|(oid, v)| [oid.to_be_bytes().to_vec(), value(v)].concat());
        [count, each.collect()].concat()
    }

    #[test]
    fn values_are_rewritten_at_any_depth() {
        // 10 is an enum, 11 its array, 20 a composite, 21 its array.
        let shapes = HashMap::from([(11, Shape::Array), (20, Shape::Composite), (21, Shape::Array)]);
        let nested = Nested { shapes, types: HashMap::from([(10, 110), (11, 111), (20, 120), (21, 121)]) };
        let row = |f: fn(u32) -> u32| {
            let inner = composite(&[(23, &[0, 0, 0, 7]), (f(11), &array(f(10), &[b"a", b"b"]))]);
            let columns =
                [value(&array(f(10), &[b"x"])), value(&array(f(20), &[&inner, &inner])), value(b"plain")];
            let null = [255; 4].to_vec();
            [0_u16.to_be_bytes().to_vec(), columns.concat(), null].concat()
        };
        let columns = nested.columns(&[11, 21, 25, 11], &[1]).expect("something changes");
        let mut got = row(|oid| oid);
        nested.data_row(&mut got, &columns);
        assert_eq!(got, row(|oid| oid + 100));
        assert_eq!(nested.columns(&[11, 25], &[]), None);
        assert_eq!(nested.columns(&[11, 25], &[0, 1]), None);
        for cut in 0..got.len() {
            nested.data_row(&mut row(|oid| oid)[..cut], &columns); // malformed: no panic
        }
    }

    #[test]
    fn formats_of_a_bind() {
        let body = [0, 1, 0, 1, 0, 2, 0, 0, 0, 1, 9, 255, 255, 255, 255, 0, 2, 0, 0, 0, 1];
        assert_eq!(result_formats(&body), Some(vec![0, 1]));
        assert_eq!(result_formats(&body[..10]), None);
        assert_eq!(result_formats(&[0, 0, 0, 0, 0, 0]), Some(vec![]));
    }

    #[test]
    fn lists_are_rewritten() {
        let mut got = [0, 2, 0, 0, 0, 20, 0, 0, 0, 23];
        list(&mut got, &HashMap::from([(20, 5)]));
        assert_eq!(got, [0, 2, 0, 0, 0, 5, 0, 0, 0, 23]);
    }
}
