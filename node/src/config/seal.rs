//! `seal "pkcs11"`, its references and its environment.
//!
//! Invariants: the environment goes before the file; the PIN is in no message, and an empty one is refused here,
//! before it could be tried.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use zeroize::Zeroizing;

use super::{
    HsmSeal, Mechanism, OaepHash,
    env::Environment,
    known,
    report::{Origin, Report},
    section::{Located, Section},
    values::{parse_bool, parse_duration, parse_hex, parse_number},
};

const PIN_GUARD_FILE: &str = "hsm-pin-guard";
const DEFAULT_MAX_PARALLEL: u64 = 4;
const DEFAULT_CALL_DEADLINE: Duration = Duration::from_secs(10);
const MAX_PIN_FILE: u64 = 4096;

/// The one enabled seal. `data_dir` is where the PIN guard lives.
pub(super) fn check(
    top: &mut Section,
    environment: &Environment,
    data_dir: Option<&Path>,
    report: &mut Report,
) -> Option<HsmSeal> {
    let mut enabled = Vec::new();
    for block in top.take_labelled("seal", report) {
        let mut section = Section::new(format!("seal {:?}", block.label), block.at, block.entries);
        if section.take_bool("disabled", report).unwrap_or(false) {
            report.warn(
                &section.at,
                format!(
                    "{} is disabled: seal migration is not available yet",
                    section.title
                ),
            );
            continue;
        }
        enabled.push((block.label, section));
    }
    let mut enabled = enabled.into_iter();
    let Some((label, section)) = enabled.next() else {
        return without_stanza(environment, data_dir, report);
    };
    for (_, extra) in enabled {
        report.problem(&extra.at, "a second seal is configured; one is supported");
    }
    if label != "pkcs11" {
        report.problem(
            &section.at,
            format!("{} is not supported; use seal \"pkcs11\"", section.title),
        );
        return None;
    }
    pkcs11(section, environment, data_dir, report)
}

/// As in Vault, the environment alone can configure the seal.
fn without_stanza(
    environment: &Environment,
    data_dir: Option<&Path>,
    report: &mut Report,
) -> Option<HsmSeal> {
    let asked_for = environment
        .find("SEAL_TYPE")
        .is_some_and(|(_, kind)| kind == "pkcs11")
        || environment.find("HSM_LIB").is_some();
    if !asked_for {
        report.problem(&Origin::Whole, "no seal \"pkcs11\" is configured");
        return None;
    }
    let section = Section::new("seal \"pkcs11\"", Origin::Whole, Vec::new());
    pkcs11(section, environment, data_dir, report)
}

/// Reads settings, the environment first.
struct Reader<'a> {
    section: Section,
    environment: &'a Environment,
    report: &'a mut Report,
}

impl Reader<'_> {
    fn secret(&mut self, key: &'static str, suffix: &str) -> Option<Located<Zeroizing<String>>> {
        let in_file = self.section.take_text(key, self.report);
        self.environment
            .find(&format!("HSM_{suffix}"))
            .map(|(name, value)| Located::new(Zeroizing::new(value), Origin::Env(name)))
            .or(in_file)
            .filter(|text| !text.value.is_empty())
    }

    fn text(&mut self, key: &'static str, suffix: &str) -> Option<Located<String>> {
        self.secret(key, suffix)
            .map(|text| Located::new((*text.value).clone(), text.at))
    }

    fn parsed<T>(
        &mut self,
        key: &'static str,
        suffix: &str,
        wanted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(key, suffix)?;
        let parsed = parse(&text.value);
        if parsed.is_none() {
            self.problem(&text.at, format!("{key} must be {wanted}"));
        }
        parsed
    }

    fn required(&mut self, key: &'static str, suffix: &str) -> Option<Located<String>> {
        let found = self.text(key, suffix);
        if found.is_none() {
            let at = self.section.at.clone();
            self.problem(&at, format!("{key} must be set"));
        }
        found
    }

    fn problem(&mut self, at: &Origin, what: impl std::fmt::Display) {
        let what = format!("{}: {what}", self.section.title);
        self.report.problem(at, what);
    }

    fn warn(&mut self, at: &Origin, what: impl std::fmt::Display) {
        let what = format!("{}: {what}", self.section.title);
        self.report.warn(at, what);
    }
}

fn pkcs11(
    section: Section,
    environment: &Environment,
    data_dir: Option<&Path>,
    report: &mut Report,
) -> Option<HsmSeal> {
    let mut reader = Reader {
        section,
        environment,
        report,
    };
    let lib = lib(&mut reader);
    let slot_text = reader.text("slot", "SLOT");
    let slot = slot_text
        .as_ref()
        .and_then(|text| parse_number(&text.value));
    let token_label = reader.text("token_label", "TOKEN_LABEL");
    match &slot_text {
        Some(text) if slot.is_none() => reader.problem(&text.at, "slot must be a slot number"),
        None if token_label.is_none() => {
            let at = reader.section.at.clone();
            reader.problem(&at, "slot or token_label must be set");
        }
        Some(_) | None => {}
    }
    let pin = pin(&mut reader);
    let key_label = reader.required("key_label", "KEY_LABEL");
    let hex = "hexadecimal, such as 0x0a1b";
    let key_id = reader.parsed("key_id", "KEY_ID", hex, parse_hex);
    let hmac_key_label = reader.text("hmac_key_label", "HMAC_KEY_LABEL");
    let hmac_key_id = reader.parsed("hmac_key_id", "HMAC_KEY_ID", hex, parse_hex);
    let mechanism = mechanism(&mut reader);
    hmac_mechanism(&mut reader);
    if mechanism == Some(Mechanism::AesCbcPadHmac) && hmac_key_label.is_none() {
        let at = reader.section.at.clone();
        reader.problem(
            &at,
            "hmac_key_label must be set: the mechanism needs a key for HMAC",
        );
    }
    let rsa_oaep_hash = oaep_hash(&mut reader);
    let generate_key = boolean(&mut reader, "generate_key", "GENERATE_KEY");
    let force_rw_session = boolean(&mut reader, "force_rw_session", "FORCE_RW_SESSION");
    let ignore_pin_flags = boolean(&mut reader, "ignore_pin_flags", "IGNORE_PIN_FLAGS");
    let max_parallel = reader
        .parsed(
            "max_parallel",
            "MAX_PARALLEL",
            "a number from 1 to 64",
            |text| parse_number(text).filter(|number| (1..=64).contains(number)),
        )
        .unwrap_or(DEFAULT_MAX_PARALLEL);
    let call_deadline = reader
        .parsed(
            "call_deadline",
            "CALL_DEADLINE",
            "a duration from 1s to 5m",
            |text| {
                let range = Duration::from_secs(1)..=Duration::from_secs(300);
                parse_duration(text).filter(|deadline| range.contains(deadline))
            },
        )
        .unwrap_or(DEFAULT_CALL_DEADLINE);
    let Reader {
        section, report, ..
    } = reader;
    section.finish(known::SEAL, report);
    Some(HsmSeal {
        lib: lib?,
        slot,
        token_label: token_label.map(|label| label.value),
        pin: pin?,
        key_label: key_label?.value,
        key_id,
        hmac_key_label: hmac_key_label.map(|label| label.value),
        hmac_key_id,
        mechanism,
        rsa_oaep_hash,
        generate_key,
        force_rw_session,
        max_parallel: usize::try_from(max_parallel).unwrap_or(usize::MAX),
        call_deadline,
        ignore_pin_flags,
        pin_guard: data_dir?.join(PIN_GUARD_FILE),
    })
}

fn boolean(reader: &mut Reader<'_>, key: &'static str, suffix: &str) -> bool {
    reader
        .parsed(key, suffix, "true or false", parse_bool)
        .unwrap_or(false)
}

/// A bare file name would be looked for along the loader's search path, where others may have put something.
fn lib(reader: &mut Reader<'_>) -> Option<PathBuf> {
    let found = reader.required("lib", "LIB")?;
    if !found.value.contains('/') {
        reader.problem(&found.at, "lib must be a path, with at least one /");
        return None;
    }
    let path = PathBuf::from(found.value);
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => {
            reader.problem(&found.at, format!("lib: {} is not a file", path.display()));
            return None;
        }
        Err(error) => reader.warn(
            &found.at,
            format!("lib: {} cannot be read now: {error}", path.display()),
        ),
    }
    Some(path)
}

/// The PIN itself, or what `env://`, `file://` or `string://` refer to.
fn pin(reader: &mut Reader<'_>) -> Option<Zeroizing<String>> {
    let Some(found) = reader.secret("pin", "PIN") else {
        let at = reader.section.at.clone();
        reader.problem(
            &at,
            "pin must be set (the PIN, or file://PATH, env://NAME, string://PIN)",
        );
        return None;
    };
    let resolved = if let Some(name) = found.value.strip_prefix("env://") {
        reader
            .environment
            .get(name)
            .map(Zeroizing::new)
            .ok_or_else(|| format!("pin: the environment variable {name} is not set"))
    } else if let Some(path) = found.value.strip_prefix("file://") {
        pin_file(Path::new(path))
    } else if let Some(literal) = found.value.strip_prefix("string://") {
        Ok(Zeroizing::new(literal.to_owned()))
    } else {
        Ok(found.value.clone())
    };
    match resolved {
        Ok(pin) if !pin.is_empty() => Some(pin),
        Ok(_) => {
            reader.problem(&found.at, "pin must not be empty");
            None
        }
        Err(why) => {
            reader.problem(&found.at, why);
            None
        }
    }
}

/// A line break at the end is what an editor leaves, never part of a PIN; trying it would cost an attempt.
fn pin_file(path: &Path) -> Result<Zeroizing<String>, String> {
    use std::io::Read as _;
    let cannot = |error: std::io::Error| format!("pin: {} cannot be read: {error}", path.display());
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_PIN_FILE + 1)
        .read_to_string(&mut text)
        .map_err(cannot)?;
    if text.len() as u64 > MAX_PIN_FILE {
        return Err(format!("pin: {} is too long for a PIN", path.display()));
    }
    let trimmed = text.trim_end_matches(['\n', '\r']);
    Ok(Zeroizing::new(trimmed.to_owned()))
}

/// By Vault's number or PKCS#11's name.
fn mechanism(reader: &mut Reader<'_>) -> Option<Mechanism> {
    let found = reader.text("mechanism", "MECHANISM")?;
    let name = found.value.trim().to_ascii_uppercase();
    let name = name.strip_prefix("CKM_").unwrap_or(&name);
    let mechanism = match (name, parse_number(&found.value)) {
        ("AES_CBC_PAD", _) | (_, Some(0x1085)) => Mechanism::AesCbcPadHmac,
        ("AES_GCM", _) | (_, Some(0x1087)) => Mechanism::AesGcm,
        ("RSA_PKCS_OAEP", _) | (_, Some(0x9)) => Mechanism::RsaOaep,
        ("AES_CBC", _) | (_, Some(0x1082)) | ("RSA_PKCS", _) | (_, Some(0x1)) => {
            reader.problem(
                &found.at,
                "mechanism: CKM_AES_CBC (0x1082) and CKM_RSA_PKCS (0x0001) are open to padding attacks and not \
                 supported; use 0x1087, 0x1085 or 0x0009",
            );
            return None;
        }
        _ => {
            reader.problem(
                &found.at,
                "mechanism must be 0x1087 (CKM_AES_GCM), 0x1085 (CKM_AES_CBC_PAD) or 0x0009 (CKM_RSA_PKCS_OAEP)",
            );
            return None;
        }
    };
    Some(mechanism)
}

fn hmac_mechanism(reader: &mut Reader<'_>) {
    if let Some(found) = reader.text("hmac_mechanism", "HMAC_MECHANISM") {
        let name = found.value.trim().to_ascii_uppercase();
        let right = name.trim_start_matches("CKM_") == "SHA256_HMAC"
            || parse_number(&found.value) == Some(0x251);
        if !right {
            reader.problem(&found.at, "hmac_mechanism must be 0x0251 (CKM_SHA256_HMAC)");
        }
    }
}

fn oaep_hash(reader: &mut Reader<'_>) -> OaepHash {
    let wanted = "sha1, sha224, sha256, sha384 or sha512";
    reader
        .parsed("rsa_oaep_hash", "RSA_OAEP_HASH", wanted, |text| {
            Some(match text.to_ascii_lowercase().as_str() {
                "sha1" => OaepHash::Sha1,
                "sha224" => OaepHash::Sha224,
                "sha256" => OaepHash::Sha256,
                "sha384" => OaepHash::Sha384,
                "sha512" => OaepHash::Sha512,
                _ => return None,
            })
        })
        .unwrap_or(OaepHash::Sha256)
}
