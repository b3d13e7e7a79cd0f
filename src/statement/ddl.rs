//! Data definition: the relations that a statement names, as far as its text shows them.

use pg_query::{
    Node, NodeEnum as N,
    protobuf::{
        CommentStmt, Constraint, CreateStmt, CreateTableAsStmt, DropStmt, GrantStmt, GrantTargetType,
        ObjectType as O, RangeVar,
    },
};

use super::{
    Kind, Pin,
    access::Walker,
    name,
    node::qualified,
    utility::{range_var, statement},
};

impl Walker<'_> {
    /// `None` is not DDL.
    #[expect(clippy::wildcard_enum_match_arm, reason = "what no function handles is Unknown: fails closed")]
    pub(super) fn ddl(&mut self, node: &N) -> Option<Kind> {
        match node {
            N::CreateStmt(s) => Some(self.create_table(s)),
            N::CreateForeignTableStmt(s) => Some(self.create_table(s.base_stmt.as_ref()?)),
            N::CreateTableAsStmt(s) => self.create_table_as(s),
            N::CreateSeqStmt(s) => Some(self.create_relation(s.sequence.as_ref()?)),
            N::ViewStmt(s) => {
                self.boxed(s.query.as_deref());
                self.out.functions.clear();
                self.out.effects.clear();
                Some(self.create_relation(s.view.as_ref()?))
            }
            N::CreateSchemaStmt(s) => {
                for element in &s.schema_elts {
                    let (inner, _) = statement(element, 0..0, self.context);
                    // Unqualified names mean the new schema; which were qualified is not kept, so both count.
                    self.out.writes.extend(inner.writes.iter().map(|w| name::table(&s.schemaname, &w.name)));
                    self.out.writes.extend(inner.writes);
                    self.out.reads.extend(inner.reads);
                }
                Some(Kind::Ddl)
            }
            N::DropStmt(s) => Some(self.drop_objects(s)),
            N::GrantStmt(s) => Some(self.grant(s)),
            N::CommentStmt(s) => Some(self.comment(s)),
            other => self.alter(other).or_else(|| {
                let kind = database_wide(other)?;
                if created_name(other).is_some_and(|(schema, _)| name::is_temporary_schema(schema)) {
                    self.pin(Pin::TempTable);
                }
                Some(kind)
            }),
        }
    }

    /// Changes of one relation.
    #[expect(clippy::wildcard_enum_match_arm, reason = "what no function handles is Unknown: fails closed")]
    fn alter(&mut self, node: &N) -> Option<Kind> {
        match node {
            N::AlterTableStmt(s) => {
                self.object_range(s.relation.as_ref());
                for command in &s.cmds {
                    if let Some(N::AlterTableCmd(command)) = &command.node {
                        self.referenced(command.def.as_deref());
                    }
                }
            }
            N::IndexStmt(s) => self.object_range(s.relation.as_ref()),
            N::AlterSeqStmt(s) => self.object_range(s.sequence.as_ref()),
            N::CreateTrigStmt(s) => {
                self.object_range(s.relation.as_ref());
                self.object_range(s.constrrel.as_ref());
            }
            N::RuleStmt(s) => self.object_range(s.relation.as_ref()),
            N::CreatePolicyStmt(s) => self.object_range(s.table.as_ref()),
            N::AlterPolicyStmt(s) => self.object_range(s.table.as_ref()),
            N::RenameStmt(s) => self.object_range(s.relation.as_ref()),
            N::AlterObjectDependsStmt(s) => self.object_range(s.relation.as_ref()),
            N::AlterObjectSchemaStmt(s) => self.object_range(s.relation.as_ref()),
            N::AlterOwnerStmt(s) => self.object_range(s.relation.as_ref()),
            N::CreateStatsStmt(s) => {
                for range in s.relations.iter().filter_map(range_var) {
                    self.object_range(Some(range));
                }
            }
            N::SecLabelStmt(s) => self.commented(s.objtype(), s.object.as_deref()),
            _ => return None,
        }
        Some(Kind::Ddl)
    }

    /// A temporary relation is a thing of the session, no DDL of a repository.
    pub(super) fn create_relation(&mut self, range: &RangeVar) -> Kind {
        if range.relpersistence == "t" || name::is_temporary_schema(&range.schemaname) {
            self.pin(Pin::TempTable);
            self.out.writes.insert(name::table("pg_temp", &range.relname));
            return Kind::Session;
        }
        self.out.writes.insert(name::created(self.context, &range.schemaname, &range.relname));
        Kind::Ddl
    }

    fn create_table(&mut self, s: &CreateStmt) -> Kind {
        for parent in s.inh_relations.iter().filter_map(range_var) {
            self.object_range(Some(parent));
        }
        for element in s.table_elts.iter().chain(&s.constraints) {
            self.referenced(Some(element));
        }
        match &s.relation {
            Some(range) => self.create_relation(range),
            None => Kind::Ddl,
        }
    }

    /// Tables behind REFERENCES, LIKE and ATTACH PARTITION.
    fn referenced(&mut self, node: Option<&Node>) {
        match node.and_then(|node| node.node.as_ref()) {
            Some(N::Constraint(constraint)) => self.foreign_key(constraint),
            Some(N::ColumnDef(column)) => {
                for constraint in &column.constraints {
                    if let Some(N::Constraint(constraint)) = &constraint.node {
                        self.foreign_key(constraint);
                    }
                }
            }
            Some(N::TableLikeClause(like)) => {
                if let Some(range) = &like.relation {
                    self.read(range);
                }
            }
            Some(N::PartitionCmd(partition)) => self.object_range(partition.name.as_ref()),
            Some(N::RangeVar(range)) => self.object_range(Some(range)),
            _ => {}
        }
    }

    fn foreign_key(&mut self, constraint: &Constraint) {
        // Adding the key locks the table it points to and gives it triggers.
        self.object_range(constraint.pktable.as_ref());
    }

    fn create_table_as(&mut self, s: &CreateTableAsStmt) -> Option<Kind> {
        let range = s.into.as_ref()?.rel.as_ref()?;
        match s.query.as_deref().and_then(|query| query.node.as_ref()) {
            Some(N::ExecuteStmt(execute)) => {
                self.nodes(&execute.params);
                self.create_relation(range);
                return Some(Kind::Execute { name: execute.name.clone() });
            }
            _ => self.boxed(s.query.as_deref()),
        }
        Some(self.create_relation(range))
    }

    fn drop_objects(&mut self, s: &DropStmt) -> Kind {
        let relation = matches!(
            s.remove_type(),
            O::ObjectTable
                | O::ObjectView
                | O::ObjectMatview
                | O::ObjectSequence
                | O::ObjectForeignTable
                | O::ObjectIndex
        );
        let part = matches!(s.remove_type(), O::ObjectTrigger | O::ObjectRule | O::ObjectPolicy);
        for object in &s.objects {
            let Some(N::List(list)) = &object.node else { continue };
            let parts =
                if part { list.items.split_last().map_or(&[][..], |(_, table)| table) } else { &list.items };
            match qualified(parts) {
                Some((schema, name)) if relation || part => self.object(schema, name),
                Some(_) | None => {}
            }
        }
        Kind::Ddl
    }

    fn grant(&mut self, s: &GrantStmt) -> Kind {
        let relations = matches!(s.objtype(), O::ObjectTable | O::ObjectSequence);
        if relations && s.targtype() == GrantTargetType::AclTargetObject {
            for range in s.objects.iter().filter_map(range_var) {
                self.object_range(Some(range));
            }
        }
        Kind::Ddl
    }

    fn comment(&mut self, s: &CommentStmt) -> Kind {
        self.commented(s.objtype(), s.object.as_deref());
        Kind::Ddl
    }

    fn commented(&mut self, class: O, object: Option<&Node>) {
        let Some(N::List(list)) = object.and_then(|object| object.node.as_ref()) else { return };
        let whole =
            matches!(class, O::ObjectTable | O::ObjectView | O::ObjectMatview | O::ObjectForeignTable)
                || matches!(class, O::ObjectIndex | O::ObjectSequence);
        let part =
            matches!(class, O::ObjectColumn | O::ObjectTabconstraint | O::ObjectTrigger | O::ObjectRule)
                || class == O::ObjectPolicy;
        let parts =
            if part { list.items.split_last().map_or(&[][..], |(_, table)| table) } else { &list.items };
        match qualified(parts) {
            Some((schema, name)) if whole || part => self.object(schema, name),
            Some(_) | None => {}
        }
    }
}

/// The name of a function, type or the like that is made.
#[expect(clippy::wildcard_enum_match_arm, reason = "the rest cannot be made in pg_temp by its name")]
fn created_name(node: &N) -> Option<(&str, &str)> {
    match node {
        N::CreateFunctionStmt(s) => qualified(&s.funcname),
        N::CreateDomainStmt(s) => qualified(&s.domainname),
        N::CreateEnumStmt(s) => qualified(&s.type_name),
        N::CreateRangeStmt(s) => qualified(&s.type_name),
        N::DefineStmt(s) => qualified(&s.defnames),
        N::CompositeTypeStmt(s) => s.typevar.as_ref().map(|r| (&*r.schemaname, &*r.relname)),
        _ => None,
    }
}

/// DDL that names no relation, or not by a name that belongs to a repository.
#[expect(clippy::match_same_arms, reason = "a few statements a line")]
#[expect(clippy::wildcard_enum_match_arm, reason = "what no function handles is Unknown: fails closed")]
fn database_wide(node: &N) -> Option<Kind> {
    match node {
        N::AlterCollationStmt(_) | N::AlterDomainStmt(_) | N::GrantRoleStmt(_) | N::DefineStmt(_) => {}
        N::AlterDefaultPrivilegesStmt(_) | N::CreateTableSpaceStmt(_) | N::DropTableSpaceStmt(_) => {}
        N::AlterTableSpaceOptionsStmt(_) | N::AlterTableMoveAllStmt(_) | N::CreateExtensionStmt(_) => {}
        N::AlterExtensionStmt(_)
        | N::AlterExtensionContentsStmt(_)
        | N::CreateFdwStmt(_)
        | N::AlterFdwStmt(_) => {}
        N::CreateForeignServerStmt(_) | N::AlterForeignServerStmt(_) | N::CreateUserMappingStmt(_) => {}
        N::AlterUserMappingStmt(_) | N::DropUserMappingStmt(_) | N::ImportForeignSchemaStmt(_) => {}
        N::CreateAmStmt(_) | N::CreateEventTrigStmt(_) | N::AlterEventTrigStmt(_) | N::CreatePlangStmt(_) => {
        }
        N::CreateRoleStmt(_) | N::AlterRoleStmt(_) | N::AlterRoleSetStmt(_) | N::DropRoleStmt(_) => {}
        N::CreateDomainStmt(_)
        | N::CreateOpClassStmt(_)
        | N::CreateOpFamilyStmt(_)
        | N::AlterOpFamilyStmt(_) => {}
        N::AlterStatsStmt(_)
        | N::CreateFunctionStmt(_)
        | N::AlterFunctionStmt(_)
        | N::AlterOperatorStmt(_) => {}
        N::AlterTypeStmt(_) | N::CompositeTypeStmt(_) | N::CreateEnumStmt(_) | N::CreateRangeStmt(_) => {}
        N::AlterEnumStmt(_) | N::CreatedbStmt(_) | N::AlterDatabaseStmt(_) | N::DropdbStmt(_) => {}
        N::AlterDatabaseRefreshCollStmt(_) | N::AlterDatabaseSetStmt(_) | N::CreateConversionStmt(_) => {}
        N::CreateCastStmt(_) | N::CreateTransformStmt(_) | N::DropOwnedStmt(_) | N::ReassignOwnedStmt(_) => {}
        N::AlterTsdictionaryStmt(_) | N::AlterTsconfigurationStmt(_) | N::CreatePublicationStmt(_) => {}
        N::AlterPublicationStmt(_) | N::CreateSubscriptionStmt(_) | N::AlterSubscriptionStmt(_) => {}
        N::DropSubscriptionStmt(_) => {}
        _ => return None,
    }
    Some(Kind::Ddl)
}
