//! Tables read and written: walks queries, their expressions and their scopes of names.

use pg_query::{
    Node, NodeEnum as N,
    protobuf::{
        CommonTableExpr, DeleteStmt, InsertStmt, MergeStmt, RangeVar, ReturningClause, SelectStmt,
        SqlValueFunctionOp as Value, TypeCast, UpdateStmt, WindowDef, WithClause,
    },
};

use super::{
    Context, Effect, Hazards, Kind, Pin, Statement, Unknown, name,
    node::{literal, text},
    order,
};

/// Gathers what one statement does.
pub(super) struct Walker<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) out: Statement,
    pub(super) found: Found,
    /// Names of the WITH queries in scope, innermost last.
    scopes: Vec<Vec<String>>,
}

/// What was met on the way.
#[derive(Clone, Copy, Default)]
pub(super) struct Found {
    pub(super) unknown: bool,
    pub(super) write: bool,
    pub(super) locking: bool,
    pub(super) code: bool,
    pub(super) session: bool,
    pub(super) local: bool,
    pub(super) literal_dependent: bool,
}

impl<'a> Walker<'a> {
    pub(super) fn new(context: &'a Context<'a>) -> Self {
        Self { context, out: Statement::new(Kind::Read, 0..0), found: Found::default(), scopes: Vec::new() }
    }

    /// The kind of a query, by what was met in it; the strongest wins.
    pub(super) fn query_kind(&self) -> Kind {
        let no_tables = self.out.reads.is_empty() && self.out.writes.is_empty();
        match self.found {
            Found { unknown: true, .. } => Kind::Unknown(Unknown::Node),
            Found { write: true, .. } => Kind::Write,
            Found { locking: true, .. } => Kind::LockingRead,
            Found { code: true, .. } => Kind::Code,
            Found { session: true, .. } => Kind::Session,
            Found { local: true, .. } if no_tables => Kind::Local,
            _ => Kind::Read,
        }
    }

    pub(super) fn hazard(&mut self, hazard: Hazards) {
        self.out.hazards.insert(hazard);
    }

    pub(super) fn pin(&mut self, pin: Pin) {
        self.effect(Effect::Pin(pin));
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        if !self.out.effects.contains(&effect) {
            self.out.effects.push(effect);
        }
    }

    /// A relation that a query reads; a WITH query of that name hides it.
    pub(super) fn read(&mut self, range: &RangeVar) {
        if range.schemaname.is_empty() && self.in_scope(&range.relname) {
            return;
        }
        self.read_name(&range.schemaname, &range.relname);
    }

    pub(super) fn read_name(&mut self, schema: &str, name: &str) {
        let meaning = name::meaning(self.context, schema, name);
        self.out.introspects |= meaning.system;
        if meaning.temporary {
            self.pin(Pin::TempTable);
        }
        self.out.runs_code |= meaning.read_code;
        self.called_by_views(&meaning);
        self.out.reads.extend(meaning.tables);
    }

    /// A relation whose rows are written: no WITH query can be meant.
    pub(super) fn write(&mut self, range: &RangeVar) {
        self.found.write = true;
        self.write_name(&range.schemaname, &range.relname);
    }

    pub(super) fn write_name(&mut self, schema: &str, relation: &str) {
        let meaning = name::meaning(self.context, schema, relation);
        self.out.introspects |= meaning.system;
        if meaning.temporary {
            self.pin(Pin::TempTable);
        }
        if meaning.tables.is_empty() && !meaning.system {
            self.out.writes.insert(name::relation(self.context, schema, relation));
        }
        self.out.runs_code |= meaning.read_code || meaning.write_code;
        self.called_by_views(&meaning);
        self.out.writes.extend(meaning.tables);
    }

    /// A relation that a utility names itself, views included.
    pub(super) fn object(&mut self, schema: &str, relation: &str) {
        if name::is_temporary_schema(schema) {
            self.pin(Pin::TempTable);
        }
        let mut table = name::relation(self.context, schema, relation);
        self.out.writes.insert(table.clone());
        while let Some(parent) = self.context.catalog.relations.get(&table).and_then(|r| r.parent.clone()) {
            if !self.out.writes.insert(parent.clone()) {
                break;
            }
            table = parent;
        }
    }

    pub(super) fn object_range(&mut self, range: Option<&RangeVar>) {
        if let Some(range) = range {
            self.object(&range.schemaname, &range.relname);
        }
    }

    fn in_scope(&self, name: &str) -> bool {
        self.scopes.iter().flatten().any(|scoped| scoped == name)
    }

    pub(super) fn nodes(&mut self, nodes: &[Node]) {
        for node in nodes {
            self.node(node);
        }
    }

    pub(super) fn boxed(&mut self, node: Option<&Node>) {
        if let Some(node) = node {
            self.node(node);
        }
    }

    /// Walks a node of a query. A node that no query of the raw grammar has is unknown.
    pub(super) fn node(&mut self, node: &Node) {
        let Some(node) = &node.node else { return };
        let known = self.query(node) || self.range(node) || self.expression(node) || self.special(node);
        self.found.unknown |= !known;
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what no function handles is Unknown: fails closed")]
    fn query(&mut self, node: &N) -> bool {
        match node {
            N::SelectStmt(s) => self.select(s),
            N::InsertStmt(s) => self.insert(s),
            N::UpdateStmt(s) => self.update(s),
            N::DeleteStmt(s) => self.delete(s),
            N::MergeStmt(s) => self.merge(s),
            _ => return false,
        }
        true
    }

    /// SELECT, VALUES, TABLE, and their combinations.
    pub(super) fn select(&mut self, s: &SelectStmt) {
        self.scoped(s.with_clause.as_ref(), |w| {
            for side in [&s.larg, &s.rarg].into_iter().flatten() {
                w.select(side);
            }
            w.nodes(&s.distinct_clause);
            w.nodes(&s.target_list);
            w.nodes(&s.from_clause);
            w.boxed(s.where_clause.as_deref());
            w.nodes(&s.group_clause);
            w.boxed(s.having_clause.as_deref());
            w.nodes(&s.window_clause);
            w.nodes(&s.values_lists);
            w.nodes(&s.sort_clause);
            w.boxed(s.limit_offset.as_deref());
            w.boxed(s.limit_count.as_deref());
            w.found.locking |= !s.locking_clause.is_empty();
            let order = w.order(s);
            w.found.literal_dependent |= order.literal_dependent;
            if order.indeterminate {
                w.hazard(Hazards::INDETERMINATE);
            }
        });
    }

    /// What is known of the order of rows, while the WITH queries of `s` are in scope.
    pub(super) fn order(&self, s: &SelectStmt) -> order::Order {
        let own = s.with_clause.iter().flat_map(|with| &with.ctes).filter_map(cte);
        let hidden = |range: &RangeVar| {
            let with =
                self.in_scope(&range.relname) || own.clone().any(|query| query.ctename == range.relname);
            range.schemaname.is_empty() && with
        };
        let range = order::only_table(s).filter(|range| !hidden(range));
        let table = range.map(|range| name::relation(self.context, &range.schemaname, &range.relname));
        let relation = table.and_then(|table| self.context.catalog.relations.get(&table));
        order::of(s, relation.map_or(&[], |relation| relation.key.as_slice()))
    }

    fn insert(&mut self, s: &InsertStmt) {
        self.scoped(s.with_clause.as_ref(), |w| {
            w.boxed(s.select_stmt.as_deref());
            w.nodes(&s.cols);
            if let Some(conflict) = &s.on_conflict_clause {
                if let Some(infer) = &conflict.infer {
                    w.nodes(&infer.index_elems);
                    w.boxed(infer.where_clause.as_deref());
                }
                w.nodes(&conflict.target_list);
                w.boxed(conflict.where_clause.as_deref());
            }
            w.written(s.relation.as_ref(), s.returning_clause.as_ref());
        });
    }

    fn update(&mut self, s: &UpdateStmt) {
        self.scoped(s.with_clause.as_ref(), |w| {
            w.nodes(&s.target_list);
            w.nodes(&s.from_clause);
            w.boxed(s.where_clause.as_deref());
            w.written(s.relation.as_ref(), s.returning_clause.as_ref());
        });
    }

    fn delete(&mut self, s: &DeleteStmt) {
        self.scoped(s.with_clause.as_ref(), |w| {
            w.nodes(&s.using_clause);
            w.boxed(s.where_clause.as_deref());
            w.written(s.relation.as_ref(), s.returning_clause.as_ref());
        });
    }

    fn merge(&mut self, s: &MergeStmt) {
        self.scoped(s.with_clause.as_ref(), |w| {
            w.boxed(s.source_relation.as_deref());
            w.boxed(s.join_condition.as_deref());
            w.nodes(&s.merge_when_clauses);
            w.written(s.relation.as_ref(), s.returning_clause.as_ref());
        });
    }

    fn written(&mut self, relation: Option<&RangeVar>, returning: Option<&ReturningClause>) {
        if let Some(range) = relation {
            self.write(range);
        }
        if let Some(returning) = returning {
            self.nodes(&returning.exprs);
        }
    }

    /// Runs `body` with the WITH queries in scope, each of which sees those before it; with RECURSIVE all.
    fn scoped(&mut self, with: Option<&WithClause>, body: impl FnOnce(&mut Self)) {
        let Some(with) = with else { return body(self) };
        let queries: Vec<&CommonTableExpr> = with.ctes.iter().filter_map(cte).collect();
        self.found.unknown |= queries.len() != with.ctes.len();
        let names = |queries: &[&CommonTableExpr]| queries.iter().map(|q| q.ctename.clone()).collect();
        self.scopes.push(if with.recursive { names(&queries) } else { Vec::new() });
        for (index, query) in queries.iter().enumerate() {
            self.boxed(query.ctequery.as_deref());
            if let Some(cycle) = &query.cycle_clause {
                self.boxed(cycle.cycle_mark_value.as_deref());
                self.boxed(cycle.cycle_mark_default.as_deref());
            }
            if let (false, Some(scope)) = (with.recursive, self.scopes.last_mut()) {
                *scope = names(&queries[..=index]);
            }
        }
        body(self);
        self.scopes.pop();
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what no function handles is Unknown: fails closed")]
    fn range(&mut self, node: &N) -> bool {
        match node {
            N::RangeVar(range) => self.read(range),
            N::JoinExpr(join) => {
                self.boxed(join.larg.as_deref());
                self.boxed(join.rarg.as_deref());
                self.boxed(join.quals.as_deref());
            }
            N::RangeSubselect(s) => self.boxed(s.subquery.as_deref()),
            N::RangeFunction(f) => self.nodes(&f.functions),
            N::RangeTableSample(sample) => {
                self.hazard(Hazards::PHYSICAL);
                self.boxed(sample.relation.as_deref());
                self.nodes(&sample.args);
                self.boxed(sample.repeatable.as_deref());
            }
            N::RangeTableFunc(f) => {
                self.boxed(f.docexpr.as_deref());
                self.boxed(f.rowexpr.as_deref());
                self.nodes(&f.namespaces);
                self.nodes(&f.columns);
            }
            N::RangeTableFuncCol(column) => {
                self.boxed(column.colexpr.as_deref());
                self.boxed(column.coldefexpr.as_deref());
            }
            N::JsonTable(table) => {
                self.json_value(table.context_item.as_deref());
                self.nodes(&table.passing);
                self.nodes(&table.columns);
                self.json_behavior(table.on_error.as_deref());
            }
            N::JsonTableColumn(column) => {
                self.nodes(&column.columns);
                self.json_behavior(column.on_empty.as_deref());
                self.json_behavior(column.on_error.as_deref());
            }
            _ => return false,
        }
        true
    }

    #[expect(clippy::match_same_arms, reason = "a family of nodes a line")]
    #[expect(clippy::wildcard_enum_match_arm, reason = "what no function handles is Unknown: fails closed")]
    fn expression(&mut self, node: &N) -> bool {
        match node {
            N::AConst(_) | N::ParamRef(_) | N::AStar(_) | N::SetToDefault(_) | N::CurrentOfExpr(_) => {}
            N::String(_) | N::Integer(_) | N::Float(_) | N::Boolean(_) | N::BitString(_) => {}
            N::MergeSupportFunc(_) | N::ColumnDef(_) => {}
            N::ColumnRef(column) => self.column(&column.fields),
            N::List(list) => self.nodes(&list.items),
            N::AExpr(e) => {
                self.boxed(e.lexpr.as_deref());
                self.boxed(e.rexpr.as_deref());
            }
            N::BoolExpr(e) => self.nodes(&e.args),
            N::NullTest(e) => self.boxed(e.arg.as_deref()),
            N::BooleanTest(e) => self.boxed(e.arg.as_deref()),
            N::CollateClause(e) => self.boxed(e.arg.as_deref()),
            N::CoalesceExpr(e) => self.nodes(&e.args),
            N::MinMaxExpr(e) => self.nodes(&e.args),
            N::RowExpr(e) => self.nodes(&e.args),
            N::GroupingFunc(e) => self.nodes(&e.args),
            N::GroupingSet(e) => self.nodes(&e.content),
            N::NamedArgExpr(e) => self.boxed(e.arg.as_deref()),
            N::AArrayExpr(e) => self.nodes(&e.elements),
            N::AIndirection(e) => {
                self.boxed(e.arg.as_deref());
                self.nodes(&e.indirection);
            }
            N::AIndices(e) => {
                self.boxed(e.lidx.as_deref());
                self.boxed(e.uidx.as_deref());
            }
            N::CaseExpr(e) => {
                self.boxed(e.arg.as_deref());
                self.nodes(&e.args);
                self.boxed(e.defresult.as_deref());
            }
            N::CaseWhen(e) => {
                self.boxed(e.expr.as_deref());
                self.boxed(e.result.as_deref());
            }
            N::SubLink(e) => {
                self.boxed(e.testexpr.as_deref());
                self.boxed(e.subselect.as_deref());
            }
            N::ResTarget(e) => {
                self.nodes(&e.indirection);
                self.boxed(e.val.as_deref());
            }
            N::MultiAssignRef(e) => self.boxed(e.source.as_deref()),
            N::SortBy(e) => self.boxed(e.node.as_deref()),
            N::WindowDef(e) => self.window(e),
            N::IndexElem(e) => self.boxed(e.expr.as_deref()),
            N::TypeCast(e) => self.cast(e),
            N::FuncCall(call) => self.call(call),
            _ => return false,
        }
        true
    }

    #[expect(clippy::match_same_arms, reason = "a family of nodes a line")]
    #[expect(clippy::wildcard_enum_match_arm, reason = "what no function handles is Unknown: fails closed")]
    fn special(&mut self, node: &N) -> bool {
        match node {
            N::SqlvalueFunction(f) => match f.op() {
                Value::SvfopCurrentRole | Value::SvfopCurrentUser | Value::SvfopUser => {
                    self.hazard(Hazards::SESSION);
                }
                Value::SvfopSessionUser | Value::SvfopCurrentCatalog | Value::SvfopCurrentSchema => {
                    self.hazard(Hazards::SESSION);
                }
                Value::SqlvalueFunctionOpUndefined => return false,
                Value::SvfopCurrentDate | Value::SvfopCurrentTime | Value::SvfopCurrentTimeN => self.clock(),
                Value::SvfopCurrentTimestamp | Value::SvfopCurrentTimestampN => self.clock(),
                Value::SvfopLocaltime | Value::SvfopLocaltimeN => self.clock(),
                Value::SvfopLocaltimestamp | Value::SvfopLocaltimestampN => self.clock(),
            },
            N::MergeWhenClause(e) => {
                self.boxed(e.condition.as_deref());
                self.nodes(&e.target_list);
                self.nodes(&e.values);
            }
            N::XmlExpr(e) => {
                self.nodes(&e.named_args);
                self.nodes(&e.args);
            }
            N::XmlSerialize(e) => self.boxed(e.expr.as_deref()),
            N::JsonValueExpr(e) => self.json_value(Some(e)),
            N::JsonArgument(e) => self.json_value(e.val.as_deref()),
            N::JsonIsPredicate(e) => self.boxed(e.expr.as_deref()),
            N::JsonParseExpr(e) => self.json_value(e.expr.as_deref()),
            N::JsonScalarExpr(e) => self.boxed(e.expr.as_deref()),
            N::JsonSerializeExpr(e) => self.json_value(e.expr.as_deref()),
            N::JsonBehavior(e) => self.boxed(e.expr.as_deref()),
            N::JsonKeyValue(e) => self.json_pair(e),
            N::JsonObjectConstructor(e) => self.nodes(&e.exprs),
            N::JsonArrayConstructor(e) => self.nodes(&e.exprs),
            N::JsonArrayQueryConstructor(e) => self.boxed(e.query.as_deref()),
            N::JsonObjectAgg(e) => {
                self.json_aggregate(e.constructor.as_deref());
                if let Some(pair) = &e.arg {
                    self.json_pair(pair);
                }
            }
            N::JsonArrayAgg(e) => {
                self.json_aggregate(e.constructor.as_deref());
                self.json_value(e.arg.as_deref());
            }
            N::JsonFuncExpr(e) => {
                self.json_value(e.context_item.as_deref());
                self.boxed(e.pathspec.as_deref());
                self.nodes(&e.passing);
                self.json_behavior(e.on_empty.as_deref());
                self.json_behavior(e.on_error.as_deref());
            }
            _ => return false,
        }
        true
    }

    fn clock(&mut self) {
        self.hazard(Hazards::CLOCK);
    }

    pub(super) fn window(&mut self, window: &WindowDef) {
        self.nodes(&window.partition_clause);
        self.nodes(&window.order_clause);
        self.boxed(window.start_offset.as_deref());
        self.boxed(window.end_offset.as_deref());
    }

    fn column(&mut self, fields: &[Node]) {
        let physical = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];
        if fields.last().and_then(text).is_some_and(|name| physical.contains(&name)) {
            self.hazard(Hazards::PHYSICAL);
        }
    }

    /// `'now'::timestamptz` is a clock; `'t'::regclass` an OID of this database.
    fn cast(&mut self, cast: &TypeCast) {
        self.boxed(cast.arg.as_deref());
        let names = cast.type_name.as_ref().map_or(&[][..], |t| t.names.as_slice());
        match names.last().and_then(text) {
            Some("timestamp" | "timestamptz" | "date" | "time" | "timetz") => {
                let Some(literal) = cast.arg.as_deref().and_then(literal) else { return };
                self.found.literal_dependent = true;
                let word = literal.trim().to_ascii_lowercase();
                if ["now", "today", "tomorrow", "yesterday"].iter().any(|clock| word.contains(clock)) {
                    self.clock();
                }
            }
            Some(name) if name.starts_with("reg") => self.out.introspects = true,
            _ => {}
        }
    }
}

fn cte(node: &Node) -> Option<&CommonTableExpr> {
    match &node.node {
        Some(N::CommonTableExpr(query)) => Some(query),
        _ => None,
    }
}
