//! Protocol state of one connection. Pure.
