//! A unit on the lead with what it needs around it.

use std::{rc::Rc, time::Instant};

use super::{Duty, Stopped};
use crate::{
    backend::server::{QueryError, Server},
    error::ClientError,
    proxy::{
        client::{Client, End, Unit},
        extended::Survey,
        flight::{Broken, Flight, Hold},
        send::{SendError, names_statement},
        transact::Choice,
    },
    session::transaction::Status,
    statement::Kind,
    wire::frame::{self, HEADER},
};

impl Client {
    /// Sends a unit with what stands before and behind it, and sees it through.
    pub(in crate::proxy) async fn run_mirrored(
        &mut self,
        (duty, unit, length): (Duty, Unit, usize),
        survey: &mut Survey,
        server: &mut Server,
        flight: &mut Flight,
    ) -> Result<(), SendError> {
        let lost = |why: String| SendError::Broken(Broken::Server(why));
        let ended = |error| SendError::Broken(Broken::Client(End::Error(error)));
        if duty == Duty::Spill {
            match self.spill(server).await {
                Err(Stopped::Lost(why)) => return Err(lost(why)),
                Err(Stopped::Ended(error)) => return Err(ended(error)),
                // When the block has failed the unit will hear it.
                Ok(()) | Err(Stopped::Server(_) | Stopped::Error(_)) => {}
            }
            return self.send_and_exchange(unit, length, survey, server, flight).await;
        }
        self.before_unit(duty, unit, server, flight);
        // What it names is prepared first, in an exchange of its own.
        let named = survey.query.as_ref().is_some_and(|q| q.plan.statements.iter().any(names_statement));
        let complete = !matches!(unit, Unit::Extended { complete: false, .. });
        if named || !complete {
            self.settle_before(server, flight).await.map_err(SendError::Broken)?;
        }
        // Of an open batch nothing is sent before it is known who leads: what follows could not be sent again.
        if !complete && self.take_back(duty, server, flight).await.map_err(|e| lost(e.to_string()))? {
            flight.mirrored.late = true;
            return Ok(());
        }
        if let Some(error) = flight.mirrored.refused.take_if(|_| !complete) {
            // Its Sync may be long in coming.
            flight.answered = true;
            self.conn.output.extend_from_slice(&error);
        }
        self.send(unit, length, survey, server, flight).await?;
        let copies = survey.executed.iter().flat_map(|e| &e.plan.statements).any(|s| s.kind == Kind::CopyIn);
        if complete && !copies {
            self.behind_unit(duty, server, flight);
        }
        self.exchange(server, flight).await.map_err(SendError::Broken)?;
        if complete && self.take_back(duty, server, flight).await.map_err(|e| lost(e.to_string()))? {
            flight.mirrored.late = true;
            return Ok(());
        }
        if flight.mirrored.wrapped {
            self.shard.count_trip(server.side);
        }
        match duty {
            Duty::Wrap(repositories) => {
                self.unwrap(server, flight, repositories).await.map_err(SendError::Broken)
            }
            Duty::Arm(_) => {
                if flight.mirrored.mute {
                    let error = flight.mirrored.refused.take().unwrap_or_default();
                    self.conn.output.extend_from_slice(&error);
                    frame::put_ready(&mut self.conn.output, self.txn.status.byte());
                }
                Ok(())
            }
            Duty::Nothing | Duty::Commit | Duty::Spill => Ok(()),
        }
    }

    /// COMMIT of a block whose changes were captured.
    pub(in crate::proxy) async fn run_commit(
        &mut self,
        choice: Choice,
        unit: Unit,
        mut survey: Survey,
        mut server: Box<Server>,
    ) -> Result<(), End> {
        let repositories = self.txn.captured;
        let began = Instant::now();
        let mut flight = Flight::default();
        self.lands();
        let shipped = match self.ask(&mut server, repositories).await {
            Ok(reply) => self.ship(&mut server, repositories, reply).await,
            Err(stopped) => Err(stopped),
        };
        let shipped = match shipped {
            Ok(shipped) => shipped,
            Err(stopped) => return self.stop_commit(choice, unit, survey, (server, stopped)).await,
        };
        flight.mirrored.hold = Hold::Tag;
        let (Unit::Simple { length, .. } | Unit::Extended { length, .. }) = unit;
        let sent = self.send_and_exchange(unit, length, &mut survey, &mut server, &mut flight).await;
        match sent {
            Ok(()) => {
                let committed = flight.sqlstate.is_none() && !flight.rolled_back;
                self.end_follower(shipped, committed, repositories).await;
                self.conn.output.extend_from_slice(&flight.mirrored.held);
                let now = Instant::now();
                let traffic = [&mut self.conn, &mut server.conn].map(|c| std::mem::take(&mut c.traffic));
                self.observe(&choice, &flight, (now, now - began), traffic);
                server.info.transactions.set(server.info.transactions.get() + 1);
                self.finish(server, &flight, &survey, choice.footprint.as_deref(), now).await
            }
            Err(SendError::End(end) | SendError::Broken(Broken::Client(end))) => {
                // It does not wait any more; the two sides still have to agree.
                let heard = committed_in(&flight.mirrored.held);
                let committed = match heard {
                    Some(committed) => Some(committed),
                    None => match self.last_answer(&mut server).await {
                        Ok(reply) => Some(
                            reply.error.is_none() && reply.tags.last().is_some_and(|t| **t == *b"COMMIT"),
                        ),
                        Err(_) => None,
                    },
                };
                match committed {
                    Some(committed) => self.end_follower(shipped, committed, repositories).await,
                    None => drop(self.resolve_lost(choice.side, shipped).await),
                }
                Err(end)
            }
            Err(SendError::Broken(Broken::Server(why))) => {
                drop(server);
                self.pipeline.reset();
                self.registry.undo(usize::MAX);
                self.shard.lost_server(choice.side, &why);
                match self.resolve_lost(choice.side, shipped).await {
                    Some(true) => self.tell_committed(&choice),
                    Some(false) => {
                        let error = ClientError::error(
                            "08006",
                            format!(
                                "lost the {} connection, and the transaction was rolled back: {why}",
                                choice.side
                            ),
                        );
                        Err(End::Error(ClientError { fatal: true, ..error }))
                    }
                    None => self.server_lost(&choice, &why, &flight),
                }
            }
        }
    }

    /// The transaction was committed, and the connection that did it is gone.
    fn tell_committed(&mut self, choice: &Choice) -> Result<(), End> {
        frame::put(&mut self.conn.output, b'C', |b| b.extend_from_slice(b"COMMIT\0"));
        frame::put_ready(&mut self.conn.output, b'I');
        let held = self.keeps_servers() && choice.side == crate::Side::Source;
        self.txn.ended();
        self.txn.status = Status::Idle;
        self.shared.status.set(Status::Idle);
        self.shared.landed();
        if held {
            let text = format!("lost the {} connection after the transaction was committed", choice.side);
            return Err(End::Error(ClientError::fatal("08006", text)));
        }
        Ok(())
    }

    /// The block cannot commit: made to fail, it is rolled back by the client's own COMMIT, and the client hears why.
    async fn stop_commit(
        &mut self,
        choice: Choice,
        unit: Unit,
        mut survey: Survey,
        (mut server, stopped): (Box<Server>, Stopped),
    ) -> Result<(), End> {
        let shard = Rc::clone(&self.shard);
        let (Unit::Simple { length, .. } | Unit::Extended { length, .. }) = unit;
        let mut flight = Flight::default();
        let mut said = bytes::BytesMut::new();
        match stopped {
            Stopped::Lost(why) => {
                self.conn.consume(length, &shard.buffers);
                return self.lead_lost(&choice, server, &why, &flight);
            }
            Stopped::Ended(error) => {
                self.servers[choice.side.index()] = Some(server);
                return Err(End::Error(error));
            }
            Stopped::Server(error) => said.extend_from_slice(&error),
            Stopped::Error(error) => {
                let (sqlstate, message) = (error.sqlstate, &error.message);
                tracing::info!(
                    client = self.id(),
                    sqlstate,
                    message,
                    "a transaction was refused at its COMMIT"
                );
                error.encode(self.id(), &mut said);
            }
        }
        if server.status == Status::Block
            && let Err(QueryError::Io(why)) = server.query(FAIL, &shard.buffers).await
        {
            self.conn.consume(length, &shard.buffers);
            return self.lead_lost(&choice, server, &why.to_string(), &flight);
        }
        flight.mirrored.hold = Hold::Tag;
        match self.send_and_exchange(unit, length, &mut survey, &mut server, &mut flight).await {
            Ok(()) => {}
            Err(SendError::End(end) | SendError::Broken(Broken::Client(end))) => {
                self.servers[choice.side.index()] = Some(server);
                return Err(end);
            }
            Err(SendError::Broken(Broken::Server(why))) => {
                return self.lead_lost(&choice, server, &why, &flight);
            }
        }
        flight.sqlstate = frame::error_field(&said[HEADER..], b'C').and_then(|c| c.try_into().ok());
        self.conn.output.extend_from_slice(&said);
        frame::put_ready(&mut self.conn.output, self.txn.status.byte());
        self.finish(server, &flight, &survey, choice.footprint.as_deref(), Instant::now()).await
    }

    fn lead_lost(
        &mut self,
        choice: &Choice,
        server: Box<Server>,
        why: &str,
        flight: &Flight,
    ) -> Result<(), End> {
        drop(server);
        self.pipeline.reset();
        self.registry.undo(usize::MAX);
        self.shard.lost_server(choice.side, why);
        self.server_lost(choice, why, flight)
    }
}

/// Fails in every block, and does nothing else.
const FAIL: &str = "ROLLBACK TO SAVEPOINT \"crossfade refused a transaction\"";

/// What the lead said of its COMMIT, in frames that were held back.
fn committed_in(held: &[u8]) -> Option<bool> {
    let (tag, length) = frame::header(held).ok()??;
    (tag == b'C').then(|| held.get(HEADER..length) == Some(b"COMMIT\0"))
}
