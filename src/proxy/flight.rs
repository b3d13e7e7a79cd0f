//! What one exchange has seen so far, and what of it is crossfade's own.

use std::{collections::VecDeque, rc::Rc};

use bytes::BytesMut;

use super::{client::End, rows::Portal, shadow::Tap};
use crate::{
    backend::script::{Reply, Script},
    session::{pipeline::Expect, words::Moved},
    wire::frame::Backend,
};

/// What one exchange has seen so far.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// Bytes of the server's current frame that are passed on unread.
    pub(super) passing: usize,
    /// Bytes of the client's current CopyData that are passed on unread.
    pub(super) feeding: usize,
    /// Something of the answer is on its way to the client.
    pub(super) answered: bool,
    /// SQLSTATE of the last error.
    pub(super) sqlstate: Option<[u8; 5]>,
    /// The answer comes from outside of the client's block, see `Choice::aside`.
    pub(super) aside: bool,
    /// The server said FATAL.
    pub(super) fatal: bool,
    /// Nothing of a failed answer may reach the client: the unit is run elsewhere then.
    pub(super) retryable: bool,
    /// SQL-level PREPARE, DEALLOCATE and DISCARD whose command tags are awaited.
    pub(super) awaited: VecDeque<Awaited>,
    /// Portals whose rows are due, in the order of the Executes (target only).
    pub(super) rows: VecDeque<Option<Rc<Portal>>>,
    /// Statements that are being described, in order (target only).
    pub(super) described: VecDeque<Option<Rc<super::client::Statement>>>,
    /// The tag of the last CommandComplete was `ROLLBACK`.
    pub(super) rolled_back: bool,
    /// The text was sent with another name of a prepared statement in it: the client's name, and what that moved.
    pub(super) renamed: Option<Box<(Box<[u8]>, Moved)>>,
    /// What messages of the client executed that came after the unit was begun.
    pub(super) later: Vec<Rc<super::plans::Entry>>,
    /// Addresses of those.
    pub(super) seen: std::collections::HashSet<*const super::plans::Entry>,
    /// The server was asked to answer before more is sent to it.
    pub(super) asked: bool,
    /// What of the batch was sent may have changed the search path.
    pub(super) unsure: bool,
    /// The client broke the protocol: the server has been told, nothing more is read.
    pub(super) deaf: bool,
    /// The answer is to be compared with the other side's.
    pub(super) tap: Option<Box<Tap>>,
    /// What of the exchange is crossfade's own.
    pub(super) mirrored: Mirrored,
}

/// What is sent around a client's unit that writes to a mirrored repository, and what of its answer must wait.
#[derive(Debug, Default)]
pub(super) struct Mirrored {
    /// Statements of our own stand before the unit: their answer, until it is whole.
    pub(super) before: Option<Box<(Script, Reply)>>,
    /// The error that it was.
    pub(super) refused: Option<Vec<u8>>,
    /// The block had captured nothing before.
    pub(super) first: bool,
    /// It was refused because another side leads, and can run there.
    pub(super) late: bool,
    /// Their answer was an error: whatever the server says to the unit is not for the client.
    pub(super) mute: bool,
    /// More of our own stands behind the unit: what comes after it is left in the server's input.
    pub(super) after: Option<Box<Script>>,
    /// The block around the unit is ours: the client is outside of one.
    pub(super) wrapped: bool,
    /// Repositories for which capture was switched on in the middle of a batch, in a block of ours.
    pub(super) repositories: u64,
    /// What must not reach the client yet.
    pub(super) hold: Hold,
    /// What was held back.
    pub(super) held: BytesMut,
}

/// What of an answer is held back until it is true.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Hold {
    /// Nothing.
    #[default]
    Nothing,
    /// ReadyForQuery.
    Ready,
    /// The last command tag as well: Postgres commits before it says that a simple query is complete.
    Tag,
}

impl Mirrored {
    /// Is it kept for later? The end of a block of ours is not the client's.
    pub(super) fn keeps(&self, message: Backend) -> bool {
        self.holds(message) && !(self.wrapped && message == Backend::Ready)
    }

    pub(super) fn holds(&self, message: Backend) -> bool {
        let tag = matches!(message, Backend::CommandComplete | Backend::EmptyQuery);
        message == Backend::Ready && self.hold != Hold::Nothing || tag && self.hold == Hold::Tag
    }
}

/// What is done to names and settings once the server says that the statement was carried out.
#[derive(Debug)]
pub(super) enum Awaited {
    /// Tag `PREPARE`.
    Prepare { name: Box<[u8]>, statement: Rc<super::client::Statement> },
    /// Tag `DEALLOCATE`.
    Deallocate { name: Box<[u8]> },
    /// Tag `DEALLOCATE ALL`.
    DeallocateAll,
    /// Tag `DISCARD ALL`.
    DiscardAll,
}

/// Why an exchange did not come to its end.
#[derive(Debug)]
pub(super) enum Broken {
    /// The client's side.
    Client(End),
    /// The server closed the connection or broke the protocol; the text names the cause.
    Server(String),
}

impl Flight {
    /// The server will not answer these.
    pub(super) fn forget(&mut self, lost: &[Expect]) {
        let count = |wanted: &[Expect]| lost.iter().filter(|e| wanted.contains(e)).count();
        self.rows.drain(..count(&[Expect::Execute]).min(self.rows.len()));
        let described = count(&[Expect::Describe, Expect::HiddenDescribe]);
        self.described.drain(..described.min(self.described.len()));
    }
}
