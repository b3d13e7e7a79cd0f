//! A unit on the lead with what it needs around it.

use std::{rc::Rc, time::Instant};

use super::{Duty, Stopped};
use crate::{
    backend::server::Server,
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
        if duty == Duty::Spill {
            match self.spill(server).await {
                Ok(()) => {}
                Err(Stopped::Lost(why)) => return Err(lost(why)),
                // The block has failed: the unit will hear it.
                Err(Stopped::Server(_) | Stopped::Error(_)) => {}
            }
            return self.send_and_exchange(unit, length, survey, server, flight).await;
        }
        self.before_unit(duty, unit, server, flight);
        // What it names is prepared first, in an exchange of its own.
        let named = survey.query.as_ref().is_some_and(|q| q.plan.statements.iter().any(names_statement));
        if named {
            self.settle_before(server, flight).await.map_err(|e| lost(e.to_string()))?;
        }
        self.send(unit, length, survey, server, flight).await?;
        let complete = !matches!(unit, Unit::Extended { complete: false, .. });
        let copies = survey.executed.iter().flat_map(|e| &e.plan.statements).any(|s| s.kind == Kind::CopyIn);
        if complete && !copies {
            self.behind_unit(duty, server, flight);
        }
        self.exchange(server, flight).await.map_err(SendError::Broken)?;
        if flight.mirrored.wrapped {
            self.shard.count_trip(server.side);
        }
        match duty {
            Duty::Wrap(repositories) => self.unwrap(server, flight, repositories).await.map_err(lost),
            Duty::Arm(_) => {
                if let Some(error) = flight.mirrored.refused.take() {
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
        let asked = self.ask(&mut server).await;
        let shipped = match asked {
            Ok(reply) => self.ship(&mut server, repositories, reply).await,
            Err(error) => Err(Stopped::Lost(error.to_string())),
        };
        let shipped = match shipped {
            Ok(shipped) => shipped,
            Err(stopped) => return self.stop_commit(choice, unit, server, stopped).await,
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
                    None => match server.reply(&self.shard.buffers).await {
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
        if held {
            let text = format!("lost the {} connection after the transaction was committed", choice.side);
            return Err(End::Error(ClientError::fatal("08006", text)));
        }
        Ok(())
    }

    /// The block cannot commit: it is rolled back, and the client hears why.
    async fn stop_commit(
        &mut self,
        choice: Choice,
        unit: Unit,
        mut server: Box<Server>,
        stopped: Stopped,
    ) -> Result<(), End> {
        let shard = Rc::clone(&self.shard);
        let (Unit::Simple { length, .. } | Unit::Extended { length, .. }) = unit;
        self.conn.consume(length, &shard.buffers);
        let mut flight = Flight::default();
        match stopped {
            Stopped::Lost(why) => {
                drop(server);
                shard.lost_server(choice.side, &why);
                return self.server_lost(&choice, &why, &flight);
            }
            Stopped::Server(error) => {
                flight.sqlstate = frame::error_field(&error[HEADER..], b'C').and_then(|c| c.try_into().ok());
                self.conn.output.extend_from_slice(&error);
            }
            Stopped::Error(error) => {
                flight.sqlstate = error.sqlstate.as_bytes().try_into().ok();
                tracing::info!(client = self.id(), sqlstate = error.sqlstate, message = %error.message, "a transaction was refused at its COMMIT");
                error.encode(self.id(), &mut self.conn.output);
            }
        }
        if let Err(error) = server.query("ROLLBACK", &shard.buffers).await {
            shard.lost_server(choice.side, &error.to_string());
            return self.server_lost(&choice, &error.to_string(), &flight);
        }
        self.txn.status = server.status;
        frame::put_ready(&mut self.conn.output, self.txn.status.byte());
        let now = Instant::now();
        self.finish(server, &flight, &Survey::default(), choice.footprint.as_deref(), now).await
    }
}

/// What the lead said of its COMMIT, in frames that were held back.
fn committed_in(held: &[u8]) -> Option<bool> {
    let (tag, length) = frame::header(held).ok()??;
    (tag == b'C').then(|| held.get(HEADER..length) == Some(b"COMMIT\0"))
}
