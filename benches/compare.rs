//! What comparing costs: the digest of what is relayed, and the exact look at two answers.

use crossfade::compare::{
    digest::Digest,
    order::{Found, compare},
    record::Recorder,
    rules::{Json, Numeric, Rules},
};
use divan::counter::{BytesCount, ItemsCount};

fn main() {
    divan::main();
}

/// Bytes of a value; rows have two.
const SIZES: [usize; 3] = [8, 100, 8_000];
const ROWS: usize = 1_000;

/// Rows of an id, a numeric and a text of `size` bytes.
fn rows(size: usize) -> Vec<Vec<u8>> {
    let row = |i: usize| {
        let mut body = vec![0, 3];
        for value in [i.to_string(), format!("{i}.50"), "x".repeat(size)] {
            body.extend_from_slice(&u32::try_from(value.len()).expect("short").to_be_bytes());
            body.extend_from_slice(value.as_bytes());
        }
        body
    };
    (0..ROWS).map(row).collect()
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short");
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// As it comes from a socket: 16 KiB at a time.
#[divan::bench(args = SIZES)]
fn digest(bencher: divan::Bencher<'_, '_>, size: usize) {
    let answer: Vec<u8> = rows(size).iter().flat_map(|row| frame(b'D', row)).collect();
    bencher.counter(BytesCount::new(answer.len())).counter(ItemsCount::new(ROWS)).bench(|| {
        let mut digest = Digest::new(1);
        for bytes in answer.chunks(16 << 10) {
            digest.feed(divan::black_box(bytes));
        }
        digest.finish()
    });
}

/// A digest of one short row, as point reads have it.
#[divan::bench]
fn digest_of_one_row(bencher: divan::Bencher<'_, '_>) {
    let answer = [frame(b'D', &rows(8)[0]), frame(b'C', b"SELECT 1\0"), frame(b'Z', b"I")].concat();
    bencher.bench(|| {
        let mut digest = Digest::new(1);
        digest.feed(divan::black_box(&answer));
        digest.finish()
    });
}

#[divan::bench(args = SIZES)]
fn exact(bencher: divan::Bencher<'_, '_>, size: usize) {
    record(bencher, size, &Rules::default());
}

#[divan::bench(args = SIZES)]
fn exact_by_value(bencher: divan::Bencher<'_, '_>, size: usize) {
    record(bencher, size, &Rules { numeric: Numeric::Value, json: Json::Semantic, ..Rules::default() });
}

/// Both sides recorded and compared.
fn record(bencher: divan::Bencher<'_, '_>, size: usize, rules: &Rules) {
    let rows = rows(size);
    let mut description = vec![0, 3];
    for (name, oid) in [("id", 23_u32), ("x", 1_700), ("name", 25)] {
        description.extend_from_slice(name.as_bytes());
        description.extend_from_slice(&[0; 7]);
        description.extend_from_slice(&oid.to_be_bytes());
        description.extend_from_slice(&[0; 8]);
    }
    let key = ["id".to_owned()];
    let bytes = rows.iter().map(Vec::len).sum::<usize>();
    bencher.counter(BytesCount::new(2 * bytes)).counter(ItemsCount::new(2 * ROWS)).bench(|| {
        let [a, s] = [(); 2].map(|()| {
            let mut recorder = Recorder::new(rules, &key, None, 1 << 20, 1);
            recorder.take(b'T', &description);
            for row in &rows {
                recorder.take(b'D', divan::black_box(row));
            }
            recorder.finish()
        });
        let found = compare(&a, &s, true, rules);
        assert_eq!(found, Found::Same);
    });
}
