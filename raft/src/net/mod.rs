//! The cluster port: length-prefixed frames over mutual TLS 1.3.
//!
//! Each pair of nodes has, in each direction, one connection for the append stream and one for control messages, so
//! that a heartbeat never waits behind log entries. Other protocols share the port by ALPN name.

mod append;
mod control;
mod frame;
mod network;
mod peer;
mod server;
mod wire;

pub(crate) use self::{
    control::CallError,
    network::{Factory, Links},
    peer::{Dialer, Directory},
    server::Server,
    wire::{Call, Reply},
};
#[cfg(test)]
pub(crate) use self::{
    frame::{Frame, FrameCodec, Kind},
    peer::hello,
};
pub use self::{peer::ALPN, server::IncomingStream};
