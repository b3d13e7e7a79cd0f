//! Rewrites type and relation OIDs in place: they differ between the two databases.

use std::collections::HashMap;

/// Rewrites a RowDescription body: relation OID and type OID of every column. Stops at what is malformed.
pub fn row_description(body: &mut [u8], types: &HashMap<u32, u32>, classes: &HashMap<u32, u32>) {
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
pub fn list(body: &mut [u8], types: &HashMap<u32, u32>) {
    let Some((count, rest)) = body.split_first_chunk_mut::<2>() else { return };
    for oid in rest.chunks_exact_mut(4).take(usize::from(u16::from_be_bytes(*count))) {
        replace(oid, types);
    }
}

fn replace(oid: &mut [u8], map: &HashMap<u32, u32>) {
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

    #[test]
    fn lists_are_rewritten() {
        let mut got = [0, 2, 0, 0, 0, 20, 0, 0, 0, 23];
        list(&mut got, &HashMap::from([(20, 5)]));
        assert_eq!(got, [0, 2, 0, 0, 0, 5, 0, 0, 0, 23]);
    }
}
