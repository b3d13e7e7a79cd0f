//! Command tags that change what names mean: SQL-level PREPARE, DEALLOCATE and DISCARD, once they are carried out.

use std::rc::Rc;

use super::{
    client::{Client, Statement},
    flight::{Awaited, Flight},
    plans::Entry,
    send::names_statement,
};
use crate::{
    backend::server::Server,
    error::ClientError,
    statement::{Effect, Kind, Plan},
    wire::frame::{self, Fields},
};

/// A portal whose execution changes names.
pub(super) struct NamingPortal {
    name: Box<[u8]>,
    /// What executing it does.
    entry: Rc<Entry>,
    /// Whose text that is.
    statement: Rc<Statement>,
}

impl Client {
    /// Notes which command tags will change names or settings. `text` is that of a lone statement.
    pub(super) fn await_tags(&mut self, plan: &Plan, text: Option<&[u8]>, flight: &mut Flight) {
        for statement in &plan.statements {
            flight.unsure |= statement.moves_search_path();
            let awaited = if let Kind::Prepare { name, inner } = &statement.kind {
                let text = text.filter(|_| plan.statements.len() == 1);
                let made = text.and_then(|t| self.prepare_sql(t, inner));
                made.map(|statement| Awaited::Prepare { name: name.as_bytes().into(), statement })
            } else if let Kind::Deallocate { name } = &statement.kind {
                let one = |name: &String| Awaited::Deallocate { name: name.as_bytes().into() };
                Some(name.as_ref().map_or(Awaited::DeallocateAll, one))
            } else {
                statement.effects.contains(&Effect::DiscardAll).then_some(Awaited::DiscardAll)
            };
            flight.awaited.extend(awaited);
        }
    }

    /// May the client prepare one more statement, beside `more` that are about to be?
    pub(super) fn too_many_names(&self, name: &[u8], more: usize) -> Option<Box<ClientError>> {
        let limit = self.current.config.limits.max_client_statements;
        if name.is_empty() || self.registry.len() + more < limit || self.registry.get(name).is_some() {
            return None;
        }
        let error = ClientError::error("54000", format!("more than {limit} prepared statements"));
        let hint = "Close those that are not used any more, or raise limits.max_client_statements.";
        Some(Box::new(error.hint(hint)))
    }

    /// As above, for SQL-level PREPARE.
    pub(super) fn too_many_prepared(&self, plan: &Plan) -> Option<Box<ClientError>> {
        let name =
            |kind: &Kind| if let Kind::Prepare { name, .. } = kind { Some(name.clone()) } else { None };
        let mut names = plan.statements.iter().filter_map(|statement| name(&statement.kind));
        names.find_map(|name| self.too_many_names(name.as_bytes(), 0))
    }

    /// Has the client changed so many names that the server should answer first? Then it is asked to. What was answered
    /// cannot be undone any more: it need not be remembered, however long the batch is.
    pub(super) fn is_far_ahead(&mut self, server: &mut Server, flight: &mut Flight) -> bool {
        if self.registry.unsettled() > MOST_UNSETTLED {
            let (pending, on_server) = self.pipeline.changes_outstanding();
            self.registry.settle_before(pending);
            server.known.settle_before(on_server);
        }
        let far = self.registry.unsettled() > MOST_UNSETTLED && !self.pipeline.copies_in();
        if far && !flight.asked {
            frame::put(&mut server.conn.output, b'H', |_| {});
        }
        flight.asked = far;
        far
    }

    /// A Bind of the statement that the client calls `statement`: its Executes may come later, or never.
    pub(super) fn note_naming_portal(&mut self, portal: &[u8], statement: &[u8]) {
        self.naming_portals.retain(|p| *p.name != *portal);
        let Some(statement) = self.registry.get(statement) else { return };
        let own = Rc::clone(&statement.plan.borrow());
        if !own.plan.statements.iter().any(names_statement) {
            return;
        }
        let entry = self.resolve(&own, &self.meant(false));
        if !entry.plan.statements.iter().any(names_statement) {
            return; // EXECUTE of something else
        }
        let executed = if let [only] = &own.plan.statements[..]
            && let Kind::Execute { name } = &only.kind
        {
            self.registry.get(name.as_bytes())
        } else {
            None
        };
        let statement = Rc::clone(executed.unwrap_or(statement));
        if self.naming_portals.len() >= MOST_PORTALS {
            self.naming_portals.remove(0);
        }
        self.naming_portals.push(NamingPortal { name: portal.into(), entry, statement });
    }

    /// An Execute was sent: its tag is awaited in its turn.
    pub(super) fn await_portal(&mut self, body: &[u8], flight: &mut Flight) {
        if self.naming_portals.is_empty() {
            return;
        }
        let Ok(name) = Fields(body).cstr() else { return };
        let Some(portal) = self.naming_portals.iter().find(|p| *p.name == *name) else { return };
        let (entry, statement) = (Rc::clone(&portal.entry), Rc::clone(&portal.statement));
        self.await_tags(&entry.plan, Some(&statement.sql), flight);
    }
}

/// Changes of names that the server has not answered yet, beyond which no more of the batch is sent.
const MOST_UNSETTLED: usize = 10_000;
/// Portals with such statements that are remembered; nobody has more than a few.
const MOST_PORTALS: usize = 100;
