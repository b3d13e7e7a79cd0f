//! Names of prepared statements: what a client means by one, and what a server connection knows.
//!
//! SQL-level PREPARE and the protocol's Parse share one namespace. With [`Naming::Content`] a statement
//! is called `cf_<number>` on servers, by what it says, so clients share it and never see one another's;
//! with [`Naming::Client`] (a session that keeps its server connections) it keeps its name.

use std::{cell::RefCell, collections::HashMap, hash::BuildHasherDefault, rc::Rc};

use bytes::BytesMut;

use super::pipeline::{Expect, Pipeline};
use crate::wire::frame;

/// What names on servers begin with under [`Naming::Content`].
pub const PREFIX: &str = "cf_";

/// Number of a statement that no client made: it is closed before the name is used.
pub const NOBODYS: u64 = u64::MAX;

/// The portal in which an SQL-level PREPARE is repeated.
const PORTAL: &[u8] = b"cf_prepare\0";

/// How statements are called on a server connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Naming {
    /// As the client calls them.
    Client,
    /// By content.
    Content,
}

/// A prepared statement; `P` is what the caller knows of its text.
#[derive(Debug)]
pub struct Prepared<P> {
    /// Unique per data thread; equal content has equal numbers under [`Naming::Content`].
    pub number: u64,
    /// Text of Parse, or of the whole PREPARE statement.
    pub sql: Box<[u8]>,
    /// Raw tail of Parse: count and OIDs of parameter types.
    pub types: Box<[u8]>,
    /// Where the name stands in `sql` when this is an SQL-level PREPARE.
    pub name_span: Option<std::ops::Range<usize>>,
    /// Type OIDs of its columns on the target, once they are known.
    pub columns: RefCell<Option<Rc<[u32]>>>,
    /// What executing it does.
    pub plan: P,
    /// What it is called on servers under [`Naming::Content`].
    pub content_name: Box<[u8]>,
}

impl<P> Prepared<P> {
    /// A statement of the protocol's Parse.
    pub fn new(number: u64, sql: &[u8], types: &[u8], plan: P) -> Self {
        let content_name = format!("{PREFIX}{number}").into_bytes().into();
        let columns = RefCell::default();
        Self { number, sql: sql.into(), types: types.into(), name_span: None, columns, plan, content_name }
    }

    /// What it is called on a server.
    pub fn server_name<'a>(&'a self, client_name: &'a [u8], naming: Naming) -> &'a [u8] {
        match naming {
            Naming::Content if !client_name.is_empty() => &self.content_name,
            Naming::Content | Naming::Client => client_name,
        }
    }

    /// Appends the messages that prepare it under `name`, and notes them.
    pub fn put(&self, name: &[u8], out: &mut BytesMut, known: &mut Known, pipeline: &mut Pipeline) {
        pipeline.sent(Expect::HiddenParse);
        let Some(span) = &self.name_span else {
            known.set(name, Some(self.number));
            frame::put_parse(out, name, &self.sql, &self.types);
            return;
        };
        known.set(b"", Some(NOBODYS));
        known.set(name, Some(self.number));
        frame::put_parse(out, b"", &renamed(&self.sql, span, name), &[0, 0]);
        // A portal of ours: the client may have bound the unnamed one in the same batch.
        for (tag, head, tail) in [(b'B', &b""[..], &[0; 7][..]), (b'E', b"", &[0; 4]), (b'C', b"P", b"")] {
            frame::put(out, tag, |b| [head, PORTAL, tail].iter().for_each(|part| b.extend_from_slice(part)));
        }
        pipeline.sent(Expect::HiddenBind);
        pipeline.sent(Expect::HiddenExecute);
        pipeline.sent(Expect::HiddenClosePortal);
    }
}

/// `sql` with the identifier at `span` replaced by `name`, quoted.
pub fn renamed(sql: &[u8], span: &std::ops::Range<usize>, name: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(sql.len() + name.len() + 2);
    text.extend_from_slice(&sql[..span.start]);
    text.push(b'"');
    for &b in name {
        if b == b'"' {
            text.push(b);
        }
        text.push(b);
    }
    text.push(b'"');
    text.extend_from_slice(&sql[span.end..]);
    text
}

/// Where the statement's name stands in the text of a lone PREPARE, EXECUTE or DEALLOCATE; `None` when it is not
/// where it is expected (then the session is pinned instead).
pub fn name_span(sql: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut at = skip_space(sql, 0);
    let verb = word(sql, at);
    let is = |range: &std::ops::Range<usize>, w: &str| sql[range.clone()].eq_ignore_ascii_case(w.as_bytes());
    if !["prepare", "execute", "deallocate"].iter().any(|w| is(&verb, w)) {
        return None;
    }
    at = skip_space(sql, verb.end);
    if is(&verb, "deallocate") {
        let maybe = word(sql, at);
        let next = skip_space(sql, maybe.end);
        if is(&maybe, "prepare") && sql.get(next).is_some_and(|&b| b != b';') {
            at = next;
        }
    }
    if sql.get(at) == Some(&b'"') {
        let mut end = at + 1;
        loop {
            match (sql.get(end), sql.get(end + 1)) {
                (Some(b'"'), Some(b'"')) => end += 2,
                (Some(b'"'), _) => return Some(at..end + 1),
                (Some(_), _) => end += 1,
                (None, _) => return None,
            }
        }
    }
    let name = word(sql, at);
    (!name.is_empty()).then_some(name)
}

fn word(sql: &[u8], at: usize) -> std::ops::Range<usize> {
    let is_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$') || !b.is_ascii();
    let len = sql[at..].iter().take_while(|b| is_word(b)).count();
    at..at + len
}

/// Skips white space and comments (block comments nest).
fn skip_space(sql: &[u8], mut at: usize) -> usize {
    loop {
        match sql.get(at..) {
            Some([b, ..]) if b.is_ascii_whitespace() => at += 1,
            Some([b'-', b'-', ..]) => at += sql[at..].iter().take_while(|&&b| b != b'\n').count(),
            Some([b'/', b'*', ..]) => {
                let mut depth = 1;
                at += 2;
                while depth > 0 {
                    match sql.get(at..) {
                        Some([b'/', b'*', ..]) => (depth, at) = (depth + 1, at + 2),
                        Some([b'*', b'/', ..]) => (depth, at) = (depth - 1, at + 2),
                        Some([_, ..]) => at += 1,
                        _ => return sql.len(),
                    }
                }
            }
            _ => return at.min(sql.len()),
        }
    }
}

/// A name, and what it meant before.
type Before<P> = (Box<[u8]>, Option<Rc<Prepared<P>>>);

/// What a client's names mean. Changes are undone when the server turns out to have skipped the message.
#[derive(Debug)]
pub struct Registry<P> {
    named: HashMap<Box<[u8]>, Rc<Prepared<P>>, BuildHasherDefault<Fnv>>,
    unnamed: Option<Rc<Prepared<P>>>,
    undo: Vec<Before<P>>,
    /// Names that DEALLOCATE took away while messages that use them were outstanding: errors may speak of them.
    gone: Vec<(Box<[u8]>, u64)>,
}

impl<P> Default for Registry<P> {
    fn default() -> Self {
        Self { named: HashMap::default(), unnamed: None, undo: Vec::new(), gone: Vec::new() }
    }
}

impl<P> Registry<P> {
    /// The statement a name stands for.
    pub fn get(&self, name: &[u8]) -> Option<&Rc<Prepared<P>>> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.named.get(name) }
    }

    /// Gives a name a meaning, or takes it away; remembered until [`Registry::settle`].
    pub fn set(&mut self, name: &[u8], statement: Option<Rc<Prepared<P>>>) {
        let old = self.put(name, statement);
        self.undo.push((name.into(), old));
    }

    /// A message was sent that leaves everything as it is (or fails).
    pub fn touch(&mut self, name: &[u8]) {
        let now = self.get(name).cloned();
        self.undo.push((name.into(), now));
    }

    fn put(&mut self, name: &[u8], statement: Option<Rc<Prepared<P>>>) -> Option<Rc<Prepared<P>>> {
        if name.is_empty() {
            return std::mem::replace(&mut self.unnamed, statement);
        }
        match statement {
            Some(statement) => self.named.insert(name.into(), statement),
            None => self.named.remove(name),
        }
    }

    /// The last `n` changes never happened.
    pub fn undo(&mut self, n: usize) {
        for _ in 0..n.min(self.undo.len()) {
            if let Some((name, old)) = self.undo.pop() {
                self.put(&name, old);
            }
        }
    }

    /// Everything sent so far was answered.
    pub fn settle(&mut self) {
        self.undo.clear();
        self.gone.clear();
    }

    /// How many changes are remembered.
    pub fn unsettled(&self) -> usize {
        self.undo.len()
    }

    /// Everything but the last `pending` changes was answered.
    pub fn settle_before(&mut self, pending: usize) {
        self.undo.drain(..self.undo.len().saturating_sub(pending));
        self.gone.clear();
    }

    /// A simple Query, or a Parse that fails, destroys the unnamed statement.
    pub fn drop_unnamed(&mut self) {
        self.unnamed = None;
    }

    /// The name in the oldest of the last `pending` changes.
    pub fn pending_name(&self, pending: usize) -> Option<&[u8]> {
        let at = self.undo.len().checked_sub(pending)?;
        self.undo.get(at).map(|(name, _)| &**name)
    }

    /// A change that the server has carried out before the last `pending` ones: no error can undo it.
    pub fn set_before(&mut self, pending: usize, name: &[u8], statement: Option<Rc<Prepared<P>>>) {
        let from = self.undo.len().saturating_sub(pending);
        if let Some((_, old)) = self.undo[from..].iter_mut().find(|(n, _)| **n == *name) {
            *old = statement;
            return;
        }
        let old = self.put(name, statement);
        self.gone.extend(old.map(|s| (name.into(), s.number)));
    }

    /// DEALLOCATE ALL or DISCARD ALL was carried out, before the last `pending` changes. Neither touches the unnamed
    /// statement.
    pub fn clear_before(&mut self, pending: usize) {
        let from = self.undo.len().saturating_sub(pending);
        let mut pending = self.undo.split_off(from);
        for (name, statement) in std::mem::take(&mut self.named) {
            if pending.iter().any(|(n, _)| *n == name) {
                self.named.insert(name, statement);
            } else {
                self.gone.push((name, statement.number));
            }
        }
        for i in 0..pending.len() {
            let (earlier, rest) = pending.split_at_mut(i);
            let (name, old) = &mut rest[0];
            if !name.is_empty() && !earlier.iter().any(|(n, _)| n == name) {
                *old = None;
            }
        }
        self.undo = pending;
    }

    /// A name that stands for the statement of this number.
    pub fn name_of(&self, number: u64) -> Option<&[u8]> {
        let named = self.named.iter().find(|(_, s)| s.number == number).map(|(name, _)| &**name);
        named.or_else(|| self.gone.iter().find(|(_, n)| *n == number).map(|(name, _)| &**name))
    }

    /// All named statements.
    pub fn named(&self) -> impl Iterator<Item = (&[u8], &Rc<Prepared<P>>)> {
        self.named.iter().map(|(n, s)| (&**n, s))
    }

    /// How many names are in use.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// Is no name in use?
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

/// What one server connection knows.
///
/// Every message that changes it is noted with its old meaning, so that what an error made the server skip
/// can be undone; see [`super::pipeline::Expect::changes_server`].
#[derive(Debug, Default)]
pub struct Known {
    by_name: HashMap<Box<[u8]>, (u64, u64), BuildHasherDefault<Fnv>>,
    undo: Vec<(Box<[u8]>, Option<u64>)>,
    clock: u64,
}

impl Known {
    /// The number of the statement that `name` stands for on the server; a hit counts as use.
    pub fn get(&mut self, name: &[u8]) -> Option<u64> {
        self.clock += 1;
        let clock = self.clock;
        self.by_name.get_mut(name).map(|(number, used)| {
            *used = clock;
            *number
        })
    }

    /// The server will know `name`, or no longer know it.
    pub fn set(&mut self, name: &[u8], number: Option<u64>) {
        let old = self.put(name, number);
        self.undo.push((name.into(), old));
    }

    /// A message was sent that leaves everything as it is (or fails).
    pub fn touch(&mut self, name: &[u8]) {
        let now = self.by_name.get(name).map(|(n, _)| *n);
        self.undo.push((name.into(), now));
    }

    fn put(&mut self, name: &[u8], number: Option<u64>) -> Option<u64> {
        self.clock += 1;
        let clock = self.clock;
        let Some(number) = number else { return self.by_name.remove(name).map(|(n, _)| n) };
        if let Some(entry) = self.by_name.get_mut(name) {
            return Some(std::mem::replace(entry, (number, clock)).0);
        }
        self.by_name.insert(name.into(), (number, clock));
        None
    }

    /// The last `n` changes never happened.
    pub fn undo(&mut self, n: usize) {
        for _ in 0..n.min(self.undo.len()) {
            if let Some((name, old)) = self.undo.pop() {
                self.put(&name, old);
            }
        }
    }

    /// Everything sent so far was answered.
    pub fn settle(&mut self) {
        self.undo.clear();
    }

    /// See [`Registry::settle_before`].
    pub fn settle_before(&mut self, pending: usize) {
        self.undo.drain(..self.undo.len().saturating_sub(pending));
    }

    /// Gone without an undo (a simple Query destroys the unnamed statement; SQL-level DEALLOCATE).
    pub fn remove(&mut self, name: &[u8]) {
        self.by_name.remove(name);
    }

    /// See [`Registry::pending_name`].
    pub fn pending_name(&self, pending: usize) -> Option<&[u8]> {
        let at = self.undo.len().checked_sub(pending)?;
        self.undo.get(at).map(|(name, _)| &**name)
    }

    /// See [`Registry::set_before`].
    pub fn set_before(&mut self, pending: usize, name: &[u8], number: Option<u64>) {
        let from = self.undo.len().saturating_sub(pending);
        match self.undo[from..].iter_mut().find(|(n, _)| **n == *name) {
            Some((_, old)) => *old = number,
            None => drop(self.put(name, number)),
        }
    }

    /// See [`Registry::clear_before`].
    pub fn clear_before(&mut self, pending: usize) {
        let from = self.undo.len().saturating_sub(pending);
        let mut pending = self.undo.split_off(from);
        self.by_name.retain(|name, _| name.is_empty() || pending.iter().any(|(n, _)| n == name));
        for i in 0..pending.len() {
            let (earlier, rest) = pending.split_at_mut(i);
            let (name, old) = &mut rest[0];
            if !name.is_empty() && !earlier.iter().any(|(n, _)| n == name) {
                *old = None;
            }
        }
        self.undo = pending;
    }

    /// It knows nothing.
    pub fn clear(&mut self) {
        self.by_name.clear();
        self.undo.clear();
    }

    /// The statement to close when more than `limit` are known: the one unused for longest.
    pub fn surplus(&self, limit: usize) -> Option<Box<[u8]>> {
        if self.by_name.len() <= limit {
            return None;
        }
        let named = self.by_name.iter().filter(|(n, _)| !n.is_empty());
        named.min_by_key(|(_, (_, used))| *used).map(|(name, _)| name.clone())
    }
}

/// FNV-1a: names are short and hostile ones only slow down their own connection.
#[derive(Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl std::hash::Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found() {
        #[track_caller]
        fn check(sql: &str, want: Option<&str>) {
            assert_eq!(name_span(sql.as_bytes()).map(|s| &sql[s]), want, "{sql}");
        }
        check("PREPARE d AS SELECT 1", Some("d"));
        check(" /* a /* b */ */ prepare\n--x\n d(int) as select $1", Some("d"));
        check("EXECUTE \"a b\"(1)", Some("\"a b\""));
        check("EXECUTE \"a\"\"b\"", Some("\"a\"\"b\""));
        check("DEALLOCATE PREPARE x", Some("x"));
        check("DEALLOCATE x;", Some("x"));
        check("DEALLOCATE prepare", Some("prepare"));
        check("SELECT 1", None);
        check("EXECUTE", None);
        check("EXECUTE \"a", None);
    }

    #[test]
    fn renaming_quotes() {
        let sql = b"EXECUTE d(1)";
        let span = name_span(sql).expect("a name");
        assert_eq!(renamed(sql, &span, b"cf_1"), b"EXECUTE \"cf_1\"(1)");
    }

    #[test]
    fn undo_restores_the_old_meaning() {
        let statement = |number| Rc::new(Prepared::new(number, b"", b"", ()));
        let mut r = Registry::default();
        r.set(b"a", Some(statement(1)));
        r.settle();
        r.set(b"a", None);
        r.set(b"a", Some(statement(2)));
        r.set(b"", Some(statement(3)));
        r.undo(3);
        assert_eq!(r.get(b"a").map(|s| s.number), Some(1));
        assert!(r.get(b"").is_none());
    }

    #[test]
    fn what_the_server_did_before_is_not_undone() {
        let mut known = Known::default();
        for (name, number) in [(&b"a"[..], 1), (b"b", 2), (b"", 3)] {
            known.set(name, Some(number));
        }
        known.set(b"a", None); // outstanding: Close a, Parse a, Parse c
        known.set(b"a", Some(4));
        known.set(b"c", Some(5));
        known.clear_before(3);
        assert_eq!(
            (known.get(b"a"), known.get(b"b"), known.get(b""), known.get(b"c")),
            (Some(4), None, Some(3), Some(5))
        );
        known.set_before(3, b"a", Some(6));
        known.set_before(3, b"d", Some(7));
        assert_eq!(known.pending_name(1), Some(&b"c"[..]));
        known.undo(3);
        assert_eq!((known.get(b"a"), known.get(b"c"), known.get(b"d")), (Some(6), None, Some(7)));
    }

    #[test]
    fn the_least_used_statement_makes_room() {
        let mut known = Known::default();
        known.set(b"a", Some(1));
        known.set(b"b", Some(2));
        assert_eq!(known.get(b"a"), Some(1));
        known.set(b"c", Some(3));
        assert_eq!(known.surplus(3), None);
        assert_eq!(known.surplus(2), Some(b"b"[..].into()));
        known.settle();
        known.set(b"a", None);
        known.set(b"b", Some(4));
        known.undo(2);
        assert_eq!((known.get(b"a"), known.get(b"b")), (Some(1), Some(2)));
    }
}
