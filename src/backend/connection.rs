//! One server connection: connect, TLS, login, cancel.
