//! Finding and recognising the cluster's keys in the HSM.
//!
//! Invariants
//! - A label that matches more than one key is a refusal; a label match alone is never trusted: the canary decides.
//!
//! A canary is a random value sealed under the key, `open_core`-able at [`CANARY_PATH`]; the fingerprint is SHA-256 of
//! its plaintext and its blob.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cryptoki::{
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use sha2::{Digest, Sha256};

use super::{
    HsmConfig, Mechanism,
    conn::Conn,
    crypto::{self, KeyHandles},
    error::{Class, Fault, HsmError, class},
};
use crate::{
    config::{SealConfig, SealKey},
    envelope,
    secret::SecretBytes,
};

pub(super) const CANARY_PATH: &str = "core/seal-canary";
/// More objects than this under one label are not looked at.
const MAX_FOUND: usize = 64;

/// What a search is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Aes,
    Hmac,
    RsaPublic,
    RsaPrivate,
}

impl Kind {
    fn template(self, label: &str) -> Vec<Attribute> {
        let (class, key_type) = match self {
            Self::Aes => (ObjectClass::SECRET_KEY, Some(KeyType::AES)),
            // CKK_GENERIC_SECRET or CKK_SHA256_HMAC, as the maker liked.
            Self::Hmac => (ObjectClass::SECRET_KEY, None),
            Self::RsaPublic => (ObjectClass::PUBLIC_KEY, Some(KeyType::RSA)),
            Self::RsaPrivate => (ObjectClass::PRIVATE_KEY, Some(KeyType::RSA)),
        };
        let mut template = vec![
            Attribute::Token(true),
            Attribute::Class(class),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        template.extend(key_type.map(Attribute::KeyType));
        template
    }
}

/// A key object and its `CKA_ID`.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) handle: ObjectHandle,
    pub(super) id: Vec<u8>,
}

pub(super) fn find(
    session: &Session,
    kind: Kind,
    label: &str,
    id: &[u8],
) -> Result<Vec<Found>, Fault> {
    let mut handles = Vec::new();
    {
        let objects = session.iter_objects(&kind.template(label))?;
        for handle in objects.take(MAX_FOUND) {
            handles.push(handle?);
        }
    }
    let mut found = Vec::new();
    for handle in handles {
        let attributes =
            session.get_attributes(handle, &[AttributeType::Id, AttributeType::KeyType])?;
        let mut this_id = Vec::new();
        let mut is_aes = false;
        for attribute in attributes {
            if let Attribute::Id(value) = attribute {
                this_id = value;
            } else if let Attribute::KeyType(value) = attribute {
                is_aes = value == KeyType::AES;
            }
        }
        // One label may serve an AES key and its HMAC key.
        let fits = kind != Kind::Hmac || !is_aes;
        if fits && (id.is_empty() || id == this_id.as_slice()) {
            found.push(Found {
                handle,
                id: this_id,
            });
        }
    }
    Ok(found)
}

/// The one object of `found`.
pub(super) fn single(found: Vec<Found>, label: &str) -> Result<Option<Found>, Fault> {
    let count = found.len();
    let mut found = found.into_iter();
    match (found.next(), count) {
        (one, 0 | 1) => Ok(one),
        _ => Err(duplicate(label, count)),
    }
}

pub(super) fn duplicate(label: &str, count: usize) -> Fault {
    Fault::Final(HsmError::KeyDuplicate {
        label: label.to_owned(),
        count,
    })
}

pub(super) fn missing(label: &str, hint: &'static str) -> Fault {
    Fault::Final(HsmError::KeyMissing {
        label: label.to_owned(),
        hint,
    })
}

pub(super) fn misconfigured(why: String) -> Fault {
    Fault::Final(HsmError::Misconfigured { why })
}

pub(super) enum Located {
    One(KeyHandles),
    /// Which of the two parts are there (`hmac` is true where none is needed).
    Nothing {
        key: bool,
        hmac: bool,
    },
}

/// Whether a search is narrowed to the ids on record, because the operator names keys by label *and* id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ById {
    pub(super) key: bool,
    pub(super) hmac: bool,
}

impl ById {
    pub(super) fn of(config: &HsmConfig) -> Self {
        Self {
            key: config.key_id.is_some(),
            hmac: config.hmac_key_id.is_some(),
        }
    }
}

/// Finds the objects of `key` by label; its id decides only whether another object is a duplicate, unless `by_id` says
/// that the label is not meant to be enough. `siblings` are other keys of the cluster that may share the label.
pub(super) fn locate(
    session: &Session,
    key: &SealKey,
    by_id: ById,
    siblings: &[&SealKey],
) -> Result<Located, Fault> {
    let id = key.id_bytes()?;
    let kind = if key.mechanism == Mechanism::RsaOaep {
        Kind::RsaPrivate
    } else {
        Kind::Aes
    };
    let narrow: &[u8] = if by_id.key { &id } else { &[] };
    let found = find(session, kind, &key.label, narrow)?;
    let decrypt = pick(found, &key.label, &id, |other| {
        siblings
            .iter()
            .any(|s| s.label == key.label && s.cka_id == hex::encode(other))
    })?;
    let encrypt = match (&decrypt, kind) {
        (Some(private), Kind::RsaPrivate) => {
            let public = find(session, Kind::RsaPublic, &key.label, &private.id)?;
            single(public, &key.label)?
        }
        (found, _) => found.clone(),
    };
    let hmac = locate_hmac(session, key, by_id, siblings)?;
    let hmac_there = hmac.is_some() || key.hmac_label.is_none();
    Ok(match (encrypt, decrypt) {
        (Some(encrypt), Some(decrypt)) if hmac_there => Located::One(KeyHandles {
            version: key.version,
            mechanism: key.mechanism,
            oaep_hash: key.oaep_hash.unwrap_or_default(),
            encrypt: encrypt.handle,
            decrypt: decrypt.handle,
            hmac: hmac.map(|found| found.handle),
        }),
        (encrypt, decrypt) => Located::Nothing {
            key: encrypt.is_some() && decrypt.is_some(),
            hmac: hmac_there,
        },
    })
}

fn locate_hmac(
    session: &Session,
    key: &SealKey,
    by_id: ById,
    siblings: &[&SealKey],
) -> Result<Option<Found>, Fault> {
    let Some(label) = &key.hmac_label else {
        return Ok(None);
    };
    let id = key.hmac_id_bytes()?;
    let narrow: &[u8] = if by_id.hmac { &id } else { &[] };
    let found = find(session, Kind::Hmac, label, narrow)?;
    pick(found, label, &id, |other| {
        siblings.iter().any(|s| {
            s.hmac_label.as_ref() == Some(label)
                && s.hmac_id.as_deref() == Some(&hex::encode(other))
        })
    })
}

/// The one object that is not a known sibling. An object of another id is still given: ids can be changed by anybody
/// with the PIN, and the canary tells what the object is.
fn pick(
    found: Vec<Found>,
    label: &str,
    id: &[u8],
    is_sibling: impl Fn(&[u8]) -> bool,
) -> Result<Option<Found>, Fault> {
    let own = found
        .into_iter()
        .filter(|f| f.id == id || !is_sibling(&f.id))
        .collect();
    single(own, label)
}

pub(super) fn fingerprint(plaintext: &[u8], blob: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"strongroom-canary/1");
    hash.update((plaintext.len() as u64).to_be_bytes());
    hash.update(plaintext);
    hash.update(blob);
    hex::encode(hash.finalize())
}

/// Whether the object behind `handles` is the key that made the canary of `key`.
pub(super) fn opens_canary(
    session: &Session,
    key: &SealKey,
    handles: &KeyHandles,
) -> Result<bool, Fault> {
    let damaged = || misconfigured("the canary in the seal configuration is damaged".to_owned());
    let blob = key
        .canary
        .as_deref()
        .and_then(|canary| BASE64.decode(canary).ok())
        .ok_or_else(damaged)?;
    let parsed = envelope::parse(&blob).ok_or_else(damaged)?;
    let plaintext: SecretBytes = crypto::open_core(session, handles, CANARY_PATH, &parsed)?;
    let given = key.fingerprint.as_deref().unwrap_or_default();
    Ok(crate::constant_time_eq(
        fingerprint(&plaintext, &blob).as_bytes(),
        given.as_bytes(),
    ))
}

/// Finds every key of `config` and proves each by its canary.
pub(super) fn resolve(
    conn: &Conn,
    config: &SealConfig,
    by_id: ById,
) -> Result<Vec<Resolved>, Fault> {
    config.check()?;
    let mut resolved = Vec::with_capacity(config.keys().len());
    for key in config.keys() {
        let siblings: Vec<&SealKey> = config
            .keys()
            .iter()
            .filter(|other| other.version != key.version)
            .collect();
        let session = conn.open_session(false)?;
        let handles = match locate(&session, key, by_id, &siblings)? {
            Located::One(handles) => handles,
            Located::Nothing { key: true, .. } => {
                let label = key.hmac_label.as_deref().unwrap_or_default();
                return Err(missing(label, ", the HMAC key of this cluster's seal key"));
            }
            Located::Nothing { .. } => {
                return Err(missing(&key.label, ", which is this cluster's seal key"));
            }
        };
        prove(conn, session, key, &handles)?;
        resolved.push(Resolved {
            handles,
            key: key.clone(),
        });
    }
    Ok(resolved)
}

/// A key of the cluster that was found and proven.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub(super) handles: KeyHandles,
    pub(super) key: SealKey,
}

/// The canary opens: it is the key. It does not: either another key, or the HSM is not well; the self-test tells.
fn prove(conn: &Conn, session: Session, key: &SealKey, handles: &KeyHandles) -> Result<(), Fault> {
    let foreign = || {
        Fault::Final(HsmError::KeyForeign {
            label: key.label.clone(),
        })
    };
    match opens_canary(&session, key, handles) {
        Ok(true) => Ok(()),
        Ok(false) | Err(Fault::Final(HsmError::Rejected)) => Err(foreign()),
        Err(Fault::Module(error))
            if matches!(
                class(&error),
                Class::Data | Class::Ambiguous | Class::Config
            ) =>
        {
            drop(session);
            let session = conn.open_session(false)?;
            crypto::self_test(&session, handles)?;
            Err(foreign())
        }
        Err(fault) => Err(fault),
    }
}
