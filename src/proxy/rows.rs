//! Rows of the target whose values hold OIDs: which they are, and how they are rewritten.

use std::rc::Rc;

use bytes::BytesMut;

use super::{client::Client, flight::Flight};
use crate::{
    Side,
    backend::server::Server,
    session::pipeline::Expect,
    wire::{
        frame::{self, Backend, HEADER},
        oids::{self, Nested, Shape},
    },
};

/// A portal on the target: whose rows they are, and in which formats.
#[derive(Debug)]
pub(super) struct Portal {
    pub(super) statement: Rc<super::client::Statement>,
    pub(super) formats: Vec<u16>,
    /// What of a row must be rewritten, once the columns are known.
    shapes: std::cell::OnceCell<Option<Vec<Option<Shape>>>>,
}

impl Portal {
    pub(super) fn new(statement: Rc<super::client::Statement>, formats: Vec<u16>) -> Self {
        Self { statement, formats, shapes: std::cell::OnceCell::new() }
    }

    fn shapes(&self, nested: &Nested) -> Option<&[Option<Shape>]> {
        let find = || {
            let columns = self.statement.columns.borrow();
            columns.as_ref().and_then(|types| nested.columns(types, &self.formats))
        };
        self.shapes.get_or_init(find).as_deref()
    }
}

impl Client {
    /// Are the rows that come now to be rewritten?
    pub(super) fn rewrites_rows(&self, flight: &Flight) -> bool {
        let portal = flight.rows.front().and_then(Option::as_ref);
        portal.is_some_and(|p| p.shapes(&self.current.catalog.nested).is_some())
    }

    pub(super) fn rewrite_row(&self, body: &mut [u8], flight: &Flight) {
        let nested = &self.current.catalog.nested;
        if let Some(Some(portal)) = flight.rows.front()
            && let Some(shapes) = portal.shapes(nested)
        {
            nested.data_row(body, shapes);
        }
    }

    /// Keeps the two queues of the target in step with its answers; what was described is remembered.
    pub(super) fn follow_target(
        &mut self,
        message: Backend,
        side: Side,
        range: std::ops::Range<usize>,
        server: &Server,
        flight: &mut Flight,
    ) {
        if side == Side::Source {
            return;
        }
        match (message, self.pipeline.next()) {
            (Backend::NoData, _) => drop(flight.described.pop_front()),
            (
                Backend::CommandComplete | Backend::EmptyQuery | Backend::PortalSuspended,
                Some(Expect::Execute),
            ) => {
                flight.rows.pop_front();
            }
            (Backend::RowDescription, Some(Expect::Describe | Expect::HiddenDescribe)) => {
                if let Some(Some(statement)) = flight.described.pop_front() {
                    let body = &server.conn.input[range.start + HEADER..range.end];
                    *statement.columns.borrow_mut() = oids::types_of(body).map(Into::into);
                }
            }
            _ => {}
        }
    }

    /// Remembers a portal on the target whose binary rows may hold OIDs; asks for its columns if they are not known.
    pub(super) fn note_portal(
        &mut self,
        portal: &[u8],
        name: &[u8],
        rest: &[u8],
        out: &mut BytesMut,
        flight: &mut Flight,
    ) {
        self.portals.remove(portal);
        if self.current.catalog.nested.shapes.is_empty() {
            return;
        }
        let Some(statement) = self.registry.get(name).cloned() else { return };
        let Some(formats) = oids::result_formats(rest).filter(|f| f.contains(&1)) else { return };
        if statement.columns.borrow().is_none() {
            let on_server = statement.server_name(name, self.naming());
            frame::put(out, b'D', |b| {
                b.extend_from_slice(b"S");
                b.extend_from_slice(on_server);
                b.extend_from_slice(&[0]);
            });
            self.pipeline.sent(Expect::HiddenDescribe);
            flight.described.push_back(Some(Rc::clone(&statement)));
        }
        self.portals.insert(portal.into(), Rc::new(Portal::new(statement, formats)));
    }
}
