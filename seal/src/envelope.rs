//! The form of everything the HSM has encrypted: a versioned, self-describing blob.
//!
//! ```text
//! magic "SRW" | ver u8 = 1 | suite u8 | key u32 BE | [hkey u32 BE]        hkey: suites 2 and 5
//! suites 1-3 (a data key wrapped by the HSM; the data encrypted by AES-256-GCM here):
//!   dek_id 16 | iv_len u8 | iv | wdek_len u16 BE | wrapped data key | [mac 32] | nonce 12 | ciphertext | tag 16
//! suites 4-5 (the data went through the HSM whole):
//!   iv_len u8 | iv | [mac 32] | ciphertext (suite 4: with its tag)
//! ```
//!
//! In: bytes. Out: their parts, every length checked, before any HSM call. Nothing here decrypts.
//!
//! Invariants
//! - What is parsed encodes back to the same bytes: there is one form of each blob.
//! - A barrier value never starts with the magic (`keyring::TERM_LIMIT`).

/// What every blob starts with.
pub(crate) const MAGIC: &[u8; 3] = b"SRW";
const VERSION: u8 = 1;
pub(crate) const NONCE_LEN: usize = 12;
pub(crate) const TAG_LEN: usize = 16;
pub(crate) const MAC_LEN: usize = 32;
pub(crate) const GCM_IV_LEN: usize = 12;
pub(crate) const CBC_IV_LEN: usize = 16;
pub(crate) const DEK_ID_LEN: usize = 16;
/// A wrapped data key is at most an RSA-8192 block.
const MAX_WRAPPED_DEK: usize = 1024;

/// How a blob was made. The number is what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suite {
    /// Data key by the HSM's AES-GCM.
    DekGcm = 1,
    /// Data key by the HSM's AES-CBC with padding, authenticated by its HMAC-SHA256.
    DekCbcHmac = 2,
    /// Data key by the HSM's RSA-OAEP.
    DekOaep = 3,
    /// Whole value by the HSM's AES-GCM.
    WholeGcm = 4,
    /// Whole value by the HSM's AES-CBC with padding, authenticated by its HMAC-SHA256.
    WholeCbcHmac = 5,
}

impl Suite {
    fn from_u8(byte: u8) -> Option<Self> {
        [
            Self::DekGcm,
            Self::DekCbcHmac,
            Self::DekOaep,
            Self::WholeGcm,
            Self::WholeCbcHmac,
        ]
        .into_iter()
        .find(|suite| *suite as u8 == byte)
    }

    /// Whether a data key lies between the HSM key and the data.
    pub(crate) fn has_dek(self) -> bool {
        matches!(self, Self::DekGcm | Self::DekCbcHmac | Self::DekOaep)
    }

    /// Whether an HMAC key is used beside the encryption key.
    pub(crate) fn has_mac(self) -> bool {
        matches!(self, Self::DekCbcHmac | Self::WholeCbcHmac)
    }

    fn iv_len(self) -> usize {
        match self {
            Self::DekGcm | Self::WholeGcm => GCM_IV_LEN,
            Self::DekCbcHmac | Self::WholeCbcHmac => CBC_IV_LEN,
            Self::DekOaep => 0,
        }
    }

    /// Whether the HSM could have made a ciphertext of `len` bytes.
    fn ciphertext_fits(self, len: usize) -> bool {
        match self {
            Self::DekGcm | Self::WholeGcm => len >= TAG_LEN,
            Self::DekCbcHmac | Self::WholeCbcHmac => len >= 16 && len.is_multiple_of(16),
            Self::DekOaep => len >= 128,
        }
    }
}

/// Where a blob starts: who made it, for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) suite: Suite,
    /// Version of the seal key.
    pub(crate) key: u32,
    /// Version of the HMAC key; always equal to `key` in this version of the software.
    pub(crate) hmac_key: Option<u32>,
}

impl Head {
    pub(crate) fn new(suite: Suite, key: u32) -> Self {
        Self {
            suite,
            key,
            hmac_key: suite.has_mac().then_some(key),
        }
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.push(self.suite as u8);
        out.extend_from_slice(&self.key.to_be_bytes());
        if let Some(hmac_key) = self.hmac_key {
            out.extend_from_slice(&hmac_key.to_be_bytes());
        }
        out
    }

    fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (&[version, suite], rest) = rest.split_first_chunk()?;
        if version != VERSION {
            return None;
        }
        let suite = Suite::from_u8(suite)?;
        let (key, rest) = take_u32(rest)?;
        let (hmac_key, rest) = if suite.has_mac() {
            let (hmac_key, rest) = take_u32(rest)?;
            (Some(hmac_key), rest)
        } else {
            (None, rest)
        };
        let head = Self {
            suite,
            key,
            hmac_key,
        };
        Some((head, rest))
    }
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*number), rest))
}

/// What came out of the HSM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) iv: Vec<u8>,
    pub(crate) ciphertext: Vec<u8>,
    /// HMAC-SHA256; suites 2 and 5.
    pub(crate) mac: Option<[u8; MAC_LEN]>,
}

impl Sealed {
    pub(crate) fn as_ref(&self) -> SealedRef<'_> {
        SealedRef {
            iv: &self.iv,
            ciphertext: &self.ciphertext,
            mac: self.mac.as_ref(),
        }
    }
}

/// The same, borrowed from a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SealedRef<'a> {
    pub(crate) iv: &'a [u8],
    pub(crate) ciphertext: &'a [u8],
    pub(crate) mac: Option<&'a [u8; MAC_LEN]>,
}

impl SealedRef<'_> {
    pub(crate) fn to_owned(self) -> Sealed {
        Sealed {
            iv: self.iv.to_vec(),
            ciphertext: self.ciphertext.to_vec(),
            mac: self.mac.copied(),
        }
    }
}

/// A blob of suites 4 and 5.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole<'a> {
    pub(crate) head: Head,
    /// What the HSM authenticates beside the data: everything before `iv_len`.
    pub(crate) bound: &'a [u8],
    pub(crate) sealed: SealedRef<'a>,
}

/// A blob of suites 1 to 3.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Enveloped<'a> {
    pub(crate) head: Head,
    pub(crate) dek_id: &'a [u8; DEK_ID_LEN],
    /// What the HSM authenticates beside the data key: everything before `iv_len`.
    pub(crate) bound: &'a [u8],
    pub(crate) wrapped_dek: SealedRef<'a>,
    /// What the data is bound to, beside its path: everything before `nonce`.
    pub(crate) prefix: &'a [u8],
    pub(crate) nonce: &'a [u8; NONCE_LEN],
    pub(crate) ciphertext: &'a [u8],
    pub(crate) tag: &'a [u8; TAG_LEN],
}

/// A blob taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Blob<'a> {
    Whole(Whole<'a>),
    Enveloped(Enveloped<'a>),
}

impl Blob<'_> {
    pub(crate) fn head(&self) -> Head {
        match self {
            Self::Whole(whole) => whole.head,
            Self::Enveloped(enveloped) => enveloped.head,
        }
    }
}

/// The bytes of a suite 4 or 5 blob. `bound` is [`Head::encode`]'s.
pub(crate) fn encode_whole(bound: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
    let mut out = bound.to_vec();
    push_iv(&mut out, &sealed.iv)?;
    push_mac(&mut out, sealed.mac.as_ref());
    out.extend_from_slice(&sealed.ciphertext);
    Some(out)
}

/// The part of a suite 1 to 3 blob before `nonce`. `bound` is [`Head::encode`]'s followed by the data key's id.
pub(crate) fn encode_dek(bound: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
    let mut out = bound.to_vec();
    push_iv(&mut out, &sealed.iv)?;
    let len = u16::try_from(sealed.ciphertext.len()).ok()?;
    if usize::from(len) > MAX_WRAPPED_DEK {
        return None;
    }
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&sealed.ciphertext);
    push_mac(&mut out, sealed.mac.as_ref());
    Some(out)
}

fn push_iv(out: &mut Vec<u8>, iv: &[u8]) -> Option<()> {
    out.push(u8::try_from(iv.len()).ok()?);
    out.extend_from_slice(iv);
    Some(())
}

fn push_mac(out: &mut Vec<u8>, mac: Option<&[u8; MAC_LEN]>) {
    if let Some(mac) = mac {
        out.extend_from_slice(mac);
    }
}

/// Takes a blob apart; `None` for anything that is not exactly a blob of this version.
pub(crate) fn parse(bytes: &[u8]) -> Option<Blob<'_>> {
    let (head, rest) = Head::parse(bytes)?;
    if head.suite.has_dek() {
        parse_enveloped(bytes, head, rest).map(Blob::Enveloped)
    } else {
        parse_whole(bytes, head, rest).map(Blob::Whole)
    }
}

fn parse_whole<'a>(bytes: &'a [u8], head: Head, rest: &'a [u8]) -> Option<Whole<'a>> {
    let bound = before(bytes, rest)?;
    let (iv, rest) = take_iv(head.suite, rest)?;
    let (mac, ciphertext) = take_mac(head.suite, rest)?;
    if !head.suite.ciphertext_fits(ciphertext.len()) {
        return None;
    }
    Some(Whole {
        head,
        bound,
        sealed: SealedRef {
            iv,
            ciphertext,
            mac,
        },
    })
}

fn parse_enveloped<'a>(bytes: &'a [u8], head: Head, rest: &'a [u8]) -> Option<Enveloped<'a>> {
    let (dek_id, rest) = rest.split_first_chunk::<DEK_ID_LEN>()?;
    let bound = before(bytes, rest)?;
    let (iv, rest) = take_iv(head.suite, rest)?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let len = usize::from(u16::from_be_bytes(*len));
    if len > MAX_WRAPPED_DEK || !head.suite.ciphertext_fits(len) {
        return None;
    }
    let (wrapped, rest) = rest.split_at_checked(len)?;
    let (mac, rest) = take_mac(head.suite, rest)?;
    let prefix = before(bytes, rest)?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>()?;
    let (ciphertext, tag) = rest.split_last_chunk::<TAG_LEN>()?;
    Some(Enveloped {
        head,
        dek_id,
        bound,
        wrapped_dek: SealedRef {
            iv,
            ciphertext: wrapped,
            mac,
        },
        prefix,
        nonce,
        ciphertext,
        tag,
    })
}

/// What of `bytes` lies before its tail `rest`.
fn before<'a>(bytes: &'a [u8], rest: &[u8]) -> Option<&'a [u8]> {
    bytes.get(..bytes.len().checked_sub(rest.len())?)
}

fn take_iv(suite: Suite, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = bytes.split_first()?;
    if usize::from(len) != suite.iv_len() {
        return None;
    }
    rest.split_at_checked(usize::from(len))
}

fn take_mac(suite: Suite, bytes: &[u8]) -> Option<(Option<&[u8; MAC_LEN]>, &[u8])> {
    if suite.has_mac() {
        let (mac, rest) = bytes.split_first_chunk::<MAC_LEN>()?;
        Some((Some(mac), rest))
    } else {
        Some((None, bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed(suite: Suite) -> Sealed {
        Sealed {
            iv: vec![3; suite.iv_len()],
            ciphertext: vec![4; if suite == Suite::DekOaep { 256 } else { 48 }],
            mac: suite.has_mac().then_some([5; MAC_LEN]),
        }
    }

    fn blob(suite: Suite) -> Vec<u8> {
        let mut bound = Head::new(suite, 7).encode();
        if suite.has_dek() {
            bound.extend_from_slice(&[9; DEK_ID_LEN]);
            let mut out = encode_dek(&bound, &sealed(suite)).unwrap();
            out.extend_from_slice(&[1; NONCE_LEN + 5 + TAG_LEN]);
            out
        } else {
            encode_whole(&bound, &sealed(suite)).unwrap()
        }
    }

    const SUITES: [Suite; 5] = [
        Suite::DekGcm,
        Suite::DekCbcHmac,
        Suite::DekOaep,
        Suite::WholeGcm,
        Suite::WholeCbcHmac,
    ];

    #[test]
    fn every_suite_parses_back() {
        for suite in SUITES {
            let bytes = blob(suite);
            let parsed = parse(&bytes).unwrap();
            assert_eq!(parsed.head(), Head::new(suite, 7));
            let back = match &parsed {
                Blob::Whole(w) => w.sealed.to_owned(),
                Blob::Enveloped(e) => {
                    assert_eq!(e.dek_id, &[9; DEK_ID_LEN]);
                    assert_eq!(e.ciphertext.len(), 5);
                    e.wrapped_dek.to_owned()
                }
            };
            assert_eq!(back, sealed(suite), "{suite:?}");
        }
    }

    /// The stored form must not change without a new version.
    #[test]
    fn golden_blob() {
        assert_eq!(
            hex::encode(blob(Suite::WholeGcm)),
            format!(
                "53525701040000000{}0c{}{}",
                7,
                "03".repeat(12),
                "04".repeat(48)
            )
        );
        assert_eq!(
            hex::encode(blob(Suite::DekCbcHmac)),
            format!(
                "53525701020000000700000007{}10{}0030{}{}{}",
                "09".repeat(16),
                "03".repeat(16),
                "04".repeat(48),
                "05".repeat(32),
                "01".repeat(33)
            )
        );
    }

    #[test]
    fn short_or_strange_blobs_are_refused() {
        for suite in SUITES {
            let bytes = blob(suite);
            let least = match parse(&bytes).unwrap() {
                Blob::Whole(w) => bytes.len() - w.sealed.ciphertext.len() + 16,
                Blob::Enveloped(e) => e.prefix.len() + NONCE_LEN + TAG_LEN,
            };
            for at in 0..least {
                assert!(parse(&bytes[..at]).is_none(), "{suite:?} cut at {at}");
            }
            for (at, byte) in [(0, b'X'), (3, 0), (3, 2), (4, 0), (4, 6)] {
                let mut bad = bytes.clone();
                bad[at] = byte;
                assert!(parse(&bad).is_none(), "{suite:?} {at} {byte}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_parts_add_up(
            suite in 0_u8..8, tail in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend_from_slice(&[VERSION, suite]);
            bytes.extend_from_slice(&tail);
            match parse(&bytes) {
                None => {}
                Some(Blob::Whole(w)) => {
                    prop_assert_eq!(encode_whole(w.bound, &w.sealed.to_owned()).unwrap(), bytes.clone());
                    prop_assert_eq!(w.head.encode(), w.bound);
                }
                Some(Blob::Enveloped(e)) => {
                    let mut back = encode_dek(e.bound, &e.wrapped_dek.to_owned()).unwrap();
                    prop_assert_eq!(&back, e.prefix);
                    back.extend_from_slice(e.nonce);
                    back.extend_from_slice(e.ciphertext);
                    back.extend_from_slice(e.tag);
                    prop_assert_eq!(back, bytes.clone());
                }
            }
        }
    }
}
