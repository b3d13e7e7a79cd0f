//! Is the order of a query's rows total? Conservative: "no" wherever it takes thought.

use pg_query::{
    Node, NodeEnum as N,
    protobuf::{LimitOption, RangeVar, SelectStmt, SetOperation, a_const::Val},
};

use super::{
    builtin::{Builtin, classify},
    node::{text, texts},
};

/// What a SELECT says about the order of its rows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Order {
    /// Two executions on equal data give equal rows in equal order.
    pub(super) total: bool,
    /// LIMIT, OFFSET or DISTINCT ON picks rows by an order that is not total.
    pub(super) indeterminate: bool,
    /// ORDER BY 1.
    pub(super) literal_dependent: bool,
}

/// `key` holds the columns of a key of the only table read; empty when there is none.
pub(super) fn of(select: &SelectStmt, key: &[String]) -> Order {
    let ordered = order_columns(select);
    let literal_dependent = select.sort_clause.iter().any(|sort| position(sort).is_some())
        || !select.sort_clause.is_empty()
            && select.group_clause.iter().any(|node| constant_position(node).is_some());
    let total = one_row(select, key)
        || (!key.is_empty() && key.iter().all(|column| ordered.contains(&&**column)))
        || groups_in_order(select)
        || distinct_in_order(select);
    let ties = select.limit_option() == LimitOption::WithTies && !select.sort_clause.is_empty();
    let picks = (select.limit_count.as_deref().is_some_and(limits) && !ties)
        || select.limit_offset.is_some()
        || select.distinct_clause.iter().any(|node| node.node.is_some());
    Order { total, indeterminate: picks && !total, literal_dependent }
}

/// The only table of the FROM clause, of a query that neither groups nor combines.
pub(super) fn only_table(select: &SelectStmt) -> Option<&RangeVar> {
    let plain = matches!(select.op(), SetOperation::SetopNone | SetOperation::Undefined)
        && select.group_clause.is_empty()
        && select.having_clause.is_none();
    match select.from_clause.as_slice() {
        [Node { node: Some(N::RangeVar(range)) }] if plain => Some(range),
        _ => None,
    }
}

/// VALUES, no FROM, aggregates without GROUP BY, or a key compared with constants.
fn one_row(select: &SelectStmt, key: &[String]) -> bool {
    if !matches!(select.op(), SetOperation::SetopNone | SetOperation::Undefined) {
        return false;
    }
    if !select.values_lists.is_empty() || select.from_clause.is_empty() {
        return true;
    }
    if select.group_clause.is_empty() && select.target_list.iter().any(aggregates) {
        return true;
    }
    let Some(range) = only_table(select) else { return false };
    let mut equal = Vec::new();
    if let Some(condition) = &select.where_clause {
        equal_columns(condition, range, &mut equal);
    }
    !key.is_empty() && key.iter().all(|column| equal.contains(&&**column))
}

/// One row for each group, and ORDER BY has all that the groups are made of.
fn groups_in_order(select: &SelectStmt) -> bool {
    let by = |node: &Node| match &node.node {
        Some(N::ColumnRef(_)) => Some(node.clone()),
        Some(N::AConst(_)) => {
            constant_position(node).and_then(|at| target(select, at)?.val.as_deref().cloned())
        }
        _ => None,
    };
    let groups: Option<Vec<Node>> = select.group_clause.iter().map(by).collect();
    let plain = matches!(select.op(), SetOperation::SetopNone | SetOperation::Undefined)
        && select.distinct_clause.is_empty()
        && select.target_list.iter().all(one_value);
    plain
        && groups
            .is_some_and(|groups| !groups.is_empty() && groups.iter().all(|group| sorts_by(select, group)))
}

/// DISTINCT, and ORDER BY has every column of the result.
fn distinct_in_order(select: &SelectStmt) -> bool {
    let whole = select.distinct_clause.iter().all(|node| node.node.is_none());
    let sorted = |node: &Node| match &node.node {
        Some(N::ResTarget(target)) => target.val.as_deref().is_some_and(|value| sorts_by(select, value)),
        _ => false,
    };
    let plain = matches!(select.op(), SetOperation::SetopNone | SetOperation::Undefined);
    plain && !select.distinct_clause.is_empty() && whole && select.target_list.iter().all(sorted)
}

/// Does ORDER BY have this column?
fn sorts_by(select: &SelectStmt, wanted: &Node) -> bool {
    let column = |node: &Node| match &node.node {
        Some(N::ColumnRef(column)) if !is_star(node) => {
            column.fields.iter().map(|field| text(field).map(str::to_owned)).collect::<Option<Vec<_>>>()
        }
        _ => None,
    };
    let Some(wanted) = column(wanted) else { return false };
    let sorts = |sort: &Node| {
        let by = match position(sort) {
            Some(position) => target(select, position).and_then(|t| t.val.as_deref()),
            None => sort_node(sort),
        };
        let Some(name) = by.and_then(column) else { return false };
        // A name that the select list gives hides the column of that name.
        let hidden = match name.as_slice() {
            [only] if position(sort).is_none() => alias(select, only).and_then(column),
            _ => None,
        };
        hidden.unwrap_or(name) == wanted
    };
    let aliased = |sort: &Node| match (position(sort), sort_node(sort).and_then(column).as_deref()) {
        (None, Some([only])) => alias(select, only).is_some_and(|node| column(node).is_none()),
        _ => false,
    };
    select.sort_clause.iter().any(|sort| !aliased(sort) && sorts(sort))
}

/// No function that returns several rows is called.
fn one_value(node: &Node) -> bool {
    match &node.node {
        Some(N::ResTarget(target)) => target.val.as_deref().is_some_and(one_value),
        Some(N::ColumnRef(_)) => !is_star(node),
        Some(N::AConst(_) | N::ParamRef(_)) => true,
        Some(N::TypeCast(cast)) => cast.arg.as_deref().is_some_and(one_value),
        Some(N::CoalesceExpr(e)) => e.args.iter().all(one_value),
        Some(N::AExpr(e)) => [&e.lexpr, &e.rexpr].into_iter().flatten().all(|side| one_value(side)),
        Some(N::FuncCall(call)) => {
            let class = classify(texts(&call.funcname).last().copied().unwrap_or_default());
            call.over.is_none() && matches!(class, Some(Builtin::Aggregate | Builtin::OrderedAggregate))
        }
        _ => false,
    }
}

fn limits(node: &Node) -> bool {
    // LIMIT ALL is a null.
    !matches!(&node.node, Some(N::AConst(constant)) if constant.isnull)
}

/// Does an aggregate stand in this expression, not as a window function?
fn aggregates(node: &Node) -> bool {
    match &node.node {
        Some(N::ResTarget(target)) => target.val.as_deref().is_some_and(aggregates),
        Some(N::TypeCast(cast)) => cast.arg.as_deref().is_some_and(aggregates),
        Some(N::CoalesceExpr(e)) => e.args.iter().any(aggregates),
        Some(N::AExpr(e)) => [&e.lexpr, &e.rexpr].into_iter().flatten().any(|side| aggregates(side)),
        Some(N::FuncCall(call)) => {
            let name = texts(&call.funcname).last().copied().unwrap_or_default();
            let class = classify(name);
            let aggregate = matches!(class, Some(Builtin::Aggregate | Builtin::OrderedAggregate));
            (call.over.is_none() && aggregate) || call.args.iter().any(aggregates)
        }
        _ => false,
    }
}

/// Columns compared with a constant or a parameter by a condition that must hold.
fn equal_columns<'a>(node: &'a Node, range: &RangeVar, out: &mut Vec<&'a str>) {
    match &node.node {
        Some(N::BoolExpr(e)) if e.boolop() == pg_query::protobuf::BoolExprType::AndExpr => {
            for arg in &e.args {
                equal_columns(arg, range, out);
            }
        }
        Some(N::AExpr(e))
            if texts(&e.name) == ["="] && e.kind() == pg_query::protobuf::AExprKind::AexprOp =>
        {
            let (Some(left), Some(right)) = (e.lexpr.as_deref(), e.rexpr.as_deref()) else { return };
            for (column, value) in [(left, right), (right, left)] {
                out.extend(own_column(column, range).filter(|_| constant(value)));
            }
        }
        _ => {}
    }
}

fn constant(node: &Node) -> bool {
    match &node.node {
        Some(N::AConst(constant)) => !constant.isnull,
        Some(N::ParamRef(_)) => true,
        Some(N::TypeCast(cast)) => cast.arg.as_deref().is_some_and(constant),
        _ => false,
    }
}

/// The column, if it is one of this table and not of an outer query.
fn own_column<'a>(node: &'a Node, range: &RangeVar) -> Option<&'a str> {
    let Some(N::ColumnRef(column)) = &node.node else { return None };
    let alias = range.alias.as_ref().map_or(range.relname.as_str(), |alias| &alias.aliasname);
    match column.fields.as_slice() {
        [name] => text(name),
        [table, name] if text(table) == Some(alias) => text(name),
        _ => None,
    }
}

/// Columns of the only table by which the rows are ordered.
fn order_columns(select: &SelectStmt) -> Vec<&str> {
    let Some(range) = only_table(select) else { return Vec::new() };
    let column = |sort| {
        let by = match position(sort) {
            Some(position) => target(select, position)?.val.as_deref()?,
            None => sort_node(sort)?,
        };
        let name = own_column(by, range)?;
        // A name that the select list gives hides the column of that name.
        let named =
            position(sort).is_none() && matches!(&by.node, Some(N::ColumnRef(c)) if c.fields.len() == 1);
        match named.then(|| alias(select, name)).flatten() {
            Some(aliased) => own_column(aliased, range),
            None => Some(name),
        }
    };
    select.sort_clause.iter().filter_map(column).collect()
}

fn sort_node(sort: &Node) -> Option<&Node> {
    match &sort.node {
        Some(N::SortBy(sort)) => sort.node.as_deref(),
        _ => None,
    }
}

/// `1` of ORDER BY 1.
fn position(sort: &Node) -> Option<usize> {
    constant_position(sort_node(sort)?)
}

fn constant_position(node: &Node) -> Option<usize> {
    match &node.node {
        Some(N::AConst(constant)) => match &constant.val {
            Some(Val::Ival(integer)) => usize::try_from(integer.ival).ok()?.checked_sub(1),
            Some(Val::Fval(_) | Val::Boolval(_) | Val::Sval(_) | Val::Bsval(_)) | None => None,
        },
        _ => None,
    }
}

fn target(select: &SelectStmt, position: usize) -> Option<&pg_query::protobuf::ResTarget> {
    // A star in front would shift the positions.
    let star =
        |node: &Node| matches!(&node.node, Some(N::ResTarget(t)) if t.val.as_deref().is_some_and(is_star));
    if select.target_list.iter().take(position + 1).any(star) {
        return None;
    }
    match &select.target_list.get(position)?.node {
        Some(N::ResTarget(target)) => Some(target),
        _ => None,
    }
}

fn is_star(node: &Node) -> bool {
    matches!(&node.node, Some(N::ColumnRef(c)) if c.fields.iter().any(|f| matches!(f.node, Some(N::AStar(_)))))
}

fn alias<'a>(select: &'a SelectStmt, name: &str) -> Option<&'a Node> {
    select.target_list.iter().find_map(|node| match &node.node {
        Some(N::ResTarget(target)) if target.name == name => target.val.as_deref(),
        _ => None,
    })
}
