//! A console command that takes its time, for as long as its client has the patience.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::ClientError;

/// `work` that may take long, unless the client leaves before it is done. What it sends meanwhile is read up to `most`
/// bytes.
pub async fn unless_gone<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    input: &mut BytesMut,
    most: usize,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let gone = async {
        while input.len() < most {
            if !matches!(stream.read_buf(input).await, Ok(n) if n > 0) || input.first() == Some(&b'X') {
                return;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        done = work => done,
        () = gone => Err(ClientError::fatal("57014", "the client left")),
    }
}
