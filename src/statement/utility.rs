//! Statements that are not queries: transaction control, settings, cursors, COPY, maintenance.

use std::ops::Range;

use pg_query::{
    Node, NodeEnum as N,
    protobuf::{
        CallStmt, CopyStmt, DeclareCursorStmt, DefElem, DiscardMode, DiscardStmt, ExplainStmt, PrepareStmt,
        SelectStmt, TransactionStmt, TransactionStmtKind as T, VariableSetKind, VariableSetStmt,
        a_const::Val,
    },
};

use super::{
    Context, Control, Effect, Hazards, Isolation, Kind, Pin, Statement, Unknown,
    access::Walker,
    call::boolean,
    name,
    node::{literal, qualified},
};

/// What one statement of the raw grammar does; the second value is [`super::Plan::literal_dependent`].
pub(super) fn statement(node: &Node, span: Range<usize>, context: &Context<'_>) -> (Statement, bool) {
    let mut walker = Walker::new(context);
    walker.out.total_order = true;
    let kind = match &node.node {
        Some(node) => walker.statement(node, &span),
        None => Kind::Unknown(Unknown::Node),
    };
    let kind = if walker.found.unknown { Kind::Unknown(Unknown::Node) } else { kind };
    let mut out = walker.out;
    (out.kind, out.span) = (kind, span);
    // Tables that are written count as read where their rows are looked at; they are not repeated.
    out.reads = &out.reads - &out.writes;
    (out, walker.found.literal_dependent)
}

/// `CURSOR_OPT_HOLD` of nodes/parsenodes.h, 14 and later.
const CURSOR_HOLD: i32 = 0x20;

impl Walker<'_> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "what no function handles is Unknown: fails closed")]
    fn statement(&mut self, node: &N, span: &Range<usize>) -> Kind {
        match node {
            N::SelectStmt(s) => self.top_select(s),
            N::InsertStmt(_) | N::UpdateStmt(_) | N::DeleteStmt(_) | N::MergeStmt(_) => self.modify(node),
            N::TransactionStmt(s) => transaction(s),
            N::VariableSetStmt(s) => self.set(s),
            N::VariableShowStmt(_) => {
                self.out.introspects = true;
                self.hazard(Hazards::SESSION);
                Kind::Read
            }
            N::ConstraintsSetStmt(_) => Kind::Local,
            N::DiscardStmt(s) => self.discard(*s),
            N::ListenStmt(_) => self.pinned(Pin::Listen),
            N::LoadStmt(_) => self.pinned(Pin::Load),
            N::UnlistenStmt(_) => Kind::Session,
            N::NotifyStmt(_) => {
                self.hazard(Hazards::SIDE_EFFECT);
                Kind::Utility
            }
            N::PrepareStmt(s) => self.prepare(s, span),
            N::ExecuteStmt(s) => {
                self.nodes(&s.params);
                Kind::Execute { name: s.name.clone() }
            }
            N::DeallocateStmt(s) => Kind::Deallocate { name: (!s.isall).then(|| s.name.clone()) },
            N::ExplainStmt(s) => self.explain(s, span),
            N::CopyStmt(s) => self.copy(s),
            N::DeclareCursorStmt(s) => self.declare(s),
            N::FetchStmt(_) => Kind::Fetch,
            N::ClosePortalStmt(s) => {
                Kind::Close { name: (!s.portalname.is_empty()).then(|| s.portalname.clone()) }
            }
            N::DoStmt(_) => {
                self.hazard(Hazards::VOLATILE);
                Kind::Code
            }
            N::CallStmt(s) => self.procedure(s),
            other => {
                self.maintenance(other).or_else(|| self.ddl(other)).unwrap_or(Kind::Unknown(Unknown::Node))
            }
        }
    }

    fn top_select(&mut self, s: &SelectStmt) -> Kind {
        let mut first = s;
        while let Some(left) = &first.larg {
            first = left;
        }
        self.out.total_order = self.order(s).total;
        self.select(s);
        match first.into_clause.as_ref().and_then(|into| into.rel.as_ref()) {
            Some(range) => self.create_relation(range),
            None => self.query_kind(),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "called with these four only")]
    fn modify(&mut self, node: &N) -> Kind {
        let (returning, one_row) = match node {
            N::InsertStmt(s) => (&s.returning_clause, one_values_row(s.select_stmt.as_deref())),
            N::UpdateStmt(s) => (&s.returning_clause, false),
            N::DeleteStmt(s) => (&s.returning_clause, false),
            N::MergeStmt(s) => (&s.returning_clause, false),
            _ => return Kind::Unknown(Unknown::Node),
        };
        self.out.total_order = returning.is_none() || one_row;
        self.node(&Node { node: Some(node.clone()) });
        self.query_kind()
    }

    fn pinned(&mut self, pin: Pin) -> Kind {
        self.pin(pin);
        Kind::Session
    }

    fn discard(&mut self, s: DiscardStmt) -> Kind {
        self.effect(match s.target() {
            DiscardMode::DiscardAll => Effect::DiscardAll,
            DiscardMode::DiscardPlans | DiscardMode::DiscardSequences | DiscardMode::DiscardTemp => {
                Effect::DiscardSome
            }
            DiscardMode::Undefined => return Kind::Unknown(Unknown::Node),
        });
        Kind::Session
    }

    fn set(&mut self, s: &VariableSetStmt) -> Kind {
        let name = s.name.to_ascii_lowercase();
        match s.kind() {
            VariableSetKind::Undefined => return Kind::Unknown(Unknown::Node),
            VariableSetKind::VarResetAll => {
                self.effect(Effect::ResetAll);
                return Kind::Session;
            }
            VariableSetKind::VarSetMulti => return self.set_several(s),
            VariableSetKind::VarSetValue
            | VariableSetKind::VarSetDefault
            | VariableSetKind::VarSetCurrent
            | VariableSetKind::VarReset => {}
        }
        // These three are settings of the transaction, however they are set.
        let of_transaction =
            matches!(&*name, "transaction_isolation" | "transaction_read_only" | "transaction_deferrable");
        if s.is_local || of_transaction {
            let value = s.args.first().and_then(constant_text);
            self.found.literal_dependent = true;
            self.effect(Effect::LocalSetting { name, value });
            return Kind::Local;
        }
        if name == "seed" {
            self.pin(Pin::SessionState);
        } else {
            self.effect(Effect::Setting(name));
        }
        Kind::Session
    }

    /// SET TRANSACTION and SET SESSION CHARACTERISTICS AS TRANSACTION.
    fn set_several(&mut self, s: &VariableSetStmt) -> Kind {
        let session = s.name == "SESSION CHARACTERISTICS";
        for option in s.args.iter().filter_map(def_elem) {
            self.found.literal_dependent = true;
            self.effect(if session {
                Effect::Setting(format!("default_{}", option.defname))
            } else {
                let value = option.arg.as_deref().and_then(constant_text);
                Effect::LocalSetting { name: option.defname.clone(), value }
            });
        }
        if session { Kind::Session } else { Kind::Local }
    }

    fn prepare(&mut self, s: &PrepareStmt, span: &Range<usize>) -> Kind {
        let Some(query) = s.query.as_deref() else { return Kind::Unknown(Unknown::Node) };
        let (inner, literal_dependent) = statement(query, span.clone(), self.context);
        self.found.literal_dependent |= literal_dependent;
        Kind::Prepare { name: s.name.clone(), inner: Box::new(inner) }
    }

    fn explain(&mut self, s: &ExplainStmt, span: &Range<usize>) -> Kind {
        let Some(query) = s.query.as_deref() else { return Kind::Unknown(Unknown::Node) };
        let (inner, literal_dependent) = statement(query, span.clone(), self.context);
        self.found.literal_dependent |= literal_dependent || s.options.iter().any(has_argument);
        let analyze = s.options.iter().filter_map(def_elem).rfind(|option| option.defname == "analyze");
        let executes =
            analyze.is_some_and(|option| option.arg.as_deref().is_none_or(|arg| truth(arg) != Some(false)));
        let kind = inner.kind.clone();
        if executes || matches!(kind, Kind::Execute { .. } | Kind::Unknown(_)) {
            self.out = inner;
            self.hazard(Hazards::INDETERMINATE);
            return kind;
        }
        self.out.reads = &inner.reads | &inner.writes;
        self.out.introspects = inner.introspects;
        self.hazard(Hazards::SESSION);
        Kind::Read
    }

    fn copy(&mut self, s: &CopyStmt) -> Kind {
        self.boxed(s.query.as_deref());
        self.boxed(s.where_clause.as_deref());
        if s.is_program || !s.filename.is_empty() {
            self.hazard(Hazards::SIDE_EFFECT);
        }
        match &s.relation {
            Some(range) if s.is_from => self.write(range),
            Some(range) => self.read(range),
            None => self.locked_counts_as_written(),
        }
        self.out.total_order = s.is_from;
        if s.is_from { Kind::CopyIn } else { Kind::CopyOut }
    }

    fn declare(&mut self, s: &DeclareCursorStmt) -> Kind {
        self.boxed(s.query.as_deref());
        self.locked_counts_as_written();
        let hold = s.options & CURSOR_HOLD != 0;
        if hold {
            self.pin(Pin::HoldCursor);
        }
        Kind::Declare { name: s.portalname.clone(), hold }
    }

    /// COPY and DECLARE have no kind of their own for locking reads: the lead must run them, as a write.
    fn locked_counts_as_written(&mut self) {
        if self.found.locking {
            self.out.writes.append(&mut self.out.reads);
        }
    }

    fn procedure(&mut self, s: &CallStmt) -> Kind {
        let Some(call) = &s.funccall else { return Kind::Unknown(Unknown::Node) };
        self.call(call);
        let Some((schema, procedure)) = qualified(&call.funcname) else {
            return Kind::Unknown(Unknown::Node);
        };
        if self.out.functions.iter().all(|known| known.name != procedure) {
            self.out.functions.insert(name::table(schema, procedure));
        }
        self.hazard(Hazards::VOLATILE);
        Kind::Code
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what no function handles is Unknown: fails closed")]
    fn maintenance(&mut self, node: &N) -> Option<Kind> {
        match node {
            N::LockStmt(s) => {
                for range in s.relations.iter().filter_map(range_var) {
                    self.write(range);
                }
                return Some(Kind::Lock);
            }
            N::TruncateStmt(s) => {
                for range in s.relations.iter().filter_map(range_var) {
                    self.write(range);
                }
                return Some(Kind::Write);
            }
            N::RefreshMatViewStmt(s) => {
                let range = s.relation.as_ref()?;
                self.object_range(Some(range));
                let view = name::relation(self.context, &range.schemaname, &range.relname);
                let catalog = self.context.catalog;
                for read in catalog.relations.get(&view).into_iter().flat_map(|view| &view.reads) {
                    self.read_name(&read.schema, &read.name);
                }
                return Some(Kind::Write);
            }
            N::VacuumStmt(s) => {
                for node in &s.rels {
                    let Some(N::VacuumRelation(vacuumed)) = &node.node else { return None };
                    self.object_range(vacuumed.relation.as_ref());
                }
            }
            N::ClusterStmt(s) => self.object_range(s.relation.as_ref()),
            N::ReindexStmt(s) => self.object_range(s.relation.as_ref()),
            N::CheckPointStmt(_) | N::AlterSystemStmt(_) => {}
            _ => return None,
        }
        Some(Kind::Utility)
    }
}

fn transaction(s: &TransactionStmt) -> Kind {
    let name = || s.savepoint_name.clone();
    Kind::Transaction(match s.kind() {
        T::TransStmtBegin | T::TransStmtStart => begin(&s.options),
        T::TransStmtCommit => Control::Commit { chain: s.chain },
        T::TransStmtRollback => Control::Rollback { chain: s.chain },
        T::TransStmtSavepoint => Control::Savepoint(name()),
        T::TransStmtRelease => Control::Release(name()),
        T::TransStmtRollbackTo => Control::RollbackTo(name()),
        T::TransStmtPrepare => Control::Prepare,
        T::TransStmtCommitPrepared | T::TransStmtRollbackPrepared => Control::FinishPrepared,
        T::Undefined => return Kind::Unknown(Unknown::Node),
    })
}

fn begin(options: &[Node]) -> Control {
    let (mut read_only, mut isolation) = (None, None);
    for option in options.iter().filter_map(def_elem) {
        let value = option.arg.as_deref().and_then(constant_text);
        match (option.defname.as_str(), value.as_deref()) {
            ("transaction_read_only", Some(value)) => read_only = Some(value != "0"),
            ("transaction_isolation", Some("read committed" | "read uncommitted")) => {
                isolation = Some(Isolation::ReadCommitted);
            }
            ("transaction_isolation", Some("repeatable read")) => isolation = Some(Isolation::RepeatableRead),
            ("transaction_isolation", Some("serializable")) => isolation = Some(Isolation::Serializable),
            _ => {}
        }
    }
    Control::Begin { read_only, isolation }
}

/// `VALUES (...)` of one row, or DEFAULT VALUES.
fn one_values_row(select: Option<&Node>) -> bool {
    match select.and_then(|node| node.node.as_ref()) {
        None => true,
        Some(N::SelectStmt(s)) => s.values_lists.len() == 1,
        Some(_) => false,
    }
}

fn has_argument(node: &Node) -> bool {
    def_elem(node).is_some_and(|option| option.arg.is_some())
}

/// The truth of an option's argument, as `defGetBoolean` has it.
fn truth(node: &Node) -> Option<bool> {
    match &node.node {
        Some(N::Integer(integer)) => Some(integer.ival != 0),
        Some(N::Boolean(value)) => Some(value.boolval),
        Some(N::String(text)) => match text.sval.to_ascii_lowercase().as_str() {
            "true" | "on" => Some(true),
            "false" | "off" => Some(false),
            _ => None,
        },
        _ => boolean(node),
    }
}

pub(super) fn def_elem(node: &Node) -> Option<&DefElem> {
    match &node.node {
        Some(N::DefElem(option)) => Some(option),
        _ => None,
    }
}

pub(super) fn range_var(node: &Node) -> Option<&pg_query::protobuf::RangeVar> {
    match &node.node {
        Some(N::RangeVar(range)) => Some(range),
        _ => None,
    }
}

/// A constant as text, as it would stand in `pg_settings`.
fn constant_text(node: &Node) -> Option<String> {
    let Some(N::AConst(constant)) = &node.node else { return literal(node).map(str::to_owned) };
    Some(match constant.val.as_ref()? {
        Val::Ival(integer) => integer.ival.to_string(),
        Val::Fval(float) => float.fval.clone(),
        Val::Boolval(value) => value.boolval.to_string(),
        Val::Sval(text) => text.sval.clone(),
        Val::Bsval(bits) => bits.bsval.clone(),
    })
}
