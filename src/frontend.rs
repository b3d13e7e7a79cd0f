//! The application's socket: accept, TLS, authentication.

pub mod startup;
