//! Messages of a server, and how they are shown and compared.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// A backend message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) body: Vec<u8>,
}

impl Frame {
    /// Fields of an `ErrorResponse` or `NoticeResponse`.
    pub(crate) fn fields(&self) -> BTreeMap<char, String> {
        self.body
            .split(|&b| b == 0)
            .filter(|field| !field.is_empty())
            .map(|field| (field[0] as char, String::from_utf8_lossy(&field[1..]).into_owned()))
            .collect()
    }

    /// SQLSTATE of an `ErrorResponse` or `NoticeResponse`.
    pub(crate) fn sqlstate(&self) -> String {
        self.fields().remove(&'C').unwrap_or_default()
    }

    /// `S(name)`, `C[SELECT_1]`, `ZI`, `E(42601)`, `E!(57P01)` when fatal; else the letter.
    pub(crate) fn short(&self) -> String {
        let text =
            || String::from_utf8_lossy(self.body.split(|&b| b == 0).next().unwrap_or(&[])).replace(' ', "_");
        match self.kind {
            b'Z' => format!("Z{}", self.body.first().map_or('?', |&b| b as char)),
            b'C' => format!("C[{}]", text()),
            b'S' => format!("S({})", text()),
            b'N' => format!("N({})", self.sqlstate()),
            b'E' => {
                let fatal = self.fields().get(&'V').is_some_and(|v| v == "FATAL" || v == "PANIC");
                format!("E{}({})", if fatal { "!" } else { "" }, self.sqlstate())
            }
            b'R' => format!("R{}", i32::from_be_bytes(self.body[..4].try_into().expect("four bytes"))),
            b'K' => format!("K({})", self.body.len() - 4),
            kind => (kind as char).to_string(),
        }
    }

    /// Everything that must be equal on both paths: F, L and R of an error are the server's source lines, keys and
    /// process ids are numbers without meaning, SCRAM messages are random.
    pub(crate) fn full(&self) -> String {
        match self.kind {
            // What is no protocol at all crossfade may answer in its own words.
            b'E' if self.sqlstate() == "08P01" => self.short(),
            b'E' | b'N' => {
                let mut fields = self.fields();
                for code in ['F', 'L', 'R'] {
                    if let Some(text) = fields.get_mut(&code) {
                        text.clear();
                    }
                }
                if let Some(context) = fields.get_mut(&'W') {
                    *context = without_temp_number(context);
                }
                format!("{} {fields:?}", self.short())
            }
            b'T' => format!("T {}", printable(&self.without_table_oids())),
            b'K' | b'R' => self.short(),
            b'A' => format!("A {}", printable(&self.body[4..])),
            _ => format!("{} {}", self.short(), printable(&self.body)),
        }
    }

    /// Body of a `RowDescription` with the OIDs of tables that are not Postgres' own made equal: a table made anew gets
    /// another. Types keep theirs.
    fn without_table_oids(&self) -> Vec<u8> {
        let mut body = self.body.clone();
        let mut at = 2;
        while at < body.len() {
            at += body[at..].iter().position(|&b| b == 0).map_or(body.len(), |n| n + 1);
            if let Some(oid) = body.get_mut(at..at + 4)
                && u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]) >= 16384
            {
                oid.copy_from_slice(b"TABL");
            }
            at += 18;
        }
        body
    }

    /// Columns of a `DataRow`.
    pub(crate) fn columns(&self) -> Vec<Option<String>> {
        let mut rest = &self.body[2..];
        let mut columns = Vec::new();
        while rest.len() >= 4 {
            let length = i32::from_be_bytes(rest[..4].try_into().expect("four bytes"));
            rest = &rest[4..];
            match usize::try_from(length) {
                Err(_) => columns.push(None),
                Ok(length) => {
                    columns.push(Some(String::from_utf8_lossy(&rest[..length]).into_owned()));
                    rest = &rest[length..];
                }
            }
        }
        columns
    }
}

/// `pg_temp_7.f` -> `pg_temp.f`: the number is the backend's.
fn without_temp_number(text: &str) -> String {
    let mut parts = text.split("pg_temp_");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += "pg_temp";
        out += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    out
}

fn printable(bytes: &[u8]) -> String {
    let digest = |bytes: &[u8]| Sha256::digest(bytes)[..4].iter().fold(0u32, |n, &b| n << 8 | u32::from(b));
    if bytes.len() > 400 {
        format!("<{} bytes, {:08x}>", bytes.len(), digest(bytes))
    } else {
        bytes.escape_ascii().to_string()
    }
}

/// Golden form of a transcript: `1 2 T D C[SELECT_1] ZI`.
pub(crate) fn short(frames: &[Frame]) -> String {
    frames.iter().map(Frame::short).collect::<Vec<_>>().join(" ")
}
