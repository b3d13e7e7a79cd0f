//! The console's side of the Postgres protocol (manual, 55.2): simple and extended queries, text and binary
//! results, an error state that lasts until Sync.
//!
//! Frames are cut exactly: a frame's body is read to its last byte or refused with 08P01.

use std::{collections::HashMap, future::Future, io, rc::Rc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    console::{self, Caller, Command, Operator, parse, parse_all, reported_settings, setting},
    console_frames::{Body, Format, command_complete, data_row, notice, parameter_status, row_description},
    console_rows::{Cell, Column, columns},
    console_wait::unless_gone,
};
use crate::{error::ClientError, wire::frame};

/// Bytes of one message, its length word included.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Prepared statements of one session.
const MAX_STATEMENTS: usize = 64;
/// Portals of one session; each may hold a whole answer.
const MAX_PORTALS: usize = 8;
/// Answers are sent when they have grown to this, whether or not the client asked.
const FLUSH_BYTES: usize = 64 * 1024;
/// For the last words of a session that is ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves one console session, from behind `AuthenticationOk` to its end. `rest` are bytes already read,
/// `cancel_key` goes into `BackendKeyData` (a cancel of a console is without effect), `stop` ends the session
/// with 57P01 (a drain, or KILL).
pub async fn serve<S, O>(
    stream: S,
    rest: &[u8],
    caller: Caller<'_>,
    cancel_key: &[u8],
    operator: &O,
    stop: impl Future<Output = ()>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    O: Operator,
{
    let mut session = Session {
        stream,
        input: BytesMut::from(rest),
        out: BytesMut::new(),
        caller,
        operator,
        status: Status::Idle,
        skipping: false,
        statements: HashMap::new(),
        portals: HashMap::new(),
    };
    session.greet(cancel_key);
    let ended = tokio::select! {
        result = session.run() => result,
        () = stop => Ok(Some(
            ClientError::fatal("57P01", "the console session was ended by an operator or by shutdown"),
        )),
    };
    let farewell = ended?;
    let sent = async {
        if let Some(error) = farewell {
            error.encode(caller.client, &mut session.out);
        }
        // What was half sent is in `out` still, so the last words are a frame of their own even then.
        session.stream.write_all_buf(&mut session.out).await?;
        session.stream.shutdown().await
    };
    timeout(FAREWELL, sent).await.unwrap_or(Ok(()))
}

/// As in `ReadyForQuery`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Status {
    Idle,
    Transaction,
    Failed,
}

struct Session<'a, S, O> {
    stream: S,
    input: BytesMut,
    out: BytesMut,
    caller: Caller<'a>,
    operator: &'a O,
    status: Status,
    /// After an error in the extended protocol: everything but Sync is dropped.
    skipping: bool,
    statements: HashMap<String, Rc<Command>>,
    portals: HashMap<String, Portal>,
}

struct Portal {
    command: Rc<Command>,
    columns: Vec<Column>,
    formats: Vec<Format>,
    progress: Progress,
}

enum Progress {
    /// Bound, not executed.
    Ready,
    /// Executed; the rows not yet sent.
    Rows(std::vec::IntoIter<Vec<Cell>>),
    /// It answered with no rows, and will not run twice.
    Done,
}

/// What a frame asks of the connection.
enum Next {
    /// Go on reading.
    Go,
    /// Send what there is.
    Flush,
    /// The client said goodbye.
    End,
}

impl<S: AsyncRead + AsyncWrite + Unpin, O: Operator> Session<'_, S, O> {
    /// Ends with the FATAL error to be sent, if there is one.
    async fn run(&mut self) -> io::Result<Option<ClientError>> {
        self.stream.write_all_buf(&mut self.out).await?;
        loop {
            let (kind, body) = match self.take_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.stream.flush().await?;
                    if self.stream.read_buf(&mut self.input).await? == 0 {
                        return Ok(None);
                    }
                    continue;
                }
                Err(error) => return Ok(Some(error)),
            };
            match self.dispatch(kind, &body).await {
                Ok(Next::Go) if self.out.len() < FLUSH_BYTES => {}
                Ok(Next::Go | Next::Flush) => self.stream.write_all_buf(&mut self.out).await?,
                Ok(Next::End) => return Ok(None),
                Err(error) if error.fatal => return Ok(Some(error)),
                Err(error) => {
                    self.fail(&error);
                    self.skipping = true;
                    // At once, as Postgres does: a client that sent Flush and not Sync waits for it, and
                    // its Flush is among what is skipped.
                    self.stream.write_all_buf(&mut self.out).await?;
                }
            }
        }
    }

    /// Cuts the next whole frame from the input.
    fn take_frame(&mut self) -> Result<Option<(u8, Bytes)>, ClientError> {
        let Some((&kind, rest)) = self.input.split_first() else { return Ok(None) };
        let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if !(4..=MAX_MESSAGE_BYTES).contains(&length) {
            let limit = format!("The console reads messages of 4 to {MAX_MESSAGE_BYTES} bytes.");
            return Err(ClientError::fatal("08P01", format!("invalid message length {length}")).detail(limit));
        }
        if self.input.len() < 1 + length {
            self.input.reserve(1 + length - self.input.len());
            return Ok(None);
        }
        let frame = self.input.split_to(1 + length).freeze();
        Ok(Some((kind, frame.slice(5..))))
    }

    async fn dispatch(&mut self, kind: u8, body: &[u8]) -> Result<Next, ClientError> {
        match kind {
            b'X' => return Ok(Next::End),
            b'S' => {
                Body::new(body).end()?;
                self.skipping = false;
                self.ready();
                return Ok(Next::Flush);
            }
            _ if self.skipping => return Ok(Next::Go),
            b'Q' => {
                if let Err(error) = self.query(body).await {
                    self.fail(&error);
                }
                self.ready();
                return Ok(Next::Flush);
            }
            b'F' => {
                self.fail(&ClientError::error("0A000", "the console has no functions to call by their OID"));
                self.ready();
                return Ok(Next::Flush);
            }
            b'P' => self.parse(body)?,
            b'B' => self.bind(body)?,
            b'D' => self.describe(body)?,
            b'E' => self.execute(body).await?,
            b'C' => self.close(body)?,
            b'H' => {
                Body::new(body).end()?;
                return Ok(Next::Flush);
            }
            // Left over from a COPY that failed; Postgres ignores them too.
            b'd' | b'c' | b'f' => {}
            _ => {
                return Err(ClientError::fatal("08P01", format!("invalid frontend message type {kind}")));
            }
        }
        Ok(Next::Go)
    }

    async fn query(&mut self, body: &[u8]) -> Result<(), ClientError> {
        // A simple query takes the unnamed statement and portal with it.
        self.statements.remove("");
        self.portals.remove("");
        let mut body = Body::new(body);
        let text = body.string()?;
        body.end()?;
        for command in parse_all(text)? {
            let rows = self.perform(&command).await?;
            let columns = columns(&command);
            let count = rows.len();
            if !columns.is_empty() {
                let formats = vec![Format::Text; columns.len()];
                row_description(&mut self.out, &columns, &formats);
                for row in &rows {
                    data_row(&mut self.out, row, &formats);
                }
            }
            self.complete(&command, count);
        }
        Ok(())
    }

    fn parse(&mut self, body: &[u8]) -> Result<(), ClientError> {
        let mut body = Body::new(body);
        let (name, text) = (body.string()?, body.string()?);
        for _ in 0..body.count()? {
            // Types of parameters; a console command has none, and drivers may declare more than they use.
            body.int32()?;
        }
        body.end()?;
        if !name.is_empty() && self.statements.contains_key(name) {
            return Err(ClientError::error("42P05", format!("prepared statement \"{name}\" already exists")));
        }
        let command = parse(text)?;
        self.check_status(&command)?;
        if self.statements.len() >= MAX_STATEMENTS && !self.statements.contains_key(name) {
            return Err(too_many("prepared statements", MAX_STATEMENTS));
        }
        self.statements.insert(name.to_owned(), Rc::new(command));
        frame::put(&mut self.out, b'1', |_| {});
        Ok(())
    }

    fn bind(&mut self, body: &[u8]) -> Result<(), ClientError> {
        let mut body = Body::new(body);
        let (portal, statement) = (body.string()?, body.string()?);
        for _ in 0..body.count()? {
            body.format()?;
        }
        let parameters = body.count()?;
        for _ in 0..parameters {
            body.value()?;
        }
        let wanted = (0..body.count()?).map(|_| body.format()).collect::<Result<Vec<_>, _>>()?;
        body.end()?;
        let command = Rc::clone(self.statement(statement)?);
        if parameters > 0 {
            let message =
                format!("bind message supplies {parameters} parameters, but a console command has none");
            return Err(ClientError::error("08P01", message));
        }
        self.check_status(&command)?;
        let columns = columns(&command);
        let formats = match wanted[..] {
            [] => vec![Format::Text; columns.len()],
            [format] => vec![format; columns.len()],
            _ if wanted.len() == columns.len() => wanted,
            _ => {
                let (has, got) = (columns.len(), wanted.len());
                let message = format!("bind message has {got} result formats but query has {has} columns");
                return Err(ClientError::error("08P01", message));
            }
        };
        if !portal.is_empty() && self.portals.contains_key(portal) {
            return Err(ClientError::error("42P03", format!("cursor \"{portal}\" already exists")));
        }
        if self.portals.len() >= MAX_PORTALS && !self.portals.contains_key(portal) {
            return Err(too_many("portals", MAX_PORTALS));
        }
        self.portals
            .insert(portal.to_owned(), Portal { command, columns, formats, progress: Progress::Ready });
        frame::put(&mut self.out, b'2', |_| {});
        Ok(())
    }

    fn describe(&mut self, body: &[u8]) -> Result<(), ClientError> {
        let (kind, name) = target(body)?;
        let (columns, formats) = if kind == Target::Statement {
            let columns = columns(self.statement(name)?);
            frame::put(&mut self.out, b't', |out| out.put_i16(0));
            let formats = vec![Format::Text; columns.len()];
            (columns, formats)
        } else {
            let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
            (portal.columns.clone(), portal.formats.clone())
        };
        if columns.is_empty() {
            frame::put(&mut self.out, b'n', |_| {});
        } else {
            row_description(&mut self.out, &columns, &formats);
        }
        Ok(())
    }

    async fn execute(&mut self, body: &[u8]) -> Result<(), ClientError> {
        let mut body = Body::new(body);
        let name = body.string()?;
        // Zero, and below as in Postgres, is "all".
        let limit = usize::try_from(body.int32()?).ok().filter(|&n| n > 0).unwrap_or(usize::MAX);
        body.end()?;
        let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
        let command = Rc::clone(&portal.command);
        if matches!(portal.progress, Progress::Done) {
            return Err(ClientError::error("55000", format!("portal \"{name}\" cannot be run")));
        }
        if matches!(portal.progress, Progress::Ready) {
            let rows = self.perform(&command).await?;
            let portal = self.portals.get_mut(name).expect("performing a command removes no portal");
            portal.progress =
                if portal.columns.is_empty() { Progress::Done } else { Progress::Rows(rows.into_iter()) };
        }
        let portal = self.portals.get_mut(name).expect("it was there a line ago");
        let mut sent = 0;
        if let Progress::Rows(rows) = &mut portal.progress {
            for row in rows.by_ref().take(limit) {
                data_row(&mut self.out, &row, &portal.formats);
                sent += 1;
            }
            // As Postgres: a limit that is reached suspends, even when nothing is left.
            if sent == limit {
                frame::put(&mut self.out, b's', |_| {});
                return Ok(());
            }
        }
        self.complete(&command, sent);
        Ok(())
    }

    fn close(&mut self, body: &[u8]) -> Result<(), ClientError> {
        match target(body)? {
            (Target::Statement, name) => drop(self.statements.remove(name)),
            (Target::Portal, name) => drop(self.portals.remove(name)),
        }
        frame::put(&mut self.out, b'3', |_| {});
        Ok(())
    }

    /// Does what `command` says and moves the state of the transaction.
    async fn perform(&mut self, command: &Command) -> Result<Vec<Vec<Cell>>, ClientError> {
        self.check_status(command)?;
        let work = console::run(command, &self.caller, self.operator);
        let answer = if matches!(command, Command::Pause(_)) {
            unless_gone(&mut self.stream, &mut self.input, MAX_MESSAGE_BYTES, work).await?
        } else {
            work.await?
        };
        if let Some(text) = &answer.notice {
            notice(&mut self.out, text);
        }
        match command {
            Command::Deallocate(None) => self.statements.clear(),
            Command::Deallocate(Some(name)) => {
                self.statement(name)?;
                self.statements.remove(name);
            }
            Command::Begin(_) | Command::RollbackTo => self.status = Status::Transaction,
            // Committing or rolling back is told apart by `complete`, which needs to know that it had failed.
            Command::Empty
            | Command::Show(_)
            | Command::Reload
            | Command::Pause(_)
            | Command::Resume(_)
            | Command::Kill(_)
            | Command::Select(_)
            | Command::Commit
            | Command::Rollback
            | Command::Ignored(_) => {}
        }
        Ok(answer.rows)
    }

    fn complete(&mut self, command: &Command, rows: usize) {
        let failed = self.status == Status::Failed;
        if matches!(command, Command::Commit | Command::Rollback) {
            self.status = Status::Idle;
        }
        if *command == Command::Empty {
            frame::put(&mut self.out, b'I', |_| {});
        } else if *command == Command::Commit && failed {
            // A COMMIT of a failed transaction is no error; only its tag tells.
            command_complete(&mut self.out, "ROLLBACK");
        } else {
            command_complete(&mut self.out, &command.tag(rows));
        }
    }

    /// A failed transaction block takes nothing but its end.
    fn check_status(&self, command: &Command) -> Result<(), ClientError> {
        let ends =
            matches!(command, Command::Commit | Command::Rollback | Command::RollbackTo | Command::Empty);
        if self.status == Status::Failed && !ends {
            let message = "current transaction is aborted, commands ignored until end of transaction block";
            return Err(ClientError::error("25P02", message));
        }
        Ok(())
    }

    fn statement(&self, name: &str) -> Result<&Rc<Command>, ClientError> {
        let missing = || ClientError::error("26000", format!("prepared statement \"{name}\" does not exist"));
        self.statements.get(name).ok_or_else(missing)
    }

    fn fail(&mut self, error: &ClientError) {
        error.encode(self.caller.client, &mut self.out);
        if self.status == Status::Transaction {
            self.status = Status::Failed;
        }
    }

    fn ready(&mut self) {
        if self.status == Status::Idle {
            self.portals.clear();
        }
        let status = match self.status {
            Status::Idle => b'I',
            Status::Transaction => b'T',
            Status::Failed => b'E',
        };
        frame::put(&mut self.out, b'Z', |out| out.put_u8(status));
    }

    fn greet(&mut self, cancel_key: &[u8]) {
        for name in reported_settings() {
            parameter_status(&mut self.out, name, &setting(name, self.caller.user));
        }
        let process_id = self.caller.process_id;
        frame::put(&mut self.out, b'K', |out| {
            out.put_i32(process_id);
            out.put_slice(cancel_key);
        });
        self.ready();
    }
}

fn no_portal(name: &str) -> ClientError {
    ClientError::error("34000", format!("portal \"{name}\" does not exist"))
}

fn too_many(what: &str, limit: usize) -> ClientError {
    ClientError::error("54000", format!("a console session has at most {limit} {what}"))
}

/// What Describe and Close name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Target {
    Statement,
    Portal,
}

fn target(body: &[u8]) -> Result<(Target, &str), ClientError> {
    let mut body = Body::new(body);
    let target = match body.byte()? {
        b'S' => Target::Statement,
        b'P' => Target::Portal,
        other => return Err(ClientError::error("08P01", format!("invalid message subtype {other}"))),
    };
    let name = body.string()?;
    body.end()?;
    Ok((target, name))
}

#[cfg(test)]
#[path = "console_wire_tests.rs"]
mod tests;
