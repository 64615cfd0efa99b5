//! What can go wrong with the HSM, sorted by what the caller does next.
//!
//! Invariants
//! - No text holds a PIN, a key or plaintext. Labels of keys and tokens are configuration and may appear.
//! - Every PKCS#11 return code has a class, without a catch-all: a new one must be decided on.

use std::{fmt, time::Instant};

use cryptoki::error::{Error as Pkcs11Error, RvError};

use crate::{config::ConfigError, secret::RandomError};

/// Why the HSM did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HsmError {
    /// It is away or in trouble; it is being reconnected, try again later.
    #[error("the HSM is not available: {why}")]
    Unavailable {
        /// For a person.
        why: String,
    },
    /// It did not answer in time.
    #[error("the HSM did not answer in time")]
    Timeout,
    /// Too many requests wait for it.
    #[error("too many requests are waiting for the HSM")]
    Overloaded,
    /// The PIN was refused, or is not tried because it was refused before; an operator must act.
    #[error("the HSM's PIN was refused: {why}")]
    PinRefused {
        /// What to do about it.
        why: String,
    },
    /// Configuration and HSM do not fit; an operator must act.
    #[error("the HSM is misconfigured: {why}")]
    Misconfigured {
        /// What does not fit.
        why: String,
    },
    /// No key under the label.
    #[error("the HSM holds no key labelled `{label}`{hint}")]
    KeyMissing {
        /// The label looked for.
        label: String,
        /// What to do about it, or empty.
        hint: &'static str,
    },
    /// More than one key under the label: which one is meant cannot be known.
    #[error(
        "the HSM holds {count} keys labelled `{label}`; there must be exactly one: rename or remove the others, or say \
         which one by key_id"
    )]
    KeyDuplicate {
        /// The label looked for.
        label: String,
        /// How many there are.
        count: usize,
    },
    /// A key under the label, but another one than the cluster's.
    #[error(
        "the HSM's key labelled `{label}` is not this cluster's key: it does not open what the cluster's key has sealed"
    )]
    KeyForeign {
        /// The label looked for.
        label: String,
    },
    /// The blob is damaged, was moved, or was made by another key. The HSM is well.
    #[error("a value sealed by the HSM is damaged or was moved")]
    Rejected,
    /// The blob names a key version that the seal configuration does not have.
    #[error("no seal key of version {version} is known")]
    KeyUnknown {
        /// As in the blob.
        version: u32,
    },
}

impl From<RandomError> for HsmError {
    fn from(error: RandomError) -> Self {
        Self::Unavailable {
            why: error.to_string(),
        }
    }
}

impl From<ConfigError> for HsmError {
    fn from(error: ConfigError) -> Self {
        Self::Misconfigured {
            why: error.to_string(),
        }
    }
}

/// How the connection to the HSM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The first attempt to connect is running.
    Connecting,
    /// Logged in, and the cluster's keys are verified if they are known.
    Ok,
    /// Away or in trouble; it is being reconnected.
    Down {
        /// Since when.
        since: Instant,
        /// Why the last attempt failed.
        why: String,
    },
    /// See [`HsmError::PinRefused`].
    PinRefused {
        /// What to do about it.
        why: String,
    },
    /// See [`HsmError::Misconfigured`]; also when the cluster's key is missing, doubled or another one.
    Misconfigured {
        /// What does not fit.
        why: String,
    },
    /// Calls into the module do not return. It recovers when they do; else the process must be restarted.
    Stuck,
}

impl Health {
    /// The error of a call that is refused because of this state; `None` when calls are let through.
    #[must_use]
    pub fn refusal(&self) -> Option<HsmError> {
        match self {
            Self::Ok => None,
            Self::Connecting => Some(HsmError::Unavailable {
                why: "the connection is being made".to_owned(),
            }),
            Self::Down { why, .. } => Some(HsmError::Unavailable { why: why.clone() }),
            Self::PinRefused { why } => Some(HsmError::PinRefused { why: why.clone() }),
            Self::Misconfigured { why } => Some(HsmError::Misconfigured { why: why.clone() }),
            Self::Stuck => Some(HsmError::Unavailable {
                why: "calls into the PKCS#11 module do not return; restart this node if that lasts"
                    .to_owned(),
            }),
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Connecting => f.write_str("connecting"),
            Self::Down { since, why } => {
                write!(
                    f,
                    "not available for {} s: {why}",
                    since.elapsed().as_secs()
                )
            }
            Self::PinRefused { why } => write!(f, "PIN refused: {why}"),
            Self::Misconfigured { why } => write!(f, "misconfigured: {why}"),
            Self::Stuck => f.write_str(
                "calls into the PKCS#11 module do not return; restart this node if that lasts",
            ),
        }
    }
}

/// What a failure inside the module calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The data is wrong, the HSM is well.
    Data,
    /// Either the data or the HSM: the canary decides.
    Ambiguous,
    /// A new session may do.
    Session,
    /// The login is gone.
    Login,
    /// Reconnect with back-off.
    Device,
    /// The PIN: never again without an operator.
    Pin,
    /// Configuration or key do not fit; the operator may fix the HSM, so keep looking, slowly.
    Config,
}

/// Why a step inside the module failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The module's or its wrapper's answer, to be classified.
    Module(Pkcs11Error),
    /// Decided already.
    Final(HsmError),
}

impl From<Pkcs11Error> for Fault {
    fn from(error: Pkcs11Error) -> Self {
        Self::Module(error)
    }
}

impl From<HsmError> for Fault {
    fn from(error: HsmError) -> Self {
        Self::Final(error)
    }
}

impl From<RandomError> for Fault {
    fn from(error: RandomError) -> Self {
        Self::Final(error.into())
    }
}

impl From<ConfigError> for Fault {
    fn from(error: ConfigError) -> Self {
        Self::Final(error.into())
    }
}

/// Short form for messages: `DeviceError@Encrypt`. The wrapper's own `Display` is a paragraph of the specification.
pub(super) fn brief(error: &Pkcs11Error) -> String {
    match error {
        Pkcs11Error::Pkcs11(rv, function) => format!("{rv:?}@{function:?}"),
        Pkcs11Error::LibraryLoading(error) => error.to_string(),
        Pkcs11Error::NotSupported
        | Pkcs11Error::TryFromInt(_)
        | Pkcs11Error::TryFromSlice(_)
        | Pkcs11Error::ParseInt(_)
        | Pkcs11Error::Utf8(_)
        | Pkcs11Error::NulError(_)
        | Pkcs11Error::NullFunctionPointer
        | Pkcs11Error::MissingSymbol(_)
        | Pkcs11Error::InvalidValue
        | Pkcs11Error::PinNotSet => format!("{error:?}"),
    }
}

pub(super) fn class(error: &Pkcs11Error) -> Class {
    match error {
        Pkcs11Error::Pkcs11(rv, _) => class_of(*rv),
        Pkcs11Error::LibraryLoading(_)
        | Pkcs11Error::NotSupported
        | Pkcs11Error::NullFunctionPointer
        | Pkcs11Error::MissingSymbol(_) => Class::Config,
        // The module answered something that cannot be: it is not well.
        Pkcs11Error::TryFromInt(_)
        | Pkcs11Error::TryFromSlice(_)
        | Pkcs11Error::ParseInt(_)
        | Pkcs11Error::Utf8(_)
        | Pkcs11Error::NulError(_)
        | Pkcs11Error::InvalidValue
        | Pkcs11Error::PinNotSet => Class::Device,
    }
}

/// Every return code and why it has its class. Source: measured on SoftHSM, kryoptic, tpm2-pkcs11, opencryptoki and
/// p11-kit; PKCS#11 3.1 §5.1.
fn class_of(rv: RvError) -> Class {
    use RvError as R;
    match rv {
        // What a damaged blob is answered with by modules that tell it apart.
        R::EncryptedDataInvalid
        | R::EncryptedDataLenRange
        | R::SignatureInvalid
        | R::SignatureLenRange
        | R::DataInvalid
        | R::DataLenRange
        | R::WrappedKeyInvalid
        | R::WrappedKeyLenRange => Class::Data,
        // SoftHSM answers a bad tag or bad padding so, and every module a broken device.
        R::GeneralError | R::FunctionFailed => Class::Ambiguous,
        // Session or handles are gone; SoftHSM answers so when its directory is away, too.
        R::SessionHandleInvalid
        | R::SessionClosed
        | R::SessionCount
        | R::ObjectHandleInvalid
        | R::KeyHandleInvalid
        | R::WrappingKeyHandleInvalid
        | R::UnwrappingKeyHandleInvalid
        | R::OperationActive
        | R::OperationNotInitialized => Class::Session,
        R::UserNotLoggedIn => Class::Login,
        // The device, the token or the library's state.
        R::DeviceError
        | R::DeviceMemory
        | R::DeviceRemoved
        | R::TokenNotPresent
        | R::TokenNotRecognized
        | R::HostMemory
        | R::SlotIdInvalid
        | R::CryptokiNotInitialized
        | R::CryptokiAlreadyInitialized
        | R::MutexBad
        | R::MutexNotLocked
        | R::FipsSelfTestFailed
        | R::LibraryLoadFailed
        | R::FunctionCanceled
        | R::Cancel
        | R::RandomNoRng
        | R::RandomSeedNotSupported
        | R::BufferTooSmall
        | R::NoEvent
        | R::SavedStateInvalid
        | R::StateUnsaveable
        | R::InformationSensitive
        | R::ExceededMaxIterations
        // Transient on SoftHSM while another process logs in.
        | R::UserPinNotInitialized
        // Logins of others in this process: reconnecting starts over.
        | R::UserAnotherAlreadyLoggedIn
        | R::UserAlreadyLoggedIn
        | R::UserTooManyTypes
        | R::SessionExists
        | R::SessionReadOnlyExists
        | R::SessionReadWriteSoExists
        | R::SessionParallelNotSupported
        | R::FunctionNotParallel
        | R::KeyNotNeeded
        | R::KeyChanged
        | R::KeyNeeded
        | R::KeyIndigestible
        // Codes nobody outside the vendor knows: treat the device as not well.
        | R::VendorDefined(_)
        | R::UnknownErrorCode(_) => Class::Device,
        // Any of these at a login counts, or may count, as a try.
        R::PinIncorrect
        | R::PinInvalid
        | R::PinLenRange
        | R::PinExpired
        | R::PinLocked
        | R::PinTooWeak
        | R::NewPinMode
        | R::NextOtp => Class::Pin,
        // The token cannot do it, or the key may not be used so.
        R::MechanismInvalid
        | R::MechanismParamInvalid
        | R::KeyTypeInconsistent
        | R::KeyFunctionNotPermitted
        | R::KeySizeRange
        | R::KeyNotWrappable
        | R::KeyUnextractable
        | R::WrappingKeySizeRange
        | R::WrappingKeyTypeInconsistent
        | R::UnwrappingKeySizeRange
        | R::UnwrappingKeyTypeInconsistent
        | R::ArgumentsBad
        | R::TemplateIncomplete
        | R::TemplateInconsistent
        | R::AttributeReadOnly
        | R::AttributeSensitive
        | R::AttributeTypeInvalid
        | R::AttributeValueInvalid
        | R::ActionProhibited
        | R::CurveNotSupported
        | R::DomainParamsInvalid
        | R::PublicKeyInvalid
        | R::FunctionNotSupported
        | R::FunctionRejected
        | R::UserTypeInvalid
        | R::SessionReadOnly
        | R::TokenWriteProtected
        | R::NeedToCreateThreads
        | R::CantLock => Class::Config,
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    #[test]
    fn classes_of_the_codes_that_were_measured() {
        for (rv, want) in [
            (RvError::GeneralError, Class::Ambiguous),
            (RvError::EncryptedDataInvalid, Class::Data),
            (RvError::SignatureInvalid, Class::Data),
            (RvError::ObjectHandleInvalid, Class::Session),
            (RvError::UserNotLoggedIn, Class::Login),
            (RvError::UserPinNotInitialized, Class::Device),
            (RvError::DeviceMemory, Class::Device),
            (RvError::VendorDefined(0x8000_0001), Class::Device),
            (RvError::PinIncorrect, Class::Pin),
            (RvError::KeyFunctionNotPermitted, Class::Config),
        ] {
            let error = Pkcs11Error::Pkcs11(rv, Function::Encrypt);
            assert_eq!(class(&error), want, "{rv:?}");
        }
    }

    #[test]
    fn texts_are_short_and_say_what_to_do() {
        let error = Pkcs11Error::Pkcs11(RvError::DeviceError, Function::Encrypt);
        assert_eq!(brief(&error), "DeviceError@Encrypt");
        assert_eq!(Health::Ok.refusal(), None);
        for health in [Health::Connecting, Health::Stuck] {
            assert!(matches!(
                health.refusal(),
                Some(HsmError::Unavailable { .. })
            ));
        }
    }
}
