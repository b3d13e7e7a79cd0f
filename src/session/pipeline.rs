//! What was sent to a server and is not answered yet, in order.
//!
//! The server's answers are matched against this queue: that is how an injected Parse is swallowed,
//! how an answer of our own lands in its place, and how it is known that nothing is outstanding.
//! After an error in the extended protocol the server skips everything up to Sync (manual, 54.2.4).

use std::collections::VecDeque;

use crate::wire::frame::Backend;

/// One answer that is due.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    /// The client's Parse.
    Parse,
    /// A Parse of ours: its answer is swallowed.
    HiddenParse,
    /// The client's Bind.
    Bind,
    /// The client's Describe.
    Describe,
    /// A Describe of ours, to learn what a statement's columns are.
    HiddenDescribe,
    /// The client's Execute.
    Execute,
    /// The client's Close of a statement.
    Close,
    /// The client's Close of a portal.
    ClosePortal,
    /// What the server will refuse: it changes nothing.
    Malformed,
    /// A Close of ours, to make room or to replace an older statement of the name.
    HiddenClose,
    /// Bind and Execute of ours (an SQL-level PREPARE replayed on this server).
    HiddenBind,
    /// See [`Expect::HiddenBind`].
    HiddenExecute,
    /// See [`Expect::HiddenBind`].
    HiddenClosePortal,
    /// The server is not asked: ParseComplete is answered when its turn comes.
    OwnParseComplete,
    /// As above for CloseComplete.
    OwnCloseComplete,
    /// A simple Query.
    Query,
    /// The same behind extended messages without a Sync: it is skipped when one of them fails.
    QueryInBatch,
    /// A FunctionCall.
    Function,
    /// The client's Sync.
    Sync,
    /// A `CopyDone` or `CopyFail` that was sent on before it was known whether a COPY is there to take it: no answer.
    CopyEnd,
}

impl Expect {
    /// Was one change of the client's names noted for it ([`super::prepared::Registry::set`])?
    pub fn changes_client(self) -> bool {
        matches!(
            self,
            Expect::Parse
                | Expect::OwnParseComplete
                | Expect::Close
                | Expect::OwnCloseComplete
                | Expect::QueryInBatch
        )
    }

    /// Was one change of the server's names noted for it ([`super::prepared::Known::set`])?
    pub fn changes_server(self) -> bool {
        matches!(
            self,
            Expect::Parse
                | Expect::HiddenParse
                | Expect::HiddenClose
                | Expect::HiddenExecute
                | Expect::Close
                | Expect::QueryInBatch
        )
    }
}

/// What to do with the frame that was looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reaction {
    /// Pass it on.
    Forward,
    /// Drop it.
    Swallow,
}

/// The queue and what it means for the frames to come.
#[derive(Debug, Default)]
pub struct Pipeline {
    queue: VecDeque<Expect>,
    /// An error was answered and no Sync has been sent since: the server ignores what comes.
    skipping: bool,
    /// The server waits for CopyData.
    copy_in: bool,
    /// Extended messages were sent and their Sync was not.
    open: bool,
}

impl Pipeline {
    /// Notes that a message was sent.
    pub fn sent(&mut self, expect: Expect) {
        match expect {
            Expect::Sync => {
                self.skipping = false;
                self.open = false;
            }
            _ if self.skipping => return,
            // They end a batch as Sync does.
            Expect::Query | Expect::QueryInBatch | Expect::Function => self.open = false,
            Expect::CopyEnd if self.queue.is_empty() => return,
            Expect::CopyEnd => {}
            Expect::Parse
            | Expect::HiddenParse
            | Expect::Malformed
            | Expect::Bind
            | Expect::Describe
            | Expect::Execute
            | Expect::Close
            | Expect::ClosePortal
            | Expect::HiddenClose
            | Expect::HiddenBind
            | Expect::HiddenExecute
            | Expect::HiddenClosePortal
            | Expect::HiddenDescribe
            | Expect::OwnParseComplete
            | Expect::OwnCloseComplete => self.open = true,
        }
        self.queue.push_back(expect);
    }

    /// Nothing is outstanding and the last batch was closed by its Sync.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.open
    }

    /// An extended batch waits for more messages of the client.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The server waits for CopyData.
    pub fn copies_in(&self) -> bool {
        self.copy_in
    }

    /// Does the server skip what is sent now?
    pub fn skips(&self) -> bool {
        self.skipping
    }

    /// The client sent the end of a COPY.
    pub fn copy_ended(&mut self) {
        if self.copy_in {
            self.copy_in = false;
        } else {
            self.sent(Expect::CopyEnd);
        }
    }

    /// How many answers are outstanding whose messages changed names: the client's and the server's.
    pub fn changes_outstanding(&self) -> (usize, usize) {
        let count = |changes: fn(Expect) -> bool| self.queue.iter().filter(|e| changes(**e)).count();
        (count(Expect::changes_client), count(Expect::changes_server))
    }

    /// The answer of ours that is due now, taken from the queue.
    pub fn own_answer(&mut self) -> Option<&'static [u8]> {
        let front = self.queue.front()?;
        let answer: &[u8] = if *front == Expect::OwnParseComplete {
            b"1\0\0\0\x04"
        } else if *front == Expect::OwnCloseComplete {
            b"3\0\0\0\x04"
        } else {
            return None;
        };
        self.pop();
        Some(answer)
    }

    /// What is answered next.
    pub fn next(&self) -> Option<Expect> {
        self.queue.front().copied()
    }

    /// Looks at one frame of the server. `lost` gets what the server will never answer because of an error.
    pub fn answered(&mut self, message: Backend, lost: &mut Vec<Expect>) -> Reaction {
        let front = self.queue.front().copied();
        let hidden = matches!(
            front,
            Some(
                Expect::HiddenParse
                    | Expect::HiddenDescribe
                    | Expect::HiddenClose
                    | Expect::HiddenBind
                    | Expect::HiddenExecute
                    | Expect::HiddenClosePortal
            )
        );
        match message {
            Backend::ParseComplete | Backend::BindComplete | Backend::CloseComplete | Backend::NoData => {
                self.pop();
            }
            Backend::RowDescription => {
                if matches!(front, Some(Expect::Describe | Expect::HiddenDescribe)) {
                    self.pop();
                }
            }
            Backend::CommandComplete | Backend::EmptyQuery | Backend::PortalSuspended => {
                if matches!(front, Some(Expect::Execute | Expect::HiddenExecute)) {
                    self.copy_in = false;
                    self.pop();
                }
            }
            Backend::CopyInResponse => self.begin_copy(front),
            Backend::Error => self.failed(front, lost),
            Backend::Ready => {
                self.copy_in = false;
                self.pop();
            }
            Backend::ParameterDescription => {}
            Backend::Relayed | Backend::Notice | Backend::ParameterStatus => return Reaction::Forward,
        }
        if hidden && message != Backend::Error { Reaction::Swallow } else { Reaction::Forward }
    }

    fn pop(&mut self) {
        self.queue.pop_front();
        // No COPY came before them: the server has ignored them.
        while self.queue.front() == Some(&Expect::CopyEnd) {
            self.queue.pop_front();
        }
    }

    /// Sync and Flush that follow an Execute of COPY FROM are read, and ignored, by the COPY: no answer will come.
    fn begin_copy(&mut self, front: Option<Expect>) {
        self.copy_in = true;
        if front == Some(Expect::Execute) {
            if let Some(end) = self.queue.iter().position(|e| *e == Expect::CopyEnd) {
                self.queue.drain(1..=end);
                self.copy_in = false;
            } else {
                self.queue.truncate(1);
                self.open = true;
            }
        }
    }

    fn failed(&mut self, front: Option<Expect>, lost: &mut Vec<Expect>) {
        self.copy_in = false;
        match front {
            None
            | Some(
                Expect::Query | Expect::QueryInBatch | Expect::Function | Expect::Sync | Expect::CopyEnd,
            ) => {}
            Some(_) => {
                while let Some(next) = self.queue.front().copied() {
                    if next == Expect::Sync {
                        return;
                    }
                    lost.push(next);
                    self.queue.pop_front();
                }
                self.skipping = true;
                self.open = true;
            }
        }
    }

    /// Forgets everything: the server is gone.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `sent`, answers `answers` (one letter each), and checks what is forwarded (own answers in lower case
    /// brackets), what is lost and whether the pipeline is idle.
    #[track_caller]
    fn check(sent: &[Expect], answers: &[u8], forwarded: &str, lost_count: usize, idle: bool) {
        let mut pipeline = Pipeline::default();
        for &e in sent {
            pipeline.sent(e);
        }
        let (mut out, mut lost) = (String::new(), Vec::new());
        let own = |p: &mut Pipeline, out: &mut String| {
            while let Some(a) = p.own_answer() {
                out.push('(');
                out.push(char::from(a[0]));
                out.push(')');
            }
        };
        own(&mut pipeline, &mut out);
        for &a in answers {
            let message = Backend::from_tag(a).expect("a backend message");
            if pipeline.answered(message, &mut lost) == Reaction::Forward {
                out.push(char::from(a));
            }
            own(&mut pipeline, &mut out);
        }
        assert_eq!((out.as_str(), lost.len(), pipeline.is_idle()), (forwarded, lost_count, idle));
    }

    #[test]
    fn answers_are_matched() {
        use Expect::*;
        let (parse, hidden) = (Parse, HiddenParse);
        check(&[Query], b"TDDCZ", "TDDCZ", 0, true);
        check(&[parse, Bind, Describe, Execute, Sync], b"12TDCZ", "12TDCZ", 0, true);
        check(&[hidden, Bind, Describe, Execute, Sync], b"12TDCZ", "2TDCZ", 0, true);
        check(&[OwnParseComplete, Bind, Execute, Sync], b"2CZ", "(1)2CZ", 0, true);
        check(&[parse, Bind, Execute, OwnCloseComplete, Sync], b"12CZ", "12C(3)Z", 0, true);
        check(&[parse, Describe, Sync], b"1tTZ", "1tTZ", 0, true);
        check(&[parse, Describe, Sync], b"1tnZ", "1tnZ", 0, true);
        check(&[HiddenDescribe, Bind, Execute, Sync], b"tT2DCZ", "2DCZ", 0, true);
        check(&[HiddenDescribe, Bind, Execute, Sync], b"tn2CZ", "2CZ", 0, true);
        check(&[parse, Bind, OwnParseComplete, Execute, Sync], b"1EZ", "1EZ", 3, true);
        check(&[hidden, Bind, Execute, Sync], b"EZ", "EZ", 3, true);
        check(&[Bind, Execute], b"E", "E", 2, false);
        check(&[Bind, Execute], b"2C", "2C", 0, false);
        check(&[HiddenClose, parse, Sync], b"31Z", "1Z", 0, true);
        let replayed = [HiddenParse, HiddenBind, HiddenExecute, HiddenClosePortal, Bind, Execute, Sync];
        check(&replayed, b"12C32CZ", "2CZ", 0, true);
        check(&[Query], b"TDEZ", "TDEZ", 0, true);
        check(&[Query], b"TDE", "TDE", 0, false);
        check(&[Bind, Execute, Bind, Execute, Sync], b"2C2EZ", "2C2EZ", 1, true);
    }

    #[test]
    fn copy_swallows_the_sync_behind_it() {
        let mut p = Pipeline::default();
        let mut lost = Vec::new();
        for e in [Expect::Bind, Expect::Execute, Expect::Sync] {
            p.sent(e);
        }
        p.answered(Backend::BindComplete, &mut lost);
        p.answered(Backend::CopyInResponse, &mut lost);
        assert!(p.copies_in() && p.is_open());
        p.copy_ended();
        p.sent(Expect::Sync);
        p.answered(Backend::CommandComplete, &mut lost);
        p.answered(Backend::Ready, &mut lost);
        assert!(p.is_idle() && lost.is_empty());
    }

    #[test]
    fn a_query_behind_an_error_is_skipped() {
        let mut p = Pipeline::default();
        let mut lost = Vec::new();
        p.sent(Expect::Parse);
        p.sent(Expect::Query);
        p.answered(Backend::Error, &mut lost);
        p.sent(Expect::Query);
        p.sent(Expect::Sync);
        assert_eq!(p.answered(Backend::Ready, &mut lost), Reaction::Forward);
        assert!(p.is_idle());
    }
}
