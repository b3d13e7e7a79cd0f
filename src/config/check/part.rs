//! Typed access to a tree that conforms to the schema: what is written, or the default.

use std::{cell::RefCell, path::PathBuf, time::Duration};

use super::{Contents, Inputs, Mistake, Place, file};
use crate::{
    config::{
        file::{Node, Table, Value},
        schema::{Key, Kind, SECTIONS, Unset},
    },
    route::policy::Share,
};

/// One run of the checks: the tree, and what was found so far.
pub(super) struct Checker<'a> {
    pub(super) inputs: &'a Inputs<'a>,
    root: Table,
    found: RefCell<Found>,
}

#[derive(Default)]
struct Found {
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
    files: Vec<PathBuf>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(inputs: &'a Inputs<'a>, root: Table, mistakes: Vec<Mistake>) -> Self {
        Self { inputs, root, found: RefCell::new(Found { mistakes, ..Found::default() }) }
    }

    pub(super) fn finish(self) -> (Vec<Mistake>, Vec<Mistake>, Vec<PathBuf>) {
        let Found { mistakes, warnings, mut files } = self.found.into_inner();
        files.sort();
        files.dedup();
        (mistakes, warnings, files)
    }

    /// The table `[name]`, written or not.
    pub(super) fn section(&self, name: &'static str) -> Part<'_> {
        self.written_section(name).unwrap_or_else(|| {
            let place = Place { line: 1, column: 1, ..self.whole() };
            Part { checker: self, keys: keys_of(name), table: None, path: name.to_owned(), place }
        })
    }

    /// The table `[name]` when it is there.
    pub(super) fn written_section(&self, name: &'static str) -> Option<Part<'_>> {
        let entry = self.root.0.iter().find(|e| e.key == name)?;
        let Value::Table(table) = &entry.node.value else { return None };
        let place = entry.place.clone();
        Some(Part { checker: self, keys: keys_of(name), table: Some(table), path: name.to_owned(), place })
    }

    /// The tables `[[name]]`.
    pub(super) fn tables(&self, name: &'static str) -> Vec<Part<'_>> {
        self.tables_in(&self.root, name)
    }

    /// The tables `[[name]]` of another file.
    pub(super) fn tables_in<'t>(&'t self, root: &'t Table, name: &'static str) -> Vec<Part<'t>> {
        let Some(Value::List(list)) = root.get(name).map(|n| &n.value) else { return Vec::new() };
        let part = |node: &'t Node| match &node.value {
            Value::Table(table) => Some(Part {
                checker: self,
                keys: keys_of(name),
                table: Some(table),
                path: name.to_owned(),
                place: node.place.clone(),
            }),
            Value::Text(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::List(_)
            | Value::Other => None,
        };
        list.iter().filter_map(part).collect()
    }

    pub(super) fn whole(&self) -> Place {
        Place::whole(&self.inputs.path.to_string_lossy())
    }

    pub(super) fn found(&self, mistakes: Vec<Mistake>) {
        self.found.borrow_mut().mistakes.extend(mistakes);
    }
}

fn keys_of(name: &str) -> &'static [Key] {
    SECTIONS.iter().find(|s| s.name == name).expect("a name from the schema").keys
}

/// One table of the file.
pub(super) struct Part<'a> {
    pub(super) checker: &'a Checker<'a>,
    keys: &'static [Key],
    table: Option<&'a Table>,
    path: String,
    pub(super) place: Place,
}

impl Part<'_> {
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.written(key).is_some()
    }

    fn written(&self, key: &str) -> Option<&Node> {
        self.table.and_then(|t| t.get(key))
    }

    fn value(&self, key: &str) -> Option<Value> {
        if let Some(node) = self.written(key) {
            return Some(node.value.clone());
        }
        let key = self.keys.iter().find(|k| k.name == key).expect("a key from the schema");
        match key.unset {
            Unset::Is(default) => {
                let root = file::parse(&format!("v = {default}"), "default", &mut Vec::new());
                root.get("v").map(|n| n.value.clone())
            }
            Unset::Required | Unset::Nothing => None,
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        if let Some(Value::Text(text)) = self.value(key) { Some(text) } else { None }
    }

    /// A path, absolute or from the directory of the configuration file.
    pub(super) fn path(&self, key: &str) -> Option<PathBuf> {
        let base = self.checker.inputs.path.parent();
        self.text(key).map(|text| base.map_or_else(|| PathBuf::from(&text), |dir| dir.join(&text)))
    }

    pub(super) fn choice(&self, key: &str) -> String {
        self.text(key).expect("choices have defaults")
    }

    pub(super) fn optional_number(&self, key: &str) -> Option<usize> {
        if let Some(Value::Int(i)) = self.value(key) { usize::try_from(i).ok() } else { None }
    }

    pub(super) fn number(&self, key: &str) -> usize {
        self.optional_number(key).expect("numbers have defaults and bounds")
    }

    /// A number from 0 to 1.
    pub(super) fn fraction(&self, key: &str) -> f64 {
        match self.value(key) {
            Some(Value::Float(f)) => f,
            Some(Value::Int(1)) => 1.0,
            _ => 0.0,
        }
    }

    /// The same in basis points.
    pub(super) fn fraction_share(&self, key: &str) -> Share {
        let points = (self.fraction(key) * 10_000.0).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 10 000")]
        Share::new(points as u16).unwrap_or(Share::ALL)
    }

    pub(super) fn switch(&self, key: &str) -> bool {
        matches!(self.value(key), Some(Value::Bool(true)))
    }

    pub(super) fn duration(&self, key: &str) -> Duration {
        self.text(key).and_then(|t| file::duration(&t)).expect("durations have defaults and were checked")
    }

    /// Share of the target.
    pub(super) fn share(&self, key: &str) -> Share {
        let Some(Value::Table(table)) = self.value(key) else { return Share::NONE };
        file::weights(&table).ok().and_then(Share::new).expect("weights were checked")
    }

    pub(super) fn texts(&self, key: &str) -> Vec<(String, Place)> {
        let Some(Value::List(list)) = self.value(key) else { return Vec::new() };
        let item = |node: Node| match node.value {
            Value::Text(text) => {
                Some((text, if self.is_written(key) { node.place } else { self.place.clone() }))
            }
            Value::Int(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::List(_)
            | Value::Table(_)
            | Value::Other => None,
        };
        list.into_iter().filter_map(item).collect()
    }

    /// An inline table, when it is there.
    pub(super) fn inner(&self, key: &str) -> Option<Part<'_>> {
        let node = self.written(key)?;
        let Kind::Inner(keys) = self.keys.iter().find(|k| k.name == key)?.kind else { return None };
        let Value::Table(table) = &node.value else { return None };
        let path = format!("{}.{key}", self.path);
        Some(Part { checker: self.checker, keys, table: Some(table), path, place: node.place.clone() })
    }

    fn place_of(&self, key: &str) -> Place {
        self.written(key).map_or_else(|| self.place.clone(), |n| n.place.clone())
    }

    pub(super) fn mistake(&self, key: &str, message: impl Into<String>, suggestion: Option<String>) {
        self.mistake_at(self.place_of(key), key, message, suggestion);
    }

    pub(super) fn mistake_at(
        &self,
        place: Place,
        key: &str,
        message: impl Into<String>,
        suggestion: Option<String>,
    ) {
        let mistake =
            Mistake { place, key: format!("{}.{key}", self.path), message: message.into(), suggestion };
        self.checker.found.borrow_mut().mistakes.push(mistake);
    }

    pub(super) fn warn(&self, key: &str, message: impl Into<String>, suggestion: Option<String>) {
        self.warn_at(self.place_of(key), key, message, suggestion);
    }

    pub(super) fn warn_at(
        &self,
        place: Place,
        key: &str,
        message: impl Into<String>,
        suggestion: Option<String>,
    ) {
        let mistake =
            Mistake { place, key: format!("{}.{key}", self.path), message: message.into(), suggestion };
        self.checker.found.borrow_mut().warnings.push(mistake);
    }

    /// Reads the file that `key` names; a mistake when that fails.
    pub(super) fn file(&self, key: &str) -> Option<Contents> {
        let path = self.path(key)?;
        self.checker.found.borrow_mut().files.push(path.clone());
        match (self.checker.inputs.read)(&path) {
            Ok(contents) => Some(contents),
            Err(error) => {
                self.mistake(key, format!("cannot read {}: {error}", path.display()), None);
                None
            }
        }
    }

    /// The same for a file that others should not read.
    pub(super) fn secret_file(&self, key: &str) -> Option<Contents> {
        let contents = self.file(key)?;
        if contents.world_readable {
            let hint = "chmod o-rwx it".to_owned();
            self.warn(key, "everybody on this machine may read this secret file", Some(hint));
        }
        Some(contents)
    }
}
