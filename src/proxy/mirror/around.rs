//! Statements of our own before and behind a client's unit on the lead.

use super::{Duty, Stopped, own};
use crate::{
    backend::{
        script::{Reply, Script, values},
        server::Server,
    },
    mirror::write_set::{Malformed, WriteSet},
    proxy::{
        client::{Client, End, Unit},
        flight::{Broken, Flight, Hold},
    },
    route::policy::Mode,
};

impl Client {
    /// Writes what stands before the unit; its answer comes before the unit's.
    pub(in crate::proxy) fn before_unit(
        &mut self,
        duty: Duty,
        unit: Unit,
        server: &mut Server,
        flight: &mut Flight,
    ) {
        let (Duty::Wrap(repositories) | Duty::Arm(repositories)) = duty else { return };
        let wraps = matches!(duty, Duty::Wrap(_));
        self.take_off(server, repositories);
        // A batch may name a portal that is not there: it must not find ours.
        let alone = wraps && matches!(unit, Unit::Simple { .. });
        let mut script = if alone { Script::default() } else { Script::beside() };
        if wraps {
            script.call(server, own::BEGIN, &[]);
            flight.mirrored.wrapped = true;
            flight.mirrored.hold = if matches!(unit, Unit::Simple { .. }) { Hold::Tag } else { Hold::Ready };
        } else {
            flight.mirrored.first = self.txn.captured == 0;
            self.txn.captured |= repositories;
            self.txn.armed |= repositories;
        }
        let numbers = self.numbers_of(repositories);
        script.call(server, own::ARM, &[Some(numbers.as_bytes()), Some(server.side.name().as_bytes())]);
        Script::sync(server);
        flight.mirrored.before = Some(Box::new((script, Reply::default())));
    }

    /// Waits for the answer to what stands before the unit: where the unit cannot be sent right behind it.
    pub(in crate::proxy) async fn settle_before(
        &mut self,
        server: &mut Server,
        flight: &mut Flight,
    ) -> Result<(), Broken> {
        let Some((script, _)) = flight.mirrored.before.take().map(|b| *b) else { return Ok(()) };
        let refused = match self.heeded(script, server).await {
            Ok(reply) => reply.error,
            Err(Stopped::Lost(why)) => return Err(Broken::Server(why)),
            Err(Stopped::Ended(error)) => return Err(Broken::Client(End::Error(error))),
            Err(Stopped::Server(error)) => Some(error),
            Err(Stopped::Error(error)) => {
                let mut said = bytes::BytesMut::new();
                error.encode(self.id(), &mut said);
                Some(said.to_vec())
            }
        };
        flight.mirrored.mute = refused.is_some();
        flight.mirrored.refused = refused;
        Ok(())
    }

    /// Writes the question for the write set right behind the unit.
    pub(in crate::proxy) fn behind_unit(&mut self, duty: Duty, server: &mut Server, flight: &mut Flight) {
        let Duty::Wrap(repositories) = duty else { return };
        flight.mirrored.after = Some(Box::new(self.ask_write_set(repositories, server)));
    }

    /// Writes the question for the write set.
    pub(super) fn ask_write_set(&self, repositories: u64, server: &mut Server) -> Script {
        // In a block of ours nothing of the client's is left by now.
        let mut script = if self.txn.captured == 0 { Script::default() } else { Script::beside() };
        match self.mode_of(repositories) {
            Mode::Off | Mode::Async => script.call(server, own::SPILL, &[]),
            Mode::Journaled | Mode::Atomic => self.put_write_set(&mut script, server),
        }
        Script::sync(server);
        script
    }

    fn put_write_set(&self, script: &mut Script, server: &mut Server) {
        let state = &self.shard.global.mirror;
        let token = state.tokens[server.side.index()].load();
        let token = token.as_ref().map_or(&b""[..], |t| t.as_bytes());
        // Looked up before it is asked: the answer proves that the server has not crashed since.
        server.checkpoint = state.checkpoint(server.side);
        script.call_binary(server, own::WRITE_SET, &[Some(token)]);
    }

    /// What all these repositories promise: two-phase commit only when each of them wants it, and the journal alone
    /// when none wants more. Values travel as the text that the lead sends: in another encoding than the follower's
    /// connection they are left to the repairer.
    pub(super) fn mode_of(&self, repositories: u64) -> Mode {
        let policy = &self.current.config.policy;
        let named = || policy.of(repositories).map(|(_, r)| r.mirror.mode);
        if !self.speaks_utf8() || named().all(|mode| mode == Mode::Async) {
            Mode::Async
        } else if named().all(|mode| mode == Mode::Atomic) {
            Mode::Atomic
        } else {
            Mode::Journaled
        }
    }

    /// Their numbers in the control schema, as an array literal.
    pub(super) fn numbers_of(&self, repositories: u64) -> String {
        let installed = self.shard.global.mirror.installed.load();
        let named = self.current.config.policy.of(repositories);
        let numbers: Vec<_> =
            named.filter_map(|(_, r)| installed.repositories.get(&r.name)).map(ToString::to_string).collect();
        format!("{{{}}}", numbers.join(","))
    }
}

/// Reads the answer of `crossfade.write_set`.
pub(super) fn write_set(reply: &Reply) -> Result<WriteSet, Malformed> {
    let row = reply.rows.first().and_then(values).ok_or(Malformed)?;
    WriteSet::read(row.into_iter().next().flatten().ok_or(Malformed)?)
}
