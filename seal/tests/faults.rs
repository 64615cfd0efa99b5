//! What happens when the HSM, its PIN, its directory or its module fail: on SoftHSM, behind a fault-injecting module.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use common::{PIN, TOKEN, Token, block_on, copy_dir, establish, isolated, until};
use strongroom_seal::{
    config::SealConfig,
    hsm::{Health, Hsm, HsmConfig, HsmError, Mechanism, guard},
    wrap::SealWrapper,
};

fn is_ok(health: &Health) -> bool {
    *health == Health::Ok
}

fn is_down(health: &Health) -> bool {
    matches!(health, Health::Down { .. })
}

async fn settled(hsm: &Hsm) -> Health {
    until(hsm, "the first attempt", |h| *h != Health::Connecting).await;
    hsm.health()
}

fn with_pin(token: &Token, pin: &str) -> HsmConfig {
    HsmConfig {
        pin: pin.into(),
        ..token.chaos_config()
    }
}

#[test]
fn a_wrong_pin_is_tried_once_across_restarts() {
    isolated("a_wrong_pin_is_tried_once_across_restarts", |token| {
        block_on(async {
            for round in 0..4 {
                let hsm = Hsm::start(with_pin(&token, "00000000")).unwrap();
                let health = settled(&hsm).await;
                let Health::PinRefused { why } = &health else {
                    panic!("{round}: {health}");
                };
                assert!(why.contains("seal-reset-pin-guard"), "{why}");
                assert!(!why.contains("00000000"));
                tokio::time::sleep(Duration::from_millis(700)).await;
                assert_eq!(token.calls("C_Login"), 1, "in round {round}");
                let error = hsm.plan_key().await.unwrap_err();
                assert!(matches!(error, HsmError::PinRefused { .. }), "{error}");
                hsm.shutdown().await;
            }
            assert!(
                token.flags().contains("user PIN count low"),
                "{}",
                token.flags()
            );
            // A corrected PIN is tried at once although the token's count is low: that was us.
            let hsm = Hsm::start(with_pin(&token, PIN)).unwrap();
            hsm.connected().await;
            assert_eq!(token.calls("C_Login"), 2);
            assert!(!token.flags().contains("user PIN count low"));
        });
    });
}

#[test]
fn the_guard_can_be_reset_by_an_operator() {
    isolated("the_guard_can_be_reset_by_an_operator", |token| {
        block_on(async {
            let hsm = Hsm::start(with_pin(&token, "00000000")).unwrap();
            settled(&hsm).await;
            assert!(guard::reset(&token.guard()).unwrap());
            let began = Instant::now();
            while token.calls("C_Login") < 2 {
                assert!(began.elapsed() < Duration::from_secs(15), "no second try");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert_eq!(token.calls("C_Login"), 2, "one more try, not more");
        });
    });
}

#[test]
fn somebody_elses_wrong_pin_holds_us_back() {
    isolated("somebody_elses_wrong_pin_holds_us_back", |token| {
        let failed = std::process::Command::new("pkcs11-tool")
            .args(["--module", common::MODULE, "--token-label", TOKEN])
            .args(["--login", "--pin", "99999999", "--list-objects"])
            .output()
            .unwrap();
        assert!(!failed.status.success());
        block_on(async {
            let hsm = Hsm::start(token.chaos_config()).unwrap();
            let health = settled(&hsm).await;
            assert!(matches!(health, Health::PinRefused { .. }), "{health}");
            assert_eq!(token.calls("C_Login"), 0);
            // A login elsewhere clears the token's flag, and then ours goes on by itself.
            token.tool(&["--list-objects"]);
            until(&hsm, "the flag to clear", is_ok).await;
            assert_eq!(token.calls("C_Login"), 1);
        });
    });
}

#[test]
fn an_empty_pin_is_refused_before_anything_is_loaded() {
    isolated(
        "an_empty_pin_is_refused_before_anything_is_loaded",
        |token| {
            let error = Hsm::start(with_pin(&token, "")).unwrap_err();
            assert!(error.to_string().contains("PIN is empty"), "{error}");
            assert_eq!(token.calls("C_Initialize"), 0);
        },
    );
}

#[test]
fn each_mistake_has_its_own_message() {
    isolated("each_mistake_has_its_own_message", |token| {
        let text = token.dir.join("text.so");
        fs::write(&text, "not a library").unwrap();
        let open = token.dir.join("open.so");
        fs::copy(token.chaos(), &open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let libc = "/lib/x86_64-linux-gnu/libm.so.6";
        let lib = |path: &str| HsmConfig {
            lib: path.into(),
            ..token.config()
        };
        let mut cases = vec![
            (lib("softhsm2.so"), "no `/`"),
            (lib("/no/such/module.so"), "No such file"),
            (lib("/tmp"), "not a file"),
            (lib(text.to_str().unwrap()), "cannot be loaded"),
            (lib(open.to_str().unwrap()), "anybody may write"),
            (
                HsmConfig {
                    slot: Some(987_654),
                    token_label: None,
                    ..token.config()
                },
                "no token in slot 987654",
            ),
        ];
        if fs::exists(libc).unwrap() {
            cases.push((lib(libc), "no PKCS#11 module"));
        }
        block_on(async {
            for (config, want) in cases {
                let hsm = Hsm::start(config).unwrap();
                let health = settled(&hsm).await;
                let Health::Misconfigured { why } = &health else {
                    panic!("{want}: {health}");
                };
                assert!(why.contains(want), "{why}");
                hsm.shutdown().await;
            }
            let label = HsmConfig {
                token_label: Some("nobody".to_owned()),
                ..token.config()
            };
            let hsm = Hsm::start(label).unwrap();
            let health = settled(&hsm).await;
            assert!(
                health.to_string().contains("no token labelled `nobody`"),
                "{health}"
            );
            hsm.shutdown().await;
            token.add_token(TOKEN);
            let hsm = Hsm::start(token.config()).unwrap();
            let health = settled(&hsm).await;
            assert!(
                health.to_string().contains("2 tokens are labelled"),
                "{health}"
            );
        });
    });
}

async fn opened(config: HsmConfig) -> (Hsm, SealConfig, Vec<u8>) {
    let hsm = Hsm::start(config).unwrap();
    let config = establish(&hsm).await.unwrap();
    let blob = hsm.wrap_core("core/x", b"value").await.unwrap();
    (hsm, config, blob)
}

async fn assert_opens(hsm: &Hsm, blob: &[u8]) {
    assert_eq!(&*hsm.unwrap_core("core/x", blob).await.unwrap(), b"value");
}

#[test]
fn a_directory_moved_away_and_back_recovers() {
    isolated("a_directory_moved_away_and_back_recovers", |token| {
        block_on(async {
            let (hsm, _, blob) = opened(token.config()).await;
            let wrapper = SealWrapper::new(hsm.clone());
            let wrapped = wrapper.wrap("a", b"inner").await.unwrap();
            for _ in 0..2 {
                let away = token.dir.join("away");
                fs::rename(token.tokens(), &away).unwrap();
                let error = hsm.unwrap_core("core/x", &blob).await.unwrap_err();
                assert!(matches!(error, HsmError::Unavailable { .. }), "{error}");
                until(&hsm, "the outage", is_down).await;
                let began = Instant::now();
                assert!(hsm.unwrap_core("core/x", &blob).await.is_err());
                assert!(
                    began.elapsed() < Duration::from_millis(700),
                    "refused at once"
                );
                assert_eq!(
                    &wrapper.unwrap("a", &wrapped).await.unwrap()[..],
                    b"inner",
                    "cached"
                );
                fs::rename(&away, token.tokens()).unwrap();
                until(&hsm, "the return", is_ok).await;
                assert_opens(&hsm, &blob).await;
            }
        });
    });
}

#[test]
fn a_token_that_is_away_at_the_start_is_waited_for() {
    isolated("a_token_that_is_away_at_the_start_is_waited_for", |token| {
        block_on(async {
            let away = token.dir.join("away");
            fs::rename(token.tokens(), &away).unwrap();
            let hsm = Hsm::start(token.config()).unwrap();
            let health = settled(&hsm).await;
            assert!(is_down(&health), "{health}");
            fs::rename(&away, token.tokens()).unwrap();
            hsm.connected().await;
            establish(&hsm).await.unwrap();
        });
    });
}

/// Another cluster's token put in the place of ours while we run is not taken.
#[test]
fn a_foreign_token_is_not_taken_at_reconnect() {
    isolated("a_foreign_token_is_not_taken_at_reconnect", |token| {
        block_on(async {
            let ours = token.dir.join("ours");
            let (hsm, _, blob) = opened(token.config()).await;
            fs::rename(token.tokens(), &ours).unwrap();
            assert!(hsm.unwrap_core("core/x", &blob).await.is_err());
            token.init();
            token.make_aes("seal", "01");
            until(&hsm, "the foreign key", |h| matches!(h, Health::Misconfigured { why } if why.contains("not this cluster's"))).await;
            let error = hsm.wrap_core("core/x", b"v").await.unwrap_err();
            assert!(matches!(error, HsmError::Misconfigured { .. }), "{error}");
            fs::remove_dir_all(token.tokens()).unwrap();
            copy_dir(&ours, &token.tokens());
            until(&hsm, "our token", is_ok).await;
            assert_opens(&hsm, &blob).await;
        });
    });
}

/// A damaged blob is never taken for a broken HSM, with any mechanism.
#[test]
fn no_damaged_blob_opens_or_breaks_the_connection() {
    isolated("no_damaged_blob_opens_or_breaks_the_connection", |token| {
        for mechanism in [
            Mechanism::AesGcm,
            Mechanism::AesCbcPadHmac,
            Mechanism::RsaOaep,
        ] {
            block_on(async {
                let config = HsmConfig {
                    mechanism: Some(mechanism),
                    key_label: format!("{mechanism:?}"),
                    ..token.chaos_config()
                };
                let (hsm, _, blob) = opened(config).await;
                let initialized = token.calls("C_Initialize");
                let mut outages = hsm.subscribe();
                outages.mark_unchanged();
                for at in 0..blob.len() {
                    let rejected = |error: HsmError, what: &str| {
                        // A flip in the key version names another key.
                        let fits = matches!(error, HsmError::Rejected)
                            || (matches!(error, HsmError::KeyUnknown { .. })
                                && (5..9).contains(&at));
                        assert!(fits, "{mechanism:?} {what} at {at}: {error}");
                    };
                    rejected(
                        hsm.unwrap_core("core/x", &blob[..at]).await.unwrap_err(),
                        "cut",
                    );
                    let mut bad = blob.clone();
                    bad[at] ^= 1 << (at % 8);
                    rejected(hsm.unwrap_core("core/x", &bad).await.unwrap_err(), "flip");
                }
                assert!(
                    !outages.has_changed().unwrap(),
                    "health never left Ok: {}",
                    hsm.health()
                );
                assert_eq!(token.calls("C_Initialize"), initialized);
                assert_opens(&hsm, &blob).await;
                hsm.shutdown().await;
            });
        }
    });
}

#[test]
fn every_flip_of_a_wrapped_value_is_rejected() {
    isolated("every_flip_of_a_wrapped_value_is_rejected", |token| {
        block_on(async {
            let (hsm, _, _) = opened(token.config()).await;
            let wrapper = SealWrapper::new(hsm.clone());
            let wrapped = wrapper.wrap("kv/a", b"barrier ciphertext").await.unwrap();
            for at in 0..wrapped.len() {
                let mut bad = wrapped.clone();
                bad[at] ^= 0x40;
                let error = wrapper.unwrap("kv/a", &bad).await.unwrap_err();
                assert!(
                    matches!(error, HsmError::Rejected | HsmError::KeyUnknown { .. }),
                    "flip at {at}: {error}"
                );
                assert!(
                    wrapper.unwrap("kv/a", &wrapped[..at]).await.is_err(),
                    "cut at {at}"
                );
            }
            assert_eq!(hsm.health(), Health::Ok);
        });
    });
}

/// Every code at every function that an operation uses: served at once or again soon, and never called a damaged blob.
#[test]
fn injected_errors_recover() {
    isolated("injected_errors_recover", |token| {
        block_on(async {
            let (hsm, _, blob) = opened(token.chaos_config()).await;
            // SESSION_HANDLE_INVALID, DEVICE_REMOVED, DEVICE_ERROR, KEY_HANDLE_INVALID, OPERATION_ACTIVE, GENERAL_ERROR,
            // FUNCTION_FAILED, DEVICE_MEMORY, a vendor's.
            for code in [
                "0xb3",
                "0x32",
                "0x30",
                "0x60",
                "0x90",
                "0x5",
                "0x6",
                "0x31",
                "0x80000001",
            ] {
                for function in ["C_DecryptInit", "C_Decrypt", "C_OpenSession"] {
                    let what = format!("rv {code} {function} 1");
                    token.order(&what);
                    match hsm.unwrap_core("core/x", &blob).await {
                        Ok(value) => assert_eq!(&*value, b"value"),
                        Err(HsmError::Unavailable { .. }) => {}
                        Err(error) => panic!("{what}: {error}"),
                    }
                    until(&hsm, &what, is_ok).await;
                    token.order("");
                    assert_opens(&hsm, &blob).await;
                }
            }
        });
    });
}

/// One stray GENERAL_ERROR or DEVICE_ERROR is neither a damaged blob nor an outage.
#[test]
fn a_stray_error_is_not_noticed() {
    isolated("a_stray_error_is_not_noticed", |token| {
        block_on(async {
            let (hsm, _, blob) = opened(token.chaos_config()).await;
            for order in [
                "rv 0x5 C_Decrypt 1",
                "rv 0x5 C_DecryptInit 1",
                "rv 0x30 C_Decrypt 1",
            ] {
                token.order(order);
                assert_opens(&hsm, &blob).await;
                assert_eq!(hsm.health(), Health::Ok);
                token.order("");
            }
            // The session is gone: a new one is made within the same call.
            token.order("rv 0xb3 C_DecryptInit 1");
            assert_opens(&hsm, &blob).await;
            assert_eq!(hsm.health(), Health::Ok);
        });
    });
}

#[test]
fn a_cut_hsm_comes_back_by_itself() {
    isolated("a_cut_hsm_comes_back_by_itself", |token| {
        block_on(async {
            let (hsm, _, blob) = opened(token.chaos_config()).await;
            token.order("cut");
            assert!(hsm.unwrap_core("core/x", &blob).await.is_err());
            until(&hsm, "the cut", is_down).await;
            tokio::time::sleep(Duration::from_millis(600)).await;
            token.order("");
            until(&hsm, "the return", is_ok).await;
            assert_opens(&hsm, &blob).await;
        });
    });
}

/// The login is gone (as after an HSM's restart): it is renewed on the same context.
#[test]
fn a_lost_login_is_renewed() {
    isolated("a_lost_login_is_renewed", |token| {
        block_on(async {
            let (hsm, _, blob) = opened(token.chaos_config()).await;
            let (initialized, logins) = (token.calls("C_Initialize"), token.calls("C_Login"));
            token.order("rv 0x101 C_DecryptInit 1");
            assert!(hsm.unwrap_core("core/x", &blob).await.is_err());
            until(&hsm, "the login", is_ok).await;
            assert_opens(&hsm, &blob).await;
            assert_eq!(
                token.calls("C_Initialize"),
                initialized,
                "the context was kept"
            );
            assert_eq!(token.calls("C_Login"), logins + 1);
            assert_eq!(token.calls("C_Logout"), 0);
        });
    });
}

/// A token with three sessions: the login's, one call's, one check's.
#[test]
fn few_sessions_are_enough() {
    isolated("few_sessions_are_enough", |token| {
        token.order("sessions 3");
        block_on(async {
            let config = HsmConfig {
                max_parallel: 8,
                ..token.chaos_config()
            };
            let (hsm, _, blob) = opened(config).await;
            let initialized = token.calls("C_Initialize");
            let calls: Vec<_> = (0..50)
                .map(|_| {
                    let (hsm, blob) = (hsm.clone(), blob.clone());
                    tokio::spawn(async move { assert_opens(&hsm, &blob).await })
                })
                .collect();
            for call in calls {
                call.await.unwrap();
            }
            // Also while the canary has to decide.
            let mut bad = blob.clone();
            *bad.last_mut().unwrap() ^= 1;
            let error = hsm.unwrap_core("core/x", &bad).await.unwrap_err();
            assert_eq!(error, HsmError::Rejected);
            assert_eq!(token.calls("C_Initialize"), initialized, "no reconnect");
        });
    });
}

/// A token without AES-GCM gets the next best thing.
#[test]
fn the_mechanism_follows_the_token() {
    isolated("the_mechanism_follows_the_token", |token| {
        block_on(async {
            let hsm = Hsm::start(token.chaos_config()).unwrap();
            hsm.connected().await;
            assert_eq!(hsm.plan_key().await.unwrap().mechanism, Mechanism::AesGcm);
            // One "no" to what the first choice needs, and the next one is taken.
            token.order("rv 0x70 C_GetMechanismInfo 1");
            let plan = hsm.plan_key().await.unwrap();
            assert_eq!(plan.mechanism, Mechanism::AesCbcPadHmac);
            token.order("rv 0x70 C_GetMechanismInfo");
            let error = hsm.plan_key().await.unwrap_err();
            assert!(error.to_string().contains("offers none"), "{error}");
            token.order("");
            let config = HsmConfig {
                mechanism: Some(Mechanism::AesGcm),
                ..token.chaos_config()
            };
            hsm.shutdown().await;
            let hsm = Hsm::start(config).unwrap();
            hsm.connected().await;
            token.order("rv 0x70 C_GetMechanismInfo");
            let error = hsm.plan_key().await.unwrap_err();
            assert!(error.to_string().contains("CKM_AES_GCM"), "{error}");
        });
    });
}

/// Before any key is known there is no canary, and still an outage is noticed and got over.
#[test]
fn an_outage_before_init_is_noticed() {
    isolated("an_outage_before_init_is_noticed", |token| {
        block_on(async {
            let hsm = Hsm::start(token.config()).unwrap();
            hsm.connected().await;
            let away = token.dir.join("away");
            fs::rename(token.tokens(), &away).unwrap();
            let error = hsm.plan_key().await.unwrap_err();
            assert!(matches!(error, HsmError::Unavailable { .. }), "{error}");
            until(&hsm, "the outage", is_down).await;
            fs::rename(&away, token.tokens()).unwrap();
            establish(&hsm).await.unwrap();
        });
    });
}

/// No text that may reach a log or a client holds the PIN.
#[test]
fn the_pin_is_in_no_text() {
    isolated("the_pin_is_in_no_text", |token| {
        let config = token.config();
        assert!(!format!("{config:?}").contains(PIN));
        block_on(async {
            let hsm = Hsm::start(config).unwrap();
            let config = establish(&hsm).await.unwrap();
            assert!(!format!("{hsm:?} {config:?}").contains(PIN));
            let guard = fs::read_to_string(token.guard()).unwrap();
            assert!(!guard.contains(PIN));
        });
    });
}

/// An HSM that drops the login again and again may count the new ones: they wait.
#[test]
fn logins_that_are_lost_too_often_wait() {
    isolated("logins_that_are_lost_too_often_wait", |token| {
        block_on(async {
            let (hsm, _, blob) = opened(token.chaos_config()).await;
            for round in 0..4 {
                assert_eq!(hsm.health(), Health::Ok);
                token.order(&format!("rv 0x101 C_DecryptInit 1 {round}"));
                assert!(hsm.unwrap_core("core/x", &blob).await.is_err());
                if round < 3 {
                    until(&hsm, "the login", is_ok).await;
                }
            }
            let logins = token.calls("C_Login");
            until(&hsm, "the wait", |h| {
                h.to_string().contains("again and again")
            })
            .await;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert_eq!(token.calls("C_Login"), logins);
        });
    });
}

fn impatient(token: &Token) -> HsmConfig {
    HsmConfig {
        call_deadline: Duration::from_secs(1),
        ..token.chaos_config()
    }
}

#[test]
fn a_hanging_call_hangs_nobody() {
    isolated("a_hanging_call_hangs_nobody", |token| {
        block_on(async {
            let (hsm, _, blob) = opened(impatient(&token)).await;
            token.order("hang C_Decrypt");
            for _ in 0..2 {
                let began = Instant::now();
                let error = hsm.unwrap_core("core/x", &blob).await.unwrap_err();
                assert_eq!(error, HsmError::Timeout);
                assert!(began.elapsed() < Duration::from_secs(5));
            }
            // Both workers hang; they are replaced, and what does not hang is served.
            let began = Instant::now();
            while let Err(error) = hsm.wrap_core("core/y", b"v").await {
                assert!(began.elapsed() < Duration::from_secs(10), "{error}");
            }
            token.order("");
            assert_opens(&hsm, &blob).await;
            until(&hsm, "the end of the hang", is_ok).await;
        });
    });
}

#[test]
fn a_stuck_module_is_said_so_and_recovers() {
    isolated("a_stuck_module_is_said_so_and_recovers", |token| {
        block_on(async {
            let (hsm, _, blob) = opened(impatient(&token)).await;
            token.order("hang C_Decrypt");
            let mut began = Instant::now();
            while hsm.health() != Health::Stuck {
                assert!(
                    began.elapsed() < Duration::from_secs(40),
                    "{}",
                    hsm.health()
                );
                assert!(hsm.unwrap_core("core/x", &blob).await.is_err());
            }
            began = Instant::now();
            let error = hsm.unwrap_core("core/x", &blob).await.unwrap_err();
            assert!(matches!(error, HsmError::Unavailable { .. }), "{error}");
            assert!(
                began.elapsed() < Duration::from_millis(700),
                "refused at once"
            );
            token.order("");
            until(&hsm, "the end of the hang", is_ok).await;
            assert_opens(&hsm, &blob).await;
        });
    });
}

#[test]
fn too_many_callers_are_told_so() {
    isolated("too_many_callers_are_told_so", |token| {
        block_on(async {
            let (hsm, _, blob) = opened(impatient(&token)).await;
            token.order("hang C_Decrypt");
            let calls: Vec<_> = (0..400)
                .map(|_| {
                    let (hsm, blob) = (hsm.clone(), blob.clone());
                    tokio::spawn(async move { hsm.unwrap_core("core/x", &blob).await })
                })
                .collect();
            let (mut overloaded, mut late) = (0_usize, 0_usize);
            for call in calls {
                let error = call.await.unwrap().unwrap_err();
                overloaded += usize::from(error == HsmError::Overloaded);
                late += usize::from(error == HsmError::Timeout);
            }
            assert_eq!(overloaded + late, 400);
            assert!(overloaded > 100 && late > 200, "{overloaded} {late}");
            let before = token.calls("C_DecryptInit");
            token.order("");
            until(&hsm, "the end of the hang", is_ok).await;
            assert_opens(&hsm, &blob).await;
            let dead_work = token.calls("C_DecryptInit") - before;
            assert!(dead_work < 20, "{dead_work} expired calls reached the HSM");
        });
    });
}

#[test]
fn a_hang_does_not_keep_shutdown() {
    isolated("a_hang_does_not_keep_shutdown", |token| {
        block_on(async {
            let (hsm, _, blob) = opened(impatient(&token)).await;
            token.order("hang C_Decrypt");
            assert!(hsm.unwrap_core("core/x", &blob).await.is_err());
            let began = Instant::now();
            hsm.shutdown().await;
            assert!(began.elapsed() < Duration::from_secs(3));
            token.order("");
        });
    });
}

/// Concurrent readers of one data key ask the HSM once; writers share one data key.
#[test]
fn data_keys_are_shared() {
    isolated("data_keys_are_shared", |token| {
        block_on(async {
            let (hsm, _, _) = opened(token.chaos_config()).await;
            let wrapper = std::sync::Arc::new(SealWrapper::new(hsm.clone()));
            let before = token.calls("C_EncryptInit");
            let mut wrapped = Vec::new();
            for at in 0..100 {
                wrapped.push(wrapper.wrap(&format!("kv/{at}"), &[at]).await.unwrap());
            }
            let used = token.calls("C_EncryptInit") - before;
            assert!(used <= 2, "{used} data keys for 100 values");
            wrapper.clear().await;
            token.order("delay 50 C_Decrypt");
            let before = token.calls("C_DecryptInit");
            let readers: Vec<_> = (0..100_u8)
                .map(|at| {
                    let (wrapper, value) = (wrapper.clone(), wrapped[usize::from(at)].clone());
                    tokio::spawn(async move {
                        let inner = wrapper.unwrap(&format!("kv/{at}"), &value).await.unwrap();
                        assert_eq!(&inner[..], &[at]);
                    })
                })
                .collect();
            for reader in readers {
                reader.await.unwrap();
            }
            assert!(token.calls("C_DecryptInit") - before <= used);
        });
    });
}
