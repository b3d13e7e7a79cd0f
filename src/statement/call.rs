//! Calls of functions: what they do besides computing.

use pg_query::{
    Node, NodeEnum as N,
    protobuf::{FuncCall, JsonAggConstructor, JsonBehavior, JsonKeyValue, JsonValueExpr, a_const::Val},
};

use super::{
    Effect, Hazards, Pin, Table,
    access::Walker,
    builtin::{self, Builtin},
    name::{self, Meaning},
    node::{literal, qualified},
};
use crate::catalog::RelationKind;

impl Walker<'_> {
    pub(super) fn call(&mut self, call: &FuncCall) {
        self.nodes(&call.args);
        self.nodes(&call.agg_order);
        self.boxed(call.agg_filter.as_deref());
        if let Some(window) = &call.over {
            self.window(window);
        }
        let Some((schema, function)) = qualified(&call.funcname) else {
            self.found.unknown = true;
            return;
        };
        let user = name::functions(self.context, schema, function);
        self.user_functions(user);
        match builtin::classify(function) {
            // The functions of extensions live in any schema; those that run SQL are feared everywhere.
            Some(Builtin::Code) => self.code(schema, function),
            Some(class) if schema.is_empty() || schema == "pg_catalog" => self.builtin(class, function, call),
            Some(_) | None => {}
        }
    }

    /// Calls of the user's own functions.
    pub(super) fn user_functions(&mut self, functions: impl IntoIterator<Item = Table>) {
        for function in functions {
            let known = self.context.catalog.functions.get(&function);
            let volatile = known.is_none_or(|f| f.volatile);
            if volatile {
                self.found.code = true;
                self.hazard(Hazards::VOLATILE);
            }
            if volatile || known.is_none_or(|f| f.reads_tables) {
                self.out.functions.insert(function);
            }
        }
    }

    /// Calls in the views behind a name; what they are called with is not known.
    pub(super) fn called_by_views(&mut self, meaning: &Meaning) {
        for function in &meaning.functions {
            let builtin = function.schema == "pg_catalog";
            if !builtin {
                self.user_functions([function.clone()]);
            }
            match builtin::classify(&function.name) {
                Some(Builtin::Code) => self.code(&function.schema, &function.name),
                Some(class @ (Builtin::Sequence | Builtin::SequenceState)) if builtin => {
                    self.sequence_in_view(class, &function.name, meaning);
                }
                Some(class) if builtin => self.builtin(class, &function.name, &FuncCall::default()),
                Some(_) | None => {}
            }
        }
    }

    /// The sequences are known where they are written as constants: the view depends on them.
    fn sequence_in_view(&mut self, class: Builtin, function: &str, meaning: &Meaning) {
        let relations = &self.context.catalog.relations;
        let is_sequence =
            |table: &&Table| relations.get(*table).is_some_and(|r| r.kind == RelationKind::Sequence);
        let sequences: Vec<&Table> = meaning.tables.iter().filter(is_sequence).collect();
        let computed = meaning.functions.contains(&name::table("pg_catalog", "regclass"));
        if sequences.is_empty() || computed {
            return self.builtin(class, function, &FuncCall::default());
        }
        self.hazard(Hazards::SEQUENCE);
        if class == Builtin::SequenceState {
            self.found.locking = true;
            return self.pin(Pin::SessionState);
        }
        self.found.write = true;
        for sequence in sequences {
            self.write_name(&sequence.schema, &sequence.name);
        }
    }

    fn builtin(&mut self, class: Builtin, function: &str, call: &FuncCall) {
        match class {
            Builtin::Clock => self.hazard(Hazards::CLOCK),
            Builtin::Random => self.hazard(Hazards::RANDOM),
            Builtin::Session => self.hazard(Hazards::SESSION),
            Builtin::Sequence => self.sequence(function, call),
            Builtin::SequenceState => self.sequence_state(call),
            Builtin::Introspection => {
                self.out.introspects = true;
                self.hazard(Hazards::SESSION);
            }
            Builtin::SessionLock => {
                self.side_effect();
                self.pin(Pin::AdvisoryLock);
            }
            Builtin::SideEffect => self.side_effect(),
            Builtin::SetConfig => self.set_config(&call.args),
            Builtin::SetSeed => {
                self.found.session = true;
                self.pin(Pin::SessionState);
            }
            Builtin::Code => self.code("", function),
            Builtin::OrderedAggregate if call.agg_order.is_empty() => self.hazard(Hazards::INDETERMINATE),
            Builtin::Window if call.over.is_some() => self.hazard(Hazards::INDETERMINATE),
            Builtin::Aggregate | Builtin::OrderedAggregate | Builtin::Window => {}
        }
    }

    /// A built-in function that runs SQL: as little known as a volatile function of the user's.
    fn code(&mut self, schema: &str, function: &str) {
        self.found.code = true;
        self.hazard(Hazards::VOLATILE);
        self.hazard(Hazards::SIDE_EFFECT);
        if !self.out.functions.iter().any(|known| known.name == function) {
            let schema = if schema.is_empty() { "pg_catalog" } else { schema };
            self.out.functions.insert(name::table(schema, function));
        }
    }

    fn side_effect(&mut self) {
        self.found.session = true;
        self.hazard(Hazards::SIDE_EFFECT);
    }

    fn sequence(&mut self, function: &str, call: &FuncCall) {
        self.hazard(Hazards::SEQUENCE);
        match call.args.first().and_then(literal).and_then(name::split_literal) {
            Some((schema, sequence)) => {
                self.found.literal_dependent = true;
                self.found.write = true;
                self.write_name(&schema, &sequence);
            }
            None => self.code("pg_catalog", function),
        }
    }

    /// `currval('s')` answers only in the session that drew from the sequence: where it is written.
    fn sequence_state(&mut self, call: &FuncCall) {
        self.hazard(Hazards::SEQUENCE);
        self.pin(Pin::SessionState);
        match call.args.first().and_then(literal).and_then(name::split_literal) {
            Some((schema, sequence)) => {
                self.found.literal_dependent = true;
                self.found.locking = true;
                self.read_name(&schema, &sequence);
            }
            None => self.found.session = true,
        }
    }

    /// `set_config(name, value, is_local)`.
    fn set_config(&mut self, args: &[Node]) {
        let args: Vec<&Node> = args.iter().map(unnamed).collect();
        let setting = args.first().copied().and_then(literal);
        let local = args.get(2).copied().and_then(boolean);
        self.found.literal_dependent = true;
        match (setting, local) {
            (Some(name), Some(true)) => {
                self.found.local = true;
                let value = args.get(1).copied().and_then(literal).map(str::to_owned);
                self.effect(Effect::LocalSetting { name: name.to_ascii_lowercase(), value });
            }
            // Whatever it sets may be what names depend on.
            (None, Some(true)) => {
                self.found.local = true;
                self.effect(Effect::LocalSetting { name: "search_path".to_owned(), value: None });
            }
            (Some(name), Some(false)) => {
                self.found.session = true;
                self.effect(Effect::Setting(name.to_ascii_lowercase()));
            }
            (_, None) | (None, Some(false)) => {
                self.found.session = true;
                self.effect(Effect::Setting("search_path".to_owned()));
                self.pin(Pin::SessionState);
            }
        }
    }

    pub(super) fn json_value(&mut self, value: Option<&JsonValueExpr>) {
        if let Some(value) = value {
            self.boxed(value.raw_expr.as_deref());
            self.boxed(value.formatted_expr.as_deref());
        }
    }

    pub(super) fn json_behavior(&mut self, behavior: Option<&JsonBehavior>) {
        self.boxed(behavior.and_then(|b| b.expr.as_deref()));
    }

    pub(super) fn json_pair(&mut self, pair: &JsonKeyValue) {
        self.boxed(pair.key.as_deref());
        self.json_value(pair.value.as_deref());
    }

    pub(super) fn json_aggregate(&mut self, aggregate: Option<&JsonAggConstructor>) {
        let Some(aggregate) = aggregate else { return };
        self.boxed(aggregate.agg_filter.as_deref());
        self.nodes(&aggregate.agg_order);
        if let Some(window) = &aggregate.over {
            self.window(window);
        }
        if aggregate.agg_order.is_empty() {
            self.hazard(Hazards::INDETERMINATE);
        }
    }
}

/// The value of `name => value`. Arguments given by name and out of order are read as not literal.
fn unnamed(node: &Node) -> &Node {
    match &node.node {
        Some(N::NamedArgExpr(_)) => NOT_LITERAL,
        _ => node,
    }
}

static NOT_LITERAL: &Node = &Node { node: None };

/// A boolean literal: `true`, `'t'`, `'true'::bool`.
pub(super) fn boolean(node: &Node) -> Option<bool> {
    match &node.node {
        Some(N::AConst(constant)) => match &constant.val {
            Some(Val::Boolval(value)) => Some(value.boolval),
            Some(Val::Sval(text)) => match text.sval.trim().to_ascii_lowercase().as_str() {
                "t" | "tr" | "tru" | "true" | "y" | "ye" | "yes" | "on" | "1" => Some(true),
                "f" | "fa" | "fal" | "fals" | "false" | "n" | "no" | "of" | "off" | "0" => Some(false),
                _ => None,
            },
            Some(Val::Ival(_) | Val::Fval(_) | Val::Bsval(_)) | None => None,
        },
        Some(N::TypeCast(cast)) => cast.arg.as_deref().and_then(boolean),
        _ => None,
    }
}
