//! Frames on a connection between nodes: `length u32 BE | kind u8 | flags u8 | zero u16 | seq u64 BE | body`.
//!
//! `length` counts everything behind itself. Bodies are prost messages ([`super::wire`]), or bytes of a file.
//!
//! Invariants
//! - A frame above [`MAX_FRAME`] is refused from its header alone: a peer cannot make this node allocate more.
//! - Decoding never reads past one frame, so that a cancelled read loses nothing.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

/// Largest frame without its length field, bytes.
pub(crate) const MAX_FRAME: usize = 8 << 20;
const LENGTH: usize = 4;
const HEADER: usize = 12;

/// What a frame's body is. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// First frame of the dialing side.
    Hello,
    /// First frame of the accepting side.
    Welcome,
    /// Request on an append connection.
    Append,
    /// Its answer, in order.
    AppendReply,
    /// Request on a control connection.
    Call,
    /// Its answer, in any order, under the same `seq`.
    Reply,
    /// From the sender of a snapshot.
    Snapshot,
    /// Bytes of a file of a snapshot; no prost message.
    SnapshotData,
    /// From the receiver of a snapshot.
    SnapshotReply,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Welcome => 2,
            Self::Append => 10,
            Self::AppendReply => 11,
            Self::Call => 20,
            Self::Reply => 21,
            Self::Snapshot => 30,
            Self::SnapshotData => 31,
            Self::SnapshotReply => 32,
        }
    }

    fn of(number: u8) -> Option<Self> {
        let all = [
            Self::Hello,
            Self::Welcome,
            Self::Append,
            Self::AppendReply,
            Self::Call,
            Self::Reply,
            Self::Snapshot,
            Self::SnapshotData,
            Self::SnapshotReply,
        ];
        all.into_iter().find(|kind| kind.number() == number)
    }
}

/// On [`Kind::Append`]: the first request of a new session; what is left of the one before is void.
pub(crate) const FIRST: u8 = 1;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) seq: u64,
    pub(crate) body: Bytes,
}

/// Cuts a byte stream into frames.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FrameCodec;

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Option<Frame>> {
        let Some(length) = src.first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        // A length above `usize` cannot occur below the limit, so saturating is refusing.
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if !(HEADER..=MAX_FRAME).contains(&length) {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        if src.len() < LENGTH + length {
            src.reserve(LENGTH + length - src.len());
            return Ok(None);
        }
        let mut frame = src.split_to(LENGTH + length).freeze();
        frame.advance(LENGTH);
        let (kind, flags, zero, seq) = (
            frame.get_u8(),
            frame.get_u8(),
            frame.get_u16(),
            frame.get_u64(),
        );
        let Some(kind) = Kind::of(kind) else {
            return Err(invalid(format!("a frame of unknown kind {kind}")));
        };
        if zero != 0 {
            return Err(invalid("a frame with a malformed header".to_owned()));
        }
        Ok(Some(Frame {
            kind,
            flags,
            seq,
            body: frame,
        }))
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, dst: &mut BytesMut) -> io::Result<()> {
        let length = HEADER + frame.body.len();
        let Ok(prefix) = u32::try_from(length) else {
            return Err(invalid(format!("a frame of {length} bytes")));
        };
        if length > MAX_FRAME {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        dst.reserve(LENGTH + length);
        dst.put_u32(prefix);
        dst.put_u8(frame.kind.number());
        dst.put_u8(frame.flags);
        dst.put_u16(0);
        dst.put_u64(frame.seq);
        dst.extend_from_slice(&frame.body);
        Ok(())
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let kind = prop_oneof![
            Just(Kind::Hello),
            Just(Kind::Append),
            Just(Kind::Call),
            Just(Kind::Reply)
        ];
        (
            kind,
            any::<(u8, u64)>(),
            proptest::collection::vec(any::<u8>(), 0..300),
        )
            .prop_map(|(kind, (flags, seq), body)| Frame {
                kind,
                flags,
                seq,
                body: body.into(),
            })
    }

    proptest! {
        #[test]
        fn frames_survive_any_fragmentation(
            frames in proptest::collection::vec(any_frame(), 1..4),
            step in 1usize..64,
        ) {
            let mut wire = BytesMut::new();
            for frame in &frames {
                FrameCodec.encode(frame.clone(), &mut wire).unwrap();
            }
            let mut received = BytesMut::new();
            let mut decoded = Vec::new();
            for piece in wire.chunks(step) {
                received.extend_from_slice(piece);
                while let Some(frame) = FrameCodec.decode(&mut received).unwrap() {
                    decoded.push(frame);
                }
            }
            prop_assert_eq!(decoded, frames);
            prop_assert!(received.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut src = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = FrameCodec.decode(&mut src) {}
        }
    }

    #[test]
    fn what_is_not_a_frame_is_refused_at_its_header() {
        for (header, why) in [
            (&[0xff, 0xff, 0xff, 0xff][..], "too long"),
            (&[0, 0, 0, 11], "too short"),
            (
                &[0, 0, 0, 12, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                "unknown kind",
            ),
            (
                &[0, 0, 0, 12, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
                "not zero",
            ),
        ] {
            let mut src = BytesMut::from(header);
            assert!(FrameCodec.decode(&mut src).is_err(), "{why}");
        }
        let huge = Frame {
            kind: Kind::Append,
            flags: 0,
            seq: 0,
            body: vec![0; MAX_FRAME].into(),
        };
        assert!(FrameCodec.encode(huge, &mut BytesMut::new()).is_err());
    }
}
