//! tokio-postgres and sqlx through crossfade. Prints a line of JSON that `tests/drivers/run` reads.

mod common;
mod on_sqlx;
mod on_tokio_postgres;

use common::Run;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    let mut run = Run::new(&name);
    match name.as_str() {
        "tokio-postgres" => on_tokio_postgres::drive(&mut run).await,
        "sqlx" => on_sqlx::drive(&mut run).await,
        other => panic!("no driver {other:?}"),
    }
    std::process::exit(run.finish());
}
