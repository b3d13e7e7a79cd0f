//! The lead of writes moves while clients write: nothing is lost, nothing is given twice, and writers wait a moment at most.

mod moves;
mod slices;
mod steps;
mod writers;
