//! Operators: HTTP endpoints and the console.
