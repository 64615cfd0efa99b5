//! Encryption inside the HSM: one function each way for every mechanism, and whole blobs on top.
//!
//! In: a session, a key's handles, bytes. Out: [`Sealed`] parts or plaintext.
//!
//! Invariants
//! - AES-GCM has a 12-byte IV and a 16-byte tag, always: SoftHSM would accept IVs and tags of any length, also none.
//! - CBC is verified (C_Verify) before it is decrypted: opencryptoki answers damaged padding with garbage and `CKR_OK`.
//! - OAEP binds nothing beside the key; the software layer above binds path and header.

use cryptoki::{
    error::Error as Pkcs11Error,
    mechanism::{
        Mechanism as Pkcs11Mechanism,
        aead::GcmParams,
        rsa::{PkcsOaepParams, PkcsOaepSource},
    },
    object::ObjectHandle,
    session::Session,
};

use super::{
    Mechanism, OaepHash,
    error::{Fault, HsmError},
};
use crate::{
    datakey::{DataKey, Purpose, bind},
    envelope::{
        self, Blob, CBC_IV_LEN, DEK_ID_LEN, GCM_IV_LEN, Head, MAC_LEN, Sealed, SealedRef, Suite,
        TAG_LEN,
    },
    secret::{SecretBytes, fill_random},
};

const TAG_BITS: u64 = 128;
/// Values up to this length go through the HSM whole; some modules take no more than 16 KiB at once.
const MAX_WHOLE: usize = 8 * 1024;
/// No core parameter is anywhere near this long.
const MAX_CORE: usize = 1024 * 1024;

/// Handles of one seal key in the current context, and how it is used.
#[derive(Clone, Debug)]
pub(super) struct KeyHandles {
    pub(super) version: u32,
    pub(super) mechanism: Mechanism,
    pub(super) oaep_hash: OaepHash,
    /// The secret key, or the public half.
    pub(super) encrypt: ObjectHandle,
    /// The secret key, or the private half.
    pub(super) decrypt: ObjectHandle,
    /// Only with CBC.
    pub(super) hmac: Option<ObjectHandle>,
}

impl KeyHandles {
    fn dek_suite(&self) -> Suite {
        match self.mechanism {
            Mechanism::AesGcm => Suite::DekGcm,
            Mechanism::AesCbcPadHmac => Suite::DekCbcHmac,
            Mechanism::RsaOaep => Suite::DekOaep,
        }
    }

    /// OAEP takes a data key at most.
    fn whole_suite(&self) -> Option<Suite> {
        match self.mechanism {
            Mechanism::AesGcm => Some(Suite::WholeGcm),
            Mechanism::AesCbcPadHmac => Some(Suite::WholeCbcHmac),
            Mechanism::RsaOaep => None,
        }
    }

    fn hmac(&self) -> Result<ObjectHandle, Fault> {
        self.hmac.ok_or_else(|| {
            Fault::Final(HsmError::Misconfigured {
                why: "the CBC key has no HMAC key beside it".to_owned(),
            })
        })
    }

    /// Whether a blob of `suite` can have been made by this key.
    fn makes(&self, suite: Suite) -> bool {
        suite == self.dek_suite() || Some(suite) == self.whole_suite()
    }
}

/// Encrypts `plaintext` in the HSM, authenticated together with `aad` (not with OAEP).
pub(super) fn encrypt(
    session: &Session,
    key: &KeyHandles,
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Sealed, Fault> {
    match key.mechanism {
        Mechanism::AesGcm => encrypt_gcm(session, key, aad, plaintext),
        Mechanism::AesCbcPadHmac => {
            let mut iv = [0; CBC_IV_LEN];
            fill_random(&mut iv)?;
            let ciphertext =
                session.encrypt(&Pkcs11Mechanism::AesCbcPad(iv), key.encrypt, plaintext)?;
            let message = mac_input(aad, &iv, &ciphertext);
            let mac = session.sign(&Pkcs11Mechanism::Sha256Hmac, key.hmac()?, &message)?;
            let mac: [u8; MAC_LEN] = mac.try_into().map_err(|_| strange("MAC"))?;
            Ok(Sealed {
                iv: iv.to_vec(),
                ciphertext,
                mac: Some(mac),
            })
        }
        Mechanism::RsaOaep => Ok(Sealed {
            iv: Vec::new(),
            ciphertext: session.encrypt(&oaep(key.oaep_hash), key.encrypt, plaintext)?,
            mac: None,
        }),
    }
}

/// Decrypts what [`encrypt`] gave under the same `aad`.
pub(super) fn decrypt(
    session: &Session,
    key: &KeyHandles,
    aad: &[u8],
    sealed: SealedRef<'_>,
) -> Result<SecretBytes, Fault> {
    let plaintext = match key.mechanism {
        Mechanism::AesGcm => {
            let mut iv: [u8; GCM_IV_LEN] = sealed.iv.try_into().map_err(|_| HsmError::Rejected)?;
            let params = GcmParams::new(&mut iv, aad, TAG_BITS.into())?;
            let mechanism = Pkcs11Mechanism::AesGcm(params);
            session.decrypt(&mechanism, key.decrypt, sealed.ciphertext)?
        }
        Mechanism::AesCbcPadHmac => {
            let iv: [u8; CBC_IV_LEN] = sealed.iv.try_into().map_err(|_| HsmError::Rejected)?;
            let mac = sealed.mac.ok_or(HsmError::Rejected)?;
            let message = mac_input(aad, &iv, sealed.ciphertext);
            session.verify(&Pkcs11Mechanism::Sha256Hmac, key.hmac()?, &message, mac)?;
            session.decrypt(
                &Pkcs11Mechanism::AesCbcPad(iv),
                key.decrypt,
                sealed.ciphertext,
            )?
        }
        Mechanism::RsaOaep => {
            session.decrypt(&oaep(key.oaep_hash), key.decrypt, sealed.ciphertext)?
        }
    };
    Ok(plaintext.into())
}

/// The IV is ours, unless the module wrote its own back into the buffer or appended it to the ciphertext.
fn encrypt_gcm(
    session: &Session,
    key: &KeyHandles,
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Sealed, Fault> {
    let mut iv = [0; GCM_IV_LEN];
    fill_random(&mut iv)?;
    let params = GcmParams::new(&mut iv, aad, TAG_BITS.into())?;
    let mechanism = Pkcs11Mechanism::AesGcm(params);
    let mut ciphertext = session.encrypt(&mechanism, key.encrypt, plaintext)?;
    drop(mechanism);
    let expected = plaintext.len() + TAG_LEN;
    let iv = match ciphertext.len().checked_sub(expected) {
        Some(0) => iv.to_vec(),
        Some(GCM_IV_LEN) => ciphertext.split_off(expected),
        _ => return Err(strange("AES-GCM ciphertext")),
    };
    Ok(Sealed {
        iv,
        ciphertext,
        mac: None,
    })
}

fn strange(what: &str) -> Fault {
    Fault::Final(HsmError::Misconfigured {
        why: format!("the HSM gave an {what} of an unexpected length"),
    })
}

fn oaep(hash: OaepHash) -> Pkcs11Mechanism<'static> {
    let (hash, mgf) = hash.types();
    Pkcs11Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()))
}

fn mac_input(aad: &[u8], iv: &[u8], ciphertext: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(8 + aad.len() + iv.len() + ciphertext.len());
    let len = u64::try_from(aad.len()).unwrap_or(u64::MAX);
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(aad);
    message.extend_from_slice(iv);
    message.extend_from_slice(ciphertext);
    message
}

/// A new data key, wrapped: everything of an envelope before its nonce.
pub(super) fn wrap_dek(
    session: &Session,
    key: &KeyHandles,
    dek: &DataKey,
) -> Result<Vec<u8>, Fault> {
    let mut bound = Head::new(key.dek_suite(), key.version).encode();
    let mut id = [0; DEK_ID_LEN];
    fill_random(&mut id)?;
    bound.extend_from_slice(&id);
    let sealed = encrypt(session, key, &bound, dek.bytes())?;
    envelope::encode_dek(&bound, &sealed).ok_or_else(|| strange("wrapped data key"))
}

/// The data key of an envelope, from its bound part and the wrapped key.
pub(super) fn unwrap_dek(
    session: &Session,
    key: &KeyHandles,
    head: Head,
    bound: &[u8],
    wrapped: SealedRef<'_>,
) -> Result<DataKey, Fault> {
    check_head(key, head)?;
    let dek = decrypt(session, key, bound, wrapped)?;
    DataKey::from_bytes(&dek).ok_or(Fault::Final(HsmError::Rejected))
}

/// Encrypts a core parameter, bound to `path`: whole in the HSM if the mechanism and the length allow it, else under a
/// data key of its own.
pub(super) fn seal_core(
    session: &Session,
    key: &KeyHandles,
    path: &str,
    plaintext: &[u8],
) -> Result<Vec<u8>, Fault> {
    if plaintext.len() > MAX_CORE {
        return Err(strange("core parameter"));
    }
    match key.whole_suite() {
        Some(suite) if plaintext.len() <= MAX_WHOLE => {
            let head = Head::new(suite, key.version).encode();
            let sealed = encrypt(session, key, &bind(&head, Purpose::Core, path), plaintext)?;
            envelope::encode_whole(&head, &sealed).ok_or_else(|| strange("ciphertext"))
        }
        _ => {
            let dek = DataKey::generate()?;
            let prefix = wrap_dek(session, key, &dek)?;
            dek.seal(&prefix, Purpose::Core, path, plaintext)
                .ok_or_else(|| strange("core parameter"))
        }
    }
}

/// Opens what [`seal_core`] gave for the same `path`.
pub(super) fn open_core(
    session: &Session,
    key: &KeyHandles,
    path: &str,
    blob: &Blob<'_>,
) -> Result<SecretBytes, Fault> {
    match blob {
        Blob::Whole(whole) => {
            check_head(key, whole.head)?;
            let aad = bind(whole.bound, Purpose::Core, path);
            decrypt(session, key, &aad, whole.sealed)
        }
        Blob::Enveloped(e) => {
            let dek = unwrap_dek(session, key, e.head, e.bound, e.wrapped_dek)?;
            dek.open(e, Purpose::Core, path)
                .map(SecretBytes::from)
                .ok_or(Fault::Final(HsmError::Rejected))
        }
    }
}

/// A blob that was not made by this key in this way is damaged: nothing of it may reach the HSM.
fn check_head(key: &KeyHandles, head: Head) -> Result<(), Fault> {
    let same_hmac_key = head.hmac_key.is_none_or(|version| version == key.version);
    if head.key == key.version && key.makes(head.suite) && same_hmac_key {
        Ok(())
    } else {
        Err(Fault::Final(HsmError::Rejected))
    }
}

/// Encrypts and decrypts a random value: whether the HSM and this key work at all.
pub(super) fn self_test(session: &Session, key: &KeyHandles) -> Result<(), Fault> {
    let mut value = [0; 32];
    fill_random(&mut value)?;
    let aad = b"strongroom-self-test/1";
    let sealed = encrypt(session, key, aad, &value)?;
    if crate::constant_time_eq(&decrypt(session, key, aad, sealed.as_ref())?, &value) {
        Ok(())
    } else {
        Err(Fault::Module(Pkcs11Error::InvalidValue))
    }
}
