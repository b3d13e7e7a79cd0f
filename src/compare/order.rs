//! Two recorded answers, compared as a list or as a bag, whatever the number of rows.
//!
//! What differs among many rows takes a second execution: [`compare`] names the buckets that differ, and the next
//! recorders keep their rows.

use xxhash_rust::xxh3::xxh3_64;

use super::{
    Class, Difference, Unfit,
    record::{Column, Focus, Kept, MOST_PAIRED, Profile, Treatment, cells, shown},
    rules::Rules,
};

/// What two recorded answers come to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found {
    /// Byte for byte.
    Same,
    /// Equal rows in another order, which the query leaves open.
    OrderOnly,
    /// Equal by the rules, or spelled in another way.
    Ignored,
    /// What differs; the first few.
    Differ(Vec<Difference>),
    /// Something differs among too many rows: execute again and keep the rows of these buckets.
    Look(Focus),
    /// Cannot be compared.
    Unfit(Unfit),
}

/// Compares two answers that were recorded with the same rules, key and seed. `total_order`: the query gives the
/// rows one order only.
pub fn compare(answering: &Profile, shadow: &Profile, total_order: bool, rules: &Rules) -> Found {
    let (a, s) = (answering, shadow);
    if let Some(unfit) = a.unfit.or(s.unfit) {
        return Found::Unfit(unfit);
    }
    if a.sqlstate.is_some() || s.sqlstate.is_some() {
        return errors(a.sqlstate, s.sqlstate);
    }
    let described = description(&a.columns, &s.columns);
    if !described.is_empty() {
        return Found::Differ(described);
    }
    if a.strict.bag == s.strict.bag && a.rows == s.rows {
        return in_order(a, s, total_order);
    }
    rows(a, s, total_order, rules)
}

fn errors(a: Option<[u8; 5]>, s: Option<[u8; 5]>) -> Found {
    if a == s {
        return Found::Same;
    }
    let text =
        |code: Option<[u8; 5]>| code.map_or("none".to_owned(), |c| String::from_utf8_lossy(&c).into_owned());
    Found::Differ(vec![Difference::of(Class::Error, text(a), text(s))])
}

fn description(a: &[Column], s: &[Column]) -> Vec<Difference> {
    let names = |columns: &[Column]| columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    if names(a) != names(s) {
        return vec![Difference::of(Class::Columns, names(a).join(", "), names(s).join(", "))];
    }
    let types = a.iter().zip(s).filter(|(a, s)| (a.oid, a.format) != (s.oid, s.format));
    let difference = |(a, s): (&Column, &Column)| {
        let text = |c: &Column| format!("type {} in {:?}", c.oid, c.format);
        let found = Difference::of(Class::Type, text(a), text(s));
        let mark = found.mark ^ xxh3_64(a.name.as_bytes());
        Difference { column: Some(a.name.clone()), mark, ..found }
    };
    types.map(difference).collect()
}

/// The rows are the same as a bag.
fn in_order(a: &Profile, s: &Profile, total_order: bool) -> Found {
    if a.strict.list != s.strict.list {
        return if total_order {
            Found::Differ(vec![Difference::of(Class::Order, String::new(), String::new())])
        } else {
            Found::OrderOnly
        };
    }
    if a.tag != s.tag {
        let text = |p: &Profile| String::from_utf8_lossy(&p.tag).into_owned();
        return Found::Differ(vec![Difference::of(Class::Tag, text(a), text(s))]);
    }
    if a.raw.bag == s.raw.bag { Found::Same } else { Found::Ignored }
}

fn rows(a: &Profile, s: &Profile, total_order: bool, rules: &Rules) -> Found {
    let (mut unequal, mut covered) = (Vec::new(), true);
    if !(a.whole && s.whole) {
        let (sums_a, sums_s) = (a.sums(), s.sums());
        unequal =
            (0..).zip(sums_a.iter().zip(&sums_s)).filter(|(_, (a, s))| a != s).map(|(i, _)| i).collect();
        let keeps = |p: &Profile, bucket: &u16| {
            p.whole || p.focus.as_ref().is_some_and(|f| f.0.binary_search(bucket).is_ok())
        };
        let seen: Vec<u16> = unequal.iter().copied().filter(|b| keeps(a, b) && keeps(s, b)).collect();
        if seen.is_empty() {
            let overflowed = a.overflowed || s.overflowed;
            return if overflowed { count(a, s) } else { Found::Look(Focus::new(&unequal, a, s)) };
        }
        covered = seen.len() == unequal.len();
        unequal = seen;
    }
    let within = |kept: &Kept| unequal.is_empty() || unequal.binary_search(&kept.bucket).is_ok();
    let (mut only_a, mut only_s) = (a.without(s, within), s.without(a, within));
    covered &= few(&mut only_a, &mut only_s);
    let mut found = pair(a, &mut only_a, &mut only_s, rules);
    found.extend(only_a.iter().map(|row| lone(a, row, Class::MissingRow)));
    found.extend(only_s.iter().map(|row| lone(s, row, Class::ExtraRow)));
    if found.len() > MOST_DIFFERENCES {
        // The same ones each time, whatever the order of the rows.
        found.sort_by_key(|difference| difference.mark);
        found.truncate(MOST_DIFFERENCES);
    }
    if !found.is_empty() {
        return Found::Differ(found);
    }
    if !covered {
        return Found::Unfit(Unfit::Large);
    }
    if a.place.list == s.place.list {
        Found::Ignored
    } else if total_order {
        Found::Differ(vec![Difference::of(Class::Order, String::new(), String::new())])
    } else {
        Found::OrderOnly
    }
}

/// Leaves as many rows as are paired: the same ones each time, and with those that belong to them. `true` when these
/// are all.
fn few<'a>(only_a: &mut Vec<&'a Kept>, only_s: &mut Vec<&'a Kept>) -> bool {
    if only_a.len().max(only_s.len()) <= MOST_PAIRED {
        return true;
    }
    let mut buckets: Vec<u16> = only_a.iter().chain(only_s.iter()).map(|kept| kept.bucket).collect();
    buckets.sort_unstable();
    let last = buckets[MOST_PAIRED];
    for rows in [only_a, only_s] {
        rows.retain(|kept| kept.bucket < last || last == buckets[0]);
        rows.truncate(MOST_PAIRED);
    }
    false
}

/// Not even the rows of a few buckets could be kept.
fn count(a: &Profile, s: &Profile) -> Found {
    if a.rows == s.rows {
        return Found::Unfit(Unfit::Large);
    }
    Found::Differ(vec![Difference::of(Class::Count, a.rows.to_string(), s.rows.to_string())])
}

impl Difference {
    fn of(class: Class, answering: String, shadow: String) -> Self {
        let mark = xxh3_64(format!("{}\0{answering}\0{shadow}", class.name()).as_bytes());
        Self { class, column: None, key: None, answering: Some(answering), shadow: Some(shadow), mark }
    }
}

fn lone(of: &Profile, row: &Kept, class: Class) -> Difference {
    let key = of.key_of(&row.body);
    let text = Some(of.shown_row(&row.body));
    let (answering, shadow) = if class == Class::MissingRow { (text, None) } else { (None, text) };
    let mark = xxh3_64(&[class.name().as_bytes(), &of.compared(&row.body)].concat());
    Difference { class, column: None, key, answering, shadow, mark }
}

/// Pairs the rows that belong together and says which cells differ; what has no partner is left in the lists.
fn pair(of: &Profile, only_a: &mut Vec<&Kept>, only_s: &mut Vec<&Kept>, rules: &Rules) -> Vec<Difference> {
    let keyed = of.treatment.contains(&Treatment::Key);
    // Without a key, rows of sides that have as many are the same rows with other values.
    let least = usize::from(only_a.len() != only_s.len());
    let mut found = Vec::new();
    let mut left = Vec::new();
    for row in only_a.drain(..) {
        let Some(cells_a) = cells(&row.body) else { continue };
        let score = |other: &Kept| {
            let cells_s = cells(&other.body)?;
            let equal = |wanted: Option<Treatment>| {
                let compared = cells_a.iter().zip(&cells_s).zip(of.columns.iter().zip(&of.treatment));
                let counted = compared.filter(move |(_, (_, t))| {
                    wanted.map_or(**t != Treatment::Ignored, |wanted| **t == wanted)
                });
                counted.map(|((a, s), (column, _))| same(column, *a, *s, rules)).collect::<Vec<bool>>()
            };
            if keyed {
                return equal(Some(Treatment::Key)).iter().all(|&same| same).then_some(usize::MAX);
            }
            let score = equal(None).iter().filter(|&&same| same).count();
            (score >= least).then_some(score)
        };
        let scored = only_s.iter().enumerate().filter_map(|(i, other)| Some((score(other)?, i)));
        let Some((_, best)) = scored.max_by_key(|&(score, i)| (score, usize::MAX - i)) else {
            left.push(row);
            continue;
        };
        let other = only_s.remove(best);
        found.extend(cell_differences(of, row, other, rules));
    }
    *only_a = left;
    found
}

fn cell_differences(of: &Profile, a: &Kept, s: &Kept, rules: &Rules) -> Vec<Difference> {
    let (Some(cells_a), Some(cells_s)) = (cells(&a.body), cells(&s.body)) else { return Vec::new() };
    let key = of.key_of(&a.body);
    let compared = of.columns.iter().zip(&of.treatment).zip(cells_a.into_iter().zip(cells_s));
    let differs = compared.filter(|((column, treatment), (a, s))| {
        **treatment != Treatment::Ignored && !same(column, *a, *s, rules)
    });
    let difference = |column: &Column, a: Option<&[u8]>, s: Option<&[u8]>| {
        let bytes = |cell: Option<&[u8]>| cell.map_or(vec![0], |cell| [&[1], cell].concat());
        let name = column.name.as_bytes();
        let key_bytes = key.as_deref().unwrap_or_default().as_bytes();
        let marked = [name, &[0], key_bytes, &[0], &bytes(a), &[0], &bytes(s)].concat();
        Difference {
            class: Class::Cell,
            column: Some(column.name.clone()),
            key: key.clone(),
            answering: Some(shown(column, a)),
            shadow: Some(shown(column, s)),
            mark: xxh3_64(&marked),
        }
    };
    differs.map(|((column, _), (a, s))| difference(column, a, s)).collect()
}

fn same(column: &Column, a: Option<&[u8]>, s: Option<&[u8]>, rules: &Rules) -> bool {
    match (a, s) {
        (Some(a), Some(s)) => column.of.near(column.format, a, s, rules),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Differences that are reported of one comparison.
pub const MOST_DIFFERENCES: usize = 50;

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
