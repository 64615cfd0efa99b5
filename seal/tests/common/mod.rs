//! A SoftHSM token of its own for each test.
//!
//! PKCS#11 state and `SOFTHSM2_CONF` belong to the process, and setting a variable in a running one is unsafe; so each
//! test starts this test binary again for itself alone, with the variable set, and checks how that ended.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use strongroom_seal::{
    config::{Recovery, SealConfig, SealKey},
    hsm::{Health, Hsm, HsmConfig, HsmError, OaepHash},
};

pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
pub const PIN: &str = "12345678";
pub const TOKEN: &str = "strongroom";
const SO_PIN: &str = "87654321";
const DIR: &str = "STRONGROOM_SEAL_TEST_DIR";

/// Runs `body` in a process of its own with a fresh token.
pub fn isolated(test: &str, body: fn(Token)) {
    if let Some(dir) = std::env::var_os(DIR) {
        return body(Token { dir: dir.into() });
    }
    let dir = tempfile::tempdir().unwrap();
    let token = Token {
        dir: dir.path().to_owned(),
    };
    token.init();
    token.build_chaos();
    let output = token
        .command(std::env::current_exe().unwrap())
        .env("CHAOS_MODULE", MODULE)
        .env("CHAOS_CTL", token.dir.join("chaos.ctl"))
        .env("CHAOS_LOG", token.dir.join("chaos.log"))
        .env(DIR, dir.path())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A directory with a SoftHSM token in it.
pub struct Token {
    pub dir: PathBuf,
}

impl Token {
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    fn conf(&self) -> PathBuf {
        self.dir.join("softhsm2.conf")
    }

    pub fn tokens(&self) -> PathBuf {
        self.dir.join("tokens")
    }

    pub fn guard(&self) -> PathBuf {
        self.dir.join("pin-guard.json")
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("SOFTHSM2_CONF", self.conf());
        command
    }

    pub fn init(&self) {
        fs::create_dir_all(self.tokens()).unwrap();
        fs::write(
            self.conf(),
            format!(
                "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n",
                self.tokens().display()
            ),
        )
        .unwrap();
        self.add_token(TOKEN);
    }

    pub fn add_token(&self, label: &str) {
        let output = self
            .command("softhsm2-util")
            .args(["--init-token", "--free", "--label", label])
            .args(["--so-pin", SO_PIN, "--pin", PIN])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Runs pkcs11-tool, logged in, in a process of its own.
    pub fn tool(&self, arguments: &[&str]) -> String {
        let output = self
            .command("pkcs11-tool")
            .args([
                "--module",
                MODULE,
                "--token-label",
                TOKEN,
                "--login",
                "--pin",
                PIN,
            ])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn build_chaos(&self) {
        let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(self.chaos())
            .arg(Path::new(&here).join("tests/chaos.c"))
            .args(["-ldl", "-lpthread"])
            .status()
            .unwrap();
        assert!(status.success());
    }

    pub fn chaos(&self) -> PathBuf {
        self.dir.join("chaos.so")
    }

    /// Gives the fault-injecting module an order; see `chaos.c`.
    pub fn order(&self, order: &str) {
        let temporary = self.dir.join("chaos.tmp");
        fs::write(&temporary, order).unwrap();
        fs::rename(temporary, self.dir.join("chaos.ctl")).unwrap();
    }

    /// How often `function` was called through the fault-injecting module.
    pub fn calls(&self, function: &str) -> usize {
        let log = fs::read_to_string(self.dir.join("chaos.log")).unwrap_or_default();
        log.lines().filter(|line| *line == function).count()
    }

    /// As [`Token::config`], through the fault-injecting module.
    pub fn chaos_config(&self) -> HsmConfig {
        HsmConfig {
            lib: self.chaos(),
            ..self.config()
        }
    }

    /// Token information without logging in.
    pub fn flags(&self) -> String {
        let output = self
            .command("pkcs11-tool")
            .args(["--module", MODULE, "--list-token-slots"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn make_aes(&self, label: &str, id: &str) {
        self.tool(&[
            "--keygen",
            "--key-type",
            "aes:32",
            "--label",
            label,
            "--id",
            id,
            "--sensitive",
        ]);
    }

    pub fn config(&self) -> HsmConfig {
        HsmConfig {
            lib: MODULE.into(),
            slot: None,
            token_label: Some(TOKEN.to_owned()),
            pin: PIN.into(),
            key_label: "seal".to_owned(),
            key_id: None,
            hmac_key_label: None,
            hmac_key_id: None,
            mechanism: None,
            rsa_oaep_hash: OaepHash::Sha1,
            generate_key: true,
            force_rw_session: false,
            max_parallel: 2,
            call_deadline: Duration::from_secs(5),
            pin_guard: self.guard(),
            ignore_pin_flags: false,
        }
    }
}

/// Runs a future to its end.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

pub fn seal_config(key: SealKey) -> SealConfig {
    let recovery = Recovery {
        shares: 1,
        threshold: 1,
    };
    SealConfig::new(recovery, vec![key])
}

/// Does what an init does.
pub async fn establish(hsm: &Hsm) -> Result<SealConfig, HsmError> {
    hsm.connected().await;
    let intent = hsm.plan_key().await?;
    let config = seal_config(hsm.establish_key(&intent).await?);
    hsm.open(&config).await?;
    Ok(config)
}

/// Waits until health is as wanted.
pub async fn until(hsm: &Hsm, what: &str, wanted: impl Fn(&Health) -> bool) {
    let began = Instant::now();
    while !wanted(&hsm.health()) {
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "waiting for {what}: {}",
            hsm.health()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn copy_dir(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}
