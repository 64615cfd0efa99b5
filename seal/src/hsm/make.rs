//! Choosing and making the cluster's key, at initialization only.
//!
//! In: the configuration, or the intent that the caller has committed. Out: an intent, or an active key with its canary.
//!
//! Invariants
//! - Generating is idempotent: label and id are chosen (and committed by the caller) before the HSM is touched.
//! - Until there is a canary, an object under the label is the intent's only if it has the intent's id.
//! - Keys are never deleted.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cryptoki::{
    error::{Error as Pkcs11Error, RvError},
    mechanism::{Mechanism as Pkcs11Mechanism, MechanismType},
    object::{Attribute, AttributeType, KeyType, ObjectClass},
    session::Session,
};

use super::{
    HsmConfig, Mechanism,
    conn::Conn,
    crypto::{self, KeyHandles},
    error::{Class, Fault, brief, class},
    keys::{
        ById, CANARY_PATH, Kind, Located, duplicate, find, fingerprint, locate, misconfigured,
        missing, opens_canary, single,
    },
    worker,
};
use crate::{
    config::{KeyOrigin, KeyState, SealKey},
    secret::random_array,
};

const ID_LEN: usize = 16;

/// Looks under the configured label and decides which key a new cluster will use; see [`super::Hsm::plan_key`].
pub(super) fn plan(session: &Session, conn: &Conn, config: &HsmConfig) -> Result<SealKey, Fault> {
    // A token that has just gone away may answer "no such key" to a search.
    worker::check(conn)?;
    let label = config.key_label.as_str();
    let id = config.key_id.as_deref().unwrap_or_default();
    let aes = find(session, Kind::Aes, label, id)?;
    let rsa = find(session, Kind::RsaPrivate, label, id)?;
    let mechanism = choose_mechanism(conn, config, !aes.is_empty(), !rsa.is_empty())?;
    let is_rsa = mechanism == Mechanism::RsaOaep;
    let there = match config.mechanism {
        // Without a mechanism nothing says whether the AES or the RSA key is meant.
        None => aes.into_iter().chain(rsa).collect(),
        Some(_) if is_rsa => rsa,
        Some(_) => aes,
    };
    let existing = single(there, label)?;
    let origin = match &existing {
        Some(_) => KeyOrigin::Adopted,
        None if config.generate_key => KeyOrigin::Generated,
        None => {
            return Err(missing(
                label,
                "; make one, or set generate_key to have it made at initialization",
            ));
        }
    };
    let cka_id = match existing {
        Some(found) => hex::encode(found.id),
        None if !id.is_empty() => hex::encode(id),
        None => new_id()?,
    };
    let (hmac_label, hmac_id) = if mechanism == Mechanism::AesCbcPadHmac {
        let (label, id) = plan_hmac(session, config)?;
        (Some(label), Some(id))
    } else {
        (None, None)
    };
    Ok(SealKey {
        version: 1,
        state: KeyState::Intent,
        origin,
        label: label.to_owned(),
        cka_id,
        hmac_label,
        hmac_id,
        mechanism,
        oaep_hash: is_rsa.then_some(config.rsa_oaep_hash),
        canary: None,
        fingerprint: None,
        created_ms: None,
    })
}

fn plan_hmac(session: &Session, config: &HsmConfig) -> Result<(String, String), Fault> {
    let label = match &config.hmac_key_label {
        Some(label) => label.clone(),
        None => format!("{}-hmac", config.key_label),
    };
    let id = config.hmac_key_id.as_deref().unwrap_or_default();
    let existing = single(find(session, Kind::Hmac, &label, id)?, &label)?;
    let id = match existing {
        Some(found) => hex::encode(found.id),
        None if !config.generate_key => {
            return Err(missing(
                &label,
                " for the HMAC that CBC needs; make one, or set generate_key to have it made at initialization",
            ));
        }
        None if !id.is_empty() => hex::encode(id),
        None => new_id()?,
    };
    Ok((label, id))
}

fn new_id() -> Result<String, Fault> {
    Ok(hex::encode(random_array::<ID_LEN>()?.as_slice()))
}

fn choose_mechanism(
    conn: &Conn,
    config: &HsmConfig,
    has_aes: bool,
    has_rsa: bool,
) -> Result<Mechanism, Fault> {
    if let Some(mechanism) = config.mechanism {
        return if offers(conn, mechanism.needs())? {
            Ok(mechanism)
        } else {
            Err(misconfigured(format!(
                "the token does not offer {}",
                mechanism.name()
            )))
        };
    }
    for mechanism in Mechanism::PREFERENCE {
        let key_fits = match mechanism {
            Mechanism::RsaOaep => has_rsa || !has_aes,
            Mechanism::AesGcm | Mechanism::AesCbcPadHmac => {
                has_aes || (!has_rsa && offers(conn, &[MechanismType::AES_KEY_GEN])?)
            }
        };
        if key_fits && offers(conn, mechanism.needs())? {
            return Ok(mechanism);
        }
    }
    Err(misconfigured(
        "the token offers none of AES-GCM, AES-CBC with HMAC, and RSA-OAEP for the key".to_owned(),
    ))
}

/// Asks for each one alone: the whole list may hold kinds that the wrapper does not know and complains about.
fn offers(conn: &Conn, wanted: &[MechanismType]) -> Result<bool, Fault> {
    for mechanism in wanted {
        match conn.pkcs11.get_mechanism_info(conn.slot, *mechanism) {
            Ok(_) => {}
            Err(Pkcs11Error::Pkcs11(RvError::MechanismInvalid, _)) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Makes sure that the key of `intent` exists and works; see [`super::Hsm::establish_key`].
pub(super) fn establish(
    session: &Session,
    conn: &Conn,
    config: &HsmConfig,
    intent: &SealKey,
) -> Result<SealKey, Fault> {
    let intent = &current_intent(config, intent)?;
    refuse_strangers(session, intent, ById::of(config))?;
    let handles = match locate(session, intent, ById::of(config), &[])? {
        Located::One(handles) => handles,
        Located::Nothing { key, hmac } => {
            let may_generate = intent.origin == KeyOrigin::Generated;
            // The write session is closed as soon as the keys are there.
            let writer = conn.open_session(true)?;
            if !key && !may_generate {
                return Err(missing(&intent.label, ", which was there before"));
            }
            if !key {
                generate(&writer, intent)?;
            }
            if !hmac {
                if !may_generate && !config.generate_key {
                    let label = intent.hmac_label.as_deref().unwrap_or_default();
                    return Err(missing(label, " for the HMAC that CBC needs"));
                }
                generate_hmac(&writer, intent)?;
            }
            match locate(session, intent, ById::of(config), &[])? {
                Located::One(handles) => handles,
                Located::Nothing { .. } => {
                    return Err(missing(&intent.label, " although it was just made"));
                }
            }
        }
    };
    check_attributes(session, intent, &handles)?;
    crypto::self_test(session, &handles).map_err(|fault| with_hint(fault, intent))?;
    make_canary(session, intent, &handles)
}

/// An intent of an earlier try must be what the configuration still says; the hash may change, it makes no other key.
fn current_intent(config: &HsmConfig, intent: &SealKey) -> Result<SealKey, Fault> {
    let same_mechanism = config.mechanism.is_none_or(|m| m == intent.mechanism);
    if intent.label != config.key_label || !same_mechanism {
        return Err(misconfigured(format!(
            "an initialization that was not finished has chosen key_label `{}` and {}; set the configuration back to \
             that, or start over with an empty data directory",
            intent.label,
            intent.mechanism.name()
        )));
    }
    Ok(SealKey {
        oaep_hash: intent.oaep_hash.and(Some(config.rsa_oaep_hash)),
        ..intent.clone()
    })
}

/// Without a canary yet, an object under the label is the intent's only if it has its id.
fn refuse_strangers(session: &Session, intent: &SealKey, by_id: ById) -> Result<(), Fault> {
    let kind = if intent.mechanism == Mechanism::RsaOaep {
        Kind::RsaPrivate
    } else {
        Kind::Aes
    };
    let id = intent.id_bytes()?;
    let narrow: &[u8] = if by_id.key { &id } else { &[] };
    let found = find(session, kind, &intent.label, narrow)?;
    if let Some(stranger) = found.iter().find(|found| found.id != id) {
        if found.len() > 1 {
            return Err(duplicate(&intent.label, found.len()));
        }
        return Err(misconfigured(format!(
            "the initialization has chosen the key labelled `{}` with id {}, but the HSM's has id {}; to adopt that one, \
             start over with an empty data directory",
            intent.label,
            intent.cka_id,
            hex::encode(&stranger.id)
        )));
    }
    Ok(())
}

fn with_hint(fault: Fault, key: &SealKey) -> Fault {
    match fault {
        Fault::Module(error)
            if class(&error) == Class::Config && key.mechanism == Mechanism::RsaOaep =>
        {
            misconfigured(format!(
                "the token does not take RSA-OAEP with this hash ({}); set rsa_oaep_hash to one it knows",
                brief(&error)
            ))
        }
        fault @ (Fault::Module(_) | Fault::Final(_)) => fault,
    }
}

fn generate(session: &Session, intent: &SealKey) -> Result<(), Fault> {
    let id = intent.id_bytes()?;
    let label = intent.label.as_bytes().to_vec();
    let common = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Label(label.clone()),
        Attribute::Id(id.clone()),
    ];
    if intent.mechanism == Mechanism::RsaOaep {
        return generate_pair(session, label, id);
    }
    let mut template = common.to_vec();
    template.extend([
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ]);
    // Modules differ in what they allow by default, and in what they let be said.
    let denied = [
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
    ];
    generate_with(session, &Pkcs11Mechanism::AesKeyGen, &template, &denied)
}

fn generate_hmac(session: &Session, intent: &SealKey) -> Result<(), Fault> {
    let label = intent.hmac_label.as_deref().unwrap_or_default();
    let template = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Id(intent.hmac_id_bytes()?),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(32.into()),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Verify(true),
    ];
    let denied = [
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    generate_with(
        session,
        &Pkcs11Mechanism::GenericSecretKeyGen,
        &template,
        &denied,
    )
}

/// Generates with `denied` in the template, and without it where the module will not have it.
fn generate_with(
    session: &Session,
    mechanism: &Pkcs11Mechanism<'_>,
    template: &[Attribute],
    denied: &[Attribute],
) -> Result<(), Fault> {
    let full: Vec<Attribute> = template.iter().chain(denied).cloned().collect();
    match session.generate_key(mechanism, &full) {
        Ok(_) => Ok(()),
        Err(error) if class(&error) == Class::Config => {
            session.generate_key(mechanism, template)?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn generate_pair(session: &Session, label: Vec<u8>, id: Vec<u8>) -> Result<(), Fault> {
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Decrypt(true),
        Attribute::Label(label.clone()),
        Attribute::Id(id.clone()),
    ];
    let public = |bits: u64| {
        [
            Attribute::Token(true),
            Attribute::Encrypt(true),
            Attribute::ModulusBits(bits.into()),
            Attribute::PublicExponent(vec![1, 0, 1]),
            Attribute::Label(label.clone()),
            Attribute::Id(id.clone()),
        ]
    };
    let mechanism = Pkcs11Mechanism::RsaPkcsKeyPairGen;
    match session.generate_key_pair(&mechanism, &public(3072), &private) {
        Ok(_) => Ok(()),
        // Some tokens, TPMs among them, stop at 2048 bits.
        Err(error) if class(&error) == Class::Config => {
            session.generate_key_pair(&mechanism, &public(2048), &private)?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// A key that was made here must be what was asked for; of an adopted one only the uses are required, because an
/// operator may want to be able to back it up.
fn check_attributes(session: &Session, key: &SealKey, handles: &KeyHandles) -> Result<(), Fault> {
    let wanted = [
        AttributeType::Sensitive,
        AttributeType::Extractable,
        AttributeType::Decrypt,
    ];
    let mut protected = true;
    for attribute in session.get_attributes(handles.decrypt, &wanted)? {
        if let Attribute::Decrypt(false) = attribute {
            return Err(misconfigured(format!(
                "the key labelled `{}` may not be used to decrypt",
                key.label
            )));
        }
        if matches!(
            attribute,
            Attribute::Sensitive(false) | Attribute::Extractable(true)
        ) {
            protected = false;
        }
    }
    match (protected, key.origin) {
        (true, _) => Ok(()),
        (false, KeyOrigin::Adopted) => {
            tracing::warn!(
                label = key.label,
                "the adopted seal key can leave the HSM (CKA_EXTRACTABLE, or not CKA_SENSITIVE)"
            );
            Ok(())
        }
        (false, KeyOrigin::Generated) => Err(misconfigured(
            "the HSM made a key that can leave it although that was forbidden".to_owned(),
        )),
    }
}

fn make_canary(
    session: &Session,
    intent: &SealKey,
    handles: &KeyHandles,
) -> Result<SealKey, Fault> {
    let plaintext = random_array::<32>()?;
    let blob = crypto::seal_core(session, handles, CANARY_PATH, plaintext.as_slice())?;
    let active = SealKey {
        state: KeyState::Active,
        fingerprint: Some(fingerprint(plaintext.as_slice(), &blob)),
        canary: Some(BASE64.encode(&blob)),
        ..intent.clone()
    };
    active.check()?;
    if !opens_canary(session, &active, handles)? {
        return Err(misconfigured(
            "the HSM does not give back what it has encrypted".to_owned(),
        ));
    }
    Ok(active)
}
