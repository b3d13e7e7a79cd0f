//! The smallest HTTP client that reads `/metrics`.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use super::PATIENCE;

/// Status and body of a GET; `None` when nobody answers. By HTTP/1.0: no answer comes in chunks.
pub(crate) fn get(port: u16, path: &str) -> Option<(u16, String)> {
    ask(port, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"))
}

/// Status and body of a POST of JSON, with this token.
pub(crate) fn post(port: u16, path: &str, token: Option<&str>, body: &str) -> Option<(u16, String)> {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let length = body.len();
    ask(
        port,
        &format!(
            "POST {path} HTTP/1.0\r\nHost: localhost\r\n{token}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
    )
}

fn ask(port: u16, request: &str) -> Option<(u16, String)> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(PATIENCE * 2)).ok()?;
    socket.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Sum of the samples of `name` whose labels contain all of `labels` (`backend="source"`).
pub(crate) fn metric(body: &str, name: &str, labels: &[&str]) -> f64 {
    body.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label)))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
