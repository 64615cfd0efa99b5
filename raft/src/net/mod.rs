//! The cluster port: length-prefixed frames over mutual TLS 1.3.
//!
//! Each pair of nodes has, in each direction, one connection for the append stream, one for control messages, so that a
//! heartbeat never waits behind log entries, one for commands to propose, and one more while a snapshot is sent. Other
//! protocols share the port by ALPN name.

mod append;
mod control;
mod frame;
mod network;
mod peer;
mod server;
mod snapshot;
mod wire;

pub(crate) use self::{
    control::CallError,
    network::{Factory, Links},
    peer::{Dialer, Directory, Probe},
    server::Server,
    snapshot::{Incoming, Receiver},
    wire::{Call, FailedCheck, HealthReply, ProposeCall, ProposeReply, Proposed, Reply},
};
#[cfg(test)]
pub(crate) use self::{
    frame::{Frame, FrameCodec, Kind},
    peer::hello,
};
pub use self::{peer::ALPN, server::IncomingStream};
