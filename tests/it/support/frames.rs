//! Frontend messages as bytes (manual, 54.7), well-formed or not.

/// Type byte, length, body.
pub(crate) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(i32::try_from(body.len() + 4).expect("a short frame").to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// A frame whose length field is not that of its body.
pub(crate) fn lying(kind: u8, length: i32, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(length.to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn cstr(text: &str) -> Vec<u8> {
    let mut out = text.as_bytes().to_vec();
    out.push(0);
    out
}

/// Simple query.
pub(crate) fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', &cstr(sql))
}

/// Parse without parameter types.
pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    parse_typed(name, sql, &[])
}

/// Parse with parameter types.
pub(crate) fn parse_typed(name: &str, sql: &str, oids: &[u32]) -> Vec<u8> {
    let mut body = [cstr(name), cstr(sql)].concat();
    body.extend(u16::try_from(oids.len()).expect("few parameters").to_be_bytes());
    body.extend(oids.iter().flat_map(|oid| oid.to_be_bytes()));
    frame(b'P', &body)
}

/// Bind with parameters as text.
pub(crate) fn bind(portal: &str, statement: &str, values: &[&str]) -> Vec<u8> {
    let values: Vec<Option<&[u8]>> = values.iter().map(|v| Some(v.as_bytes())).collect();
    bind_raw(portal, statement, &values, &[])
}

/// Bind with parameters as bytes in text format, and formats of the result.
pub(crate) fn bind_raw(portal: &str, statement: &str, values: &[Option<&[u8]>], formats: &[u16]) -> Vec<u8> {
    let mut body = [cstr(portal), cstr(statement)].concat();
    body.extend(0u16.to_be_bytes());
    body.extend(u16::try_from(values.len()).expect("few parameters").to_be_bytes());
    for value in values {
        match value {
            None => body.extend((-1i32).to_be_bytes()),
            Some(bytes) => {
                body.extend(i32::try_from(bytes.len()).expect("below 2 GiB").to_be_bytes());
                body.extend_from_slice(bytes);
            }
        }
    }
    body.extend(u16::try_from(formats.len()).expect("few columns").to_be_bytes());
    body.extend(formats.iter().flat_map(|f| f.to_be_bytes()));
    frame(b'B', &body)
}

/// Describe a statement (`S`) or portal (`P`).
pub(crate) fn describe(what: u8, name: &str) -> Vec<u8> {
    frame(b'D', &[vec![what], cstr(name)].concat())
}

/// Execute; 0 rows is all.
pub(crate) fn execute(portal: &str, rows: i32) -> Vec<u8> {
    frame(b'E', &[cstr(portal), rows.to_be_bytes().to_vec()].concat())
}

/// Close a statement (`S`) or portal (`P`).
pub(crate) fn close(what: u8, name: &str) -> Vec<u8> {
    frame(b'C', &[vec![what], cstr(name)].concat())
}

/// Sync.
pub(crate) fn sync() -> Vec<u8> {
    frame(b'S', &[])
}

/// Flush.
pub(crate) fn flush() -> Vec<u8> {
    frame(b'H', &[])
}

/// Terminate.
pub(crate) fn terminate() -> Vec<u8> {
    frame(b'X', &[])
}

/// `CopyData`.
pub(crate) fn copy_data(data: &str) -> Vec<u8> {
    frame(b'd', data.as_bytes())
}

/// `CopyDone`.
pub(crate) fn copy_done() -> Vec<u8> {
    frame(b'c', &[])
}

/// `CopyFail`.
pub(crate) fn copy_fail(reason: &str) -> Vec<u8> {
    frame(b'f', &cstr(reason))
}

/// `FunctionCall` with text arguments and a text result.
pub(crate) fn function_call(oid: u32, arguments: &[&str]) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend(0u16.to_be_bytes());
    body.extend(u16::try_from(arguments.len()).expect("few arguments").to_be_bytes());
    for argument in arguments {
        body.extend(i32::try_from(argument.len()).expect("short").to_be_bytes());
        body.extend(argument.as_bytes());
    }
    body.extend(0u16.to_be_bytes());
    frame(b'F', &body)
}

/// Parse, Bind, Describe, Execute of an unnamed statement, without Sync.
pub(crate) fn extended(sql: &str, values: &[&str]) -> Vec<u8> {
    [parse("", sql), bind("", "", values), describe(b'P', ""), execute("", 0)].concat()
}

/// Protocol 3.0.
pub(crate) const V3_0: i32 = 0x0003_0000;
/// Protocol 3.2.
pub(crate) const V3_2: i32 = 0x0003_0002;

/// A packet of the start of a connection: length, code, body.
pub(crate) fn untyped(code: i32, body: &[u8]) -> Vec<u8> {
    let mut out = i32::try_from(body.len() + 8).expect("short").to_be_bytes().to_vec();
    out.extend(code.to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// `StartupMessage`.
pub(crate) fn startup(version: i32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body: Vec<u8> = parameters.iter().flat_map(|(k, v)| [cstr(k), cstr(v)].concat()).collect();
    body.push(0);
    untyped(version, &body)
}

/// `SSLRequest`.
pub(crate) fn ssl_request() -> Vec<u8> {
    untyped(80_877_103, &[])
}

/// `GSSENCRequest`.
pub(crate) fn gssenc_request() -> Vec<u8> {
    untyped(80_877_104, &[])
}

/// `CancelRequest`.
pub(crate) fn cancel_request(pid: u32, key: &[u8]) -> Vec<u8> {
    untyped(80_877_102, &[&pid.to_be_bytes()[..], key].concat())
}

/// How many of the frames are of these kinds.
pub(crate) fn count(mut bytes: &[u8], kinds: &[u8]) -> usize {
    let mut found = 0;
    while let [kind, a, b, c, d, ..] = *bytes {
        found += usize::from(kinds.contains(&kind));
        bytes = &bytes[1 + u32::from_be_bytes([a, b, c, d]) as usize..];
    }
    found
}
