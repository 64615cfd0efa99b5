//! The snapshot file that operators keep: written by a node, read by a node or by the command line.

pub(crate) mod archive;
pub(crate) mod rows;
