//! Drives one client connection through the flow.
