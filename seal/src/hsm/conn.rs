//! From a configuration to a logged-in PKCS#11 context.
//!
//! In: configuration, PIN. Out: a [`Conn`], or why not, sorted by what helps.
//!
//! Invariants
//! - The library is loaded once and stays: its last drop would unload code that may still run.
//! - The login session stays open as long as its context; C_Logout is never called, it logs out every session.
//! - A PIN reaches the module only if neither the guard nor the token's flags speak against it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error as Pkcs11Error, RvError},
    session::{Session, UserType},
    slot::{Slot, TokenInfo},
    types::AuthPin,
};

use super::{
    HsmConfig,
    error::{Class, Fault, HsmError, brief, class},
    guard::{PinGuard, Verdict},
    keys::Resolved,
};
use crate::secret::SecretString;

/// A logged-in context, and the cluster's keys in it once they are known.
pub(super) struct Conn {
    /// Counts connections; a report about an older one is ignored.
    pub(super) generation: u64,
    /// Counts C_Initialize; sessions of an older one are dead.
    pub(super) epoch: u64,
    pub(super) pkcs11: Pkcs11,
    pub(super) slot: Slot,
    pub(super) force_rw: bool,
    /// Held during each call if the module cannot lock by itself, or the token has few sessions.
    pub(super) serial: Option<Arc<Mutex<()>>>,
    /// Whether sessions must be given back after each call.
    pub(super) few_sessions: bool,
    pub(super) keys: Vec<Resolved>,
}

impl Conn {
    /// A session that closes itself when dropped; only while inside the gate.
    pub(super) fn open_session(&self, writes: bool) -> Result<Session, Pkcs11Error> {
        if writes || self.force_rw {
            self.pkcs11.open_rw_session(self.slot)
        } else {
            self.pkcs11.open_ro_session(self.slot)
        }
    }

    /// The same, but it must be closed by hand, so that it can be forgotten when its context is gone.
    pub(super) fn open_worker_session(&self) -> Result<Session, Pkcs11Error> {
        if self.force_rw {
            self.pkcs11.open_rw_session_no_drop(self.slot)
        } else {
            self.pkcs11.open_ro_session_no_drop(self.slot)
        }
    }

    pub(super) fn lock(&self) -> Option<MutexGuard<'_, ()>> {
        let lock = self.serial.as_ref()?;
        Some(lock.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn key(&self, version: u32) -> Option<&Resolved> {
        self.keys.iter().find(|key| key.key.version == version)
    }
}

/// Whether the module can be called from several threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Locking {
    Module,
    Ours,
}

pub(super) fn misconfigured(why: impl Into<String>) -> HsmError {
    HsmError::Misconfigured { why: why.into() }
}

pub(super) fn unavailable(why: impl Into<String>) -> HsmError {
    HsmError::Unavailable { why: why.into() }
}

/// Sorts a fault outside of any request.
pub(super) fn to_error(fault: Fault) -> HsmError {
    match fault {
        Fault::Final(error) => error,
        Fault::Module(error) => match class(&error) {
            Class::Config => misconfigured(brief(&error)),
            Class::Pin => HsmError::PinRefused { why: brief(&error) },
            Class::Data | Class::Ambiguous | Class::Session | Class::Login | Class::Device => {
                unavailable(brief(&error))
            }
        },
    }
}

/// Loads the PKCS#11 library.
pub(super) fn load(lib: &Path) -> Result<Pkcs11, HsmError> {
    let path = checked_path(lib)?;
    let shown = path.display();
    Pkcs11::new(&path).map_err(|error| {
        misconfigured(match &error {
            Pkcs11Error::MissingSymbol(_) => {
                format!("{shown} is a library, but no PKCS#11 module (it has no C_GetFunctionList)")
            }
            Pkcs11Error::LibraryLoading(why) => {
                format!("{shown} cannot be loaded as a PKCS#11 module: {why}")
            }
            Pkcs11Error::Pkcs11(..)
            | Pkcs11Error::NotSupported
            | Pkcs11Error::TryFromInt(_)
            | Pkcs11Error::TryFromSlice(_)
            | Pkcs11Error::ParseInt(_)
            | Pkcs11Error::Utf8(_)
            | Pkcs11Error::NulError(_)
            | Pkcs11Error::NullFunctionPointer
            | Pkcs11Error::InvalidValue
            | Pkcs11Error::PinNotSet => format!(
                "{shown} does not start as a PKCS#11 module: {}",
                brief(&error)
            ),
        })
    })
}

/// A library runs with our rights, so its path must be a real one that not everybody may write to.
fn checked_path(lib: &Path) -> Result<PathBuf, HsmError> {
    if !lib.as_os_str().as_encoded_bytes().contains(&b'/') {
        return Err(misconfigured(format!(
            "the module path `{}` has no `/`; give the whole path",
            lib.display()
        )));
    }
    let path = fs::canonicalize(lib)
        .map_err(|error| misconfigured(format!("the PKCS#11 module {}: {error}", lib.display())))?;
    let metadata = fs::metadata(&path).map_err(|error| {
        misconfigured(format!("the PKCS#11 module {}: {error}", path.display()))
    })?;
    if !metadata.is_file() {
        return Err(misconfigured(format!("{} is not a file", path.display())));
    }
    if metadata.permissions().mode() & 0o002 != 0 {
        return Err(misconfigured(format!(
            "anybody may write to the PKCS#11 module {}; take that right away",
            path.display()
        )));
    }
    Ok(path)
}

/// C_Initialize.
pub(super) fn initialize(pkcs11: &Pkcs11) -> Result<Locking, HsmError> {
    let init = |flags| pkcs11.initialize(CInitializeArgs::new(flags));
    match init(CInitializeFlags::OS_LOCKING_OK) {
        Ok(()) => Ok(Locking::Module),
        Err(Pkcs11Error::Pkcs11(RvError::CantLock, _)) => init(CInitializeFlags::empty())
            .map(|()| Locking::Ours)
            .map_err(|error| unavailable(brief(&error))),
        Err(error) => Err(unavailable(brief(&error))),
    }
}

/// The configured slot, with what the token says about itself if it can be read.
pub(super) fn find_slot(
    pkcs11: &Pkcs11,
    config: &HsmConfig,
) -> Result<(Slot, Option<TokenInfo>), HsmError> {
    let failed = |error: Pkcs11Error| to_error(error.into());
    let slots = pkcs11.get_slots_with_token().map_err(failed)?;
    if slots.is_empty() {
        // What a network HSM's client answers while its server is away, so this is no mistake in the configuration.
        return Err(unavailable("the module shows no slot with a token"));
    }
    if let Some(number) = config.slot {
        let Some(slot) = slots.iter().find(|slot| slot.id() == number) else {
            let there: Vec<String> = slots.iter().map(|slot| slot.id().to_string()).collect();
            return Err(misconfigured(format!(
                "there is no token in slot {number}; slots with a token: {}",
                there.join(", ")
            )));
        };
        // opencryptoki's token info does not parse: then its flags are simply not known.
        let info = pkcs11.get_token_info(*slot).ok();
        if let (Some(label), Some(info)) = (&config.token_label, &info)
            && shown_label(info) != label
        {
            return Err(misconfigured(format!(
                "the token in slot {number} is labelled `{}`, not `{label}`",
                shown_label(info)
            )));
        }
        return Ok((*slot, info));
    }
    let Some(label) = &config.token_label else {
        return Err(misconfigured("neither slot nor token_label is set"));
    };
    find_label(pkcs11, &slots, label)
}

fn find_label(
    pkcs11: &Pkcs11,
    slots: &[Slot],
    label: &str,
) -> Result<(Slot, Option<TokenInfo>), HsmError> {
    let mut unreadable = 0;
    let mut found = Vec::new();
    for slot in slots {
        match pkcs11.get_token_info(*slot) {
            Ok(info) if shown_label(&info) == label => found.push((*slot, Some(info))),
            Ok(_) => {}
            Err(_) => unreadable += 1,
        }
    }
    if found.len() > 1 {
        return Err(misconfigured(format!(
            "{} tokens are labelled `{label}`; say which one by slot",
            found.len()
        )));
    }
    // Not seen now: SoftHSM loses sight of a token while another process logs in, so it may be back in a moment.
    found.pop().ok_or_else(|| {
        let hint = if unreadable > 0 {
            "; some tokens could not be read, select by slot if it is one of them"
        } else {
            ""
        };
        unavailable(format!("no token labelled `{label}` is there{hint}"))
    })
}

/// The wrapper trims spaces but not NULs.
fn shown_label(info: &TokenInfo) -> &str {
    info.label().trim_end_matches(['\0', ' '])
}

/// What the guard knows a token by.
fn token_name(slot: Slot, info: Option<&TokenInfo>) -> String {
    match info {
        Some(info) => format!("{}\n{}", info.serial_number(), shown_label(info)),
        None => format!("slot {}", slot.id()),
    }
}

/// Opens the session that carries the login and logs in, if nothing speaks against trying.
pub(super) fn log_in(
    pkcs11: &Pkcs11,
    slot: Slot,
    info: Option<&TokenInfo>,
    config: &HsmConfig,
    pin: &SecretString,
) -> Result<Session, HsmError> {
    let guard = PinGuard::new(config.pin_guard.clone());
    let token = token_name(slot, info);
    check_guard(&guard, &token, info, config, pin)?;
    let session = match pkcs11.open_rw_session_no_drop(slot) {
        Err(Pkcs11Error::Pkcs11(RvError::TokenWriteProtected, _)) => {
            pkcs11.open_ro_session_no_drop(slot)
        }
        other => other,
    }
    .map_err(|error| to_error(error.into()))?;
    let auth = AuthPin::from(pin.expose().to_owned());
    match session.login(UserType::User, Some(&auth)) {
        Ok(()) => {
            if let Err(error) = guard.accepted() {
                tracing::warn!(%error, "the PIN guard could not be cleared after a successful login");
            }
            Ok(session)
        }
        // The login belongs to the whole process.
        Err(Pkcs11Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
        Err(error) if class(&error) == Class::Pin => {
            let text = brief(&error);
            if let Err(error) = guard.refused(&token, pin) {
                tracing::error!(%error, "the refused PIN could not be recorded in the PIN guard");
            }
            Err(HsmError::PinRefused {
                why: format!("{text}; {}", way_out(guard.path())),
            })
        }
        Err(error) => Err(to_error(error.into())),
    }
}

fn way_out(guard: &Path) -> String {
    format!(
        "it is not tried again. Correct the PIN in the configuration and restart; if the PIN is right and the HSM was \
         corrected, run `strongroom operator seal-reset-pin-guard` (guard file {})",
        guard.display()
    )
}

/// A locked token, a last try, or a wrong PIN of somebody else's are left alone.
fn check_guard(
    guard: &PinGuard,
    token: &str,
    info: Option<&TokenInfo>,
    config: &HsmConfig,
    pin: &SecretString,
) -> Result<(), HsmError> {
    let refuse = |why: String| Err(HsmError::PinRefused { why });
    let verdict = guard.check(token, pin).map_err(|error| {
        misconfigured(format!(
            "the PIN guard {} cannot be used, so no PIN is tried: {error}",
            guard.path().display()
        ))
    })?;
    if verdict == Verdict::Refused {
        return refuse(format!(
            "this PIN was refused by this token before; {}",
            way_out(guard.path())
        ));
    }
    let Some(info) = info.filter(|_| !config.ignore_pin_flags) else {
        return Ok(());
    };
    if info.user_pin_locked() {
        return refuse(
            "the token's user PIN is locked; its security officer must reset it".to_owned(),
        );
    }
    if info.user_pin_final_try() {
        return refuse(
            "one more wrong PIN would lock the token, so none is tried; log in once with the right PIN by another tool, \
             or set ignore_pin_flags"
                .to_owned(),
        );
    }
    if info.user_pin_count_low() && verdict == Verdict::Unknown {
        return refuse(format!(
            "somebody has entered a wrong PIN at this token, so none is tried; check the PIN, then log in once with it \
             by another tool, or run `strongroom operator seal-reset-pin-guard` (guard file {}), or set \
             ignore_pin_flags",
            guard.path().display()
        ));
    }
    Ok(())
}
