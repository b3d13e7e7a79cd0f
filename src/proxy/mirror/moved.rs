//! A unit that came too late: its repository is led by the other side by now. It runs there, and the client sees nothing of
//! it; a block that has done too much to move fails with 40001.

use std::{rc::Rc, time::Instant};

use super::Duty;
use crate::{
    Side,
    backend::{pool::Refused, server::Server},
    error::ClientError,
    mirror::schema::NOT_THE_LEAD,
    proxy::{
        checkout::unless_gone,
        client::{Client, End, Unit},
        flight::Flight,
        host::patiently,
        shared::Activity,
    },
    route::{Work, policy::Policy},
    session::transaction::Status,
    statement::Isolation,
    wire::frame::{self, HEADER},
};

/// A unit that was refused because another side leads.
pub(in crate::proxy) struct Late {
    duty: Duty,
    unit: Unit,
    /// As the client sent it.
    bytes: Vec<u8>,
}

impl Late {
    /// `bytes`: the unit, unless it is an open batch, which was not sent.
    pub(in crate::proxy) fn new(duty: Duty, unit: Unit, bytes: Option<Vec<u8>>) -> Self {
        let open = matches!(unit, Unit::Extended { complete: false, .. });
        Self { duty, unit, bytes: bytes.filter(|_| !open).unwrap_or_default() }
    }
}

impl Client {
    /// The lead refused to arm because another side leads. True: the unit can run there, and the lead's session is as if
    /// it had not been sent.
    pub(in crate::proxy) async fn take_back(
        &mut self,
        duty: Duty,
        lead: &mut Server,
        flight: &mut Flight,
    ) -> std::io::Result<bool> {
        let Some(error) = flight.mirrored.refused.as_ref().filter(|e| is_not_the_lead(e)) else {
            return Ok(false);
        };
        match duty {
            Duty::Wrap(_) => {
                if let Some(script) = flight.mirrored.after.take() {
                    script.reply(lead, &self.shard.buffers).await?;
                }
                self.roll_back_lead(lead).await?;
                Ok(true)
            }
            Duty::Arm(_) if flight.mirrored.first && self.may_begin_again() => Ok(true),
            Duty::Arm(_) | Duty::Nothing | Duty::Commit | Duty::Spill => {
                let mut said = bytes::BytesMut::new();
                conflict(&frame::error_text(error)).encode(self.id(), &mut said);
                flight.mirrored.refused = Some(said.to_vec());
                Ok(false)
            }
        }
    }

    /// Has the block done nothing that it could not do again on the other side?
    fn may_begin_again(&self) -> bool {
        let own_snapshots =
            matches!(self.txn.isolation, None | Some(Isolation::ReadCommitted)) && self.read_committed;
        let repeatable = match self.txn.work {
            Work::Prologue => true,
            Work::Read => own_snapshots,
            Work::Written | Work::Failed => false,
        };
        repeatable && !self.txn.fixed
    }

    /// Puts the unit back to where it came from, and looks who leads; the client's turn comes again.
    pub(in crate::proxy) async fn run_again(
        &mut self,
        late: Late,
        mut server: Box<Server>,
    ) -> Result<(), End> {
        let shard = Rc::clone(&self.shard);
        let (side, unit) = (server.side, late.unit);
        self.shared.landed();
        self.registry.settle();
        server.known.settle();
        let rest = std::mem::take(&mut self.conn.input);
        self.conn.input.extend_from_slice(&late.bytes);
        self.conn.input.extend_from_slice(&rest);
        let block = matches!(late.duty, Duty::Arm(_));
        if block || self.keeps_servers() {
            self.servers[side.index()] = Some(server);
        } else {
            shard.give_back(&self.pools[side.index()], server, Instant::now());
        }
        let again = self.late > 0;
        self.late += 1;
        let deadline = self.current.config.timeouts.query_wait.map(|wait| Instant::now() + wait);
        self.shared.activity.set(Activity::Waiting);
        let leads = &shard.global.mirrored.leads;
        let look = async {
            if again {
                tokio::time::sleep(PAUSE).await;
            }
            leads.look().await;
            Ok(())
        };
        let looked = patiently(look, deadline, &self.shared);
        let looked = unless_gone(looked, &mut self.conn, &shard).await;
        self.shared.activity.set(Activity::Active);
        let error = match looked {
            Ok(()) if self.late < MOST => None,
            Ok(()) | Err(Refused::Timeout) => Some(
                ClientError::error("55000", "no side leads the writes of this repository at the moment")
                    .hint("A move of the lead is not finished: SHOW REPOSITORIES says what it waits for."),
            ),
            Err(refused) => {
                self.late = 0;
                return self.not_served(side, refused, unit).await;
            }
        };
        let error = match error {
            None if block => self.begin_again(&late, side).await?,
            error => error,
        };
        let Some(error) = error else { return Ok(()) };
        self.late = 0;
        self.refuse(&error, unit).await
    }

    /// Begins the block again where its write belongs now; the error for the client when that cannot be.
    async fn begin_again(&mut self, late: &Late, from: Side) -> Result<Option<ClientError>, End> {
        // Nothing was before.
        (self.txn.captured, self.txn.armed) = (0, 0);
        let new = self.shard.current();
        let Duty::Arm(written) = late.duty else { return Ok(None) };
        let (old, policy) = (&self.current.config.policy, &new.config.policy);
        let names = |policy: &Policy| policy.repositories.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
        let lead = |index| policy.lead(index, self.txn.ticket);
        let of = |set| policy.of(set).map(|(index, _)| index);
        let to = of(written).map(lead).next().unwrap_or(from);
        // What was read must not be read again from a side that is behind.
        let current =
            |index: usize| lead(index) == to || index == 0 || !policy.repositories[index].reads.allows(to);
        if names(old) != names(policy)
            || !of(written).all(|index| lead(index) == to)
            || !of(self.txn.read).all(current)
        {
            // The block has failed on the server already.
            return Ok(Some(conflict("the lead of a repository has moved")));
        }
        self.current = new;
        self.txn.status = Status::Block;
        if let Err(error) = self.restart_block(from, to).await {
            return if error.fatal { Err(End::Error(error)) } else { Ok(Some(error)) };
        }
        Ok(None)
    }
}

fn conflict(why: &str) -> ClientError {
    ClientError::error("40001", format!("the transaction began before the lead of its writes moved: {why}"))
        .hint("Repeat the transaction.")
}

/// Is it an error of `crossfade.arm`: another side leads, or none?
fn is_not_the_lead(error: &[u8]) -> bool {
    frame::error_field(&error[HEADER..], b'C') == Some(NOT_THE_LEAD.as_bytes())
}

/// Between looks while nobody leads.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
/// So often a client waits for a lead: ten seconds at least, a minute at most.
const MOST: u8 = 200;
