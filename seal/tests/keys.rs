//! Making, adopting and recognising the cluster's key, on a real SoftHSM.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use common::{Token, block_on, copy_dir, establish, isolated, seal_config};
use strongroom_seal::{
    config::{KeyOrigin, KeyState, SealConfig, SealKey},
    hsm::{Health, Hsm, HsmConfig, HsmError, Mechanism, OaepHash},
    inspect::{ValueLayer, describe},
    wrap::{SealWrapper, is_wrapped},
};

async fn round_trip(hsm: &Hsm) -> Vec<u8> {
    let blob = hsm.wrap_core("core/x", b"value").await.unwrap();
    assert_eq!(&*hsm.unwrap_core("core/x", &blob).await.unwrap(), b"value");
    assert_eq!(
        hsm.unwrap_core("core/y", &blob).await.unwrap_err(),
        HsmError::Rejected,
        "a blob moved to another path must not open"
    );
    blob
}

#[test]
fn generates_and_works_again_after_a_restart() {
    isolated("generates_and_works_again_after_a_restart", |token| {
        block_on(async {
            let hsm = Hsm::start(token.config()).unwrap();
            let config = establish(&hsm).await.unwrap();
            let key = config.active().unwrap();
            assert_eq!(key.origin, KeyOrigin::Generated);
            assert_eq!(key.mechanism, Mechanism::AesGcm);
            assert_eq!(key.cka_id.len(), 32);
            let blob = round_trip(&hsm).await;
            assert!(matches!(
                describe(&blob),
                ValueLayer::HsmWhole {
                    suite: 4,
                    key_version: 1,
                    ..
                }
            ));
            assert_eq!(hsm.health(), Health::Ok);
            hsm.shutdown().await;
            assert!(matches!(
                hsm.wrap_core("p", b"").await,
                Err(HsmError::Unavailable { .. })
            ));

            let listed = token.tool(&["--list-objects", "--type", "secrkey"]);
            assert_eq!(listed.matches("seal").count(), 1, "{listed}");
            assert!(
                listed.contains("sensitive") && !listed.contains("extractable, local, wrap"),
                "{listed}"
            );

            let json = config.to_json().unwrap();
            let again = Hsm::start(token.config()).unwrap();
            again.connected().await;
            assert!(
                matches!(
                    again.wrap_core("p", b"").await,
                    Err(HsmError::Misconfigured { .. })
                ),
                "nothing can be wrapped before the key is opened"
            );
            again
                .open(&SealConfig::from_json(&json).unwrap())
                .await
                .unwrap();
            assert_eq!(
                &*again.unwrap_core("core/x", &blob).await.unwrap(),
                b"value"
            );
            again.shutdown().await;
        });
    });
}

/// An init that is cut off goes on from its intent: one key, not two.
#[test]
fn establishing_is_idempotent() {
    isolated("establishing_is_idempotent", |token| {
        block_on(async {
            let hsm = Hsm::start(token.config()).unwrap();
            hsm.connected().await;
            let intent = hsm.plan_key().await.unwrap();
            assert_eq!(intent.state, KeyState::Intent);
            let json = serde_json::to_string(&intent).unwrap();
            let first = hsm.establish_key(&intent).await.unwrap();
            hsm.shutdown().await;

            let again = Hsm::start(token.config()).unwrap();
            again.connected().await;
            let intent = serde_json::from_str(&json).unwrap();
            let second = again.establish_key(&intent).await.unwrap();
            assert_eq!(first.cka_id, second.cka_id);
            assert_ne!(first.canary, second.canary);
            for key in [first, second] {
                again.open(&seal_config(key)).await.unwrap();
            }
            let listed = token.tool(&["--list-objects", "--type", "secrkey"]);
            assert_eq!(listed.matches("Secret Key Object").count(), 1, "{listed}");
        });
    });
}

#[test]
fn adopts_the_one_key_that_is_there() {
    isolated("adopts_the_one_key_that_is_there", |token| {
        token.make_aes("seal", "a1b2");
        token.make_aes("other", "a1b3");
        block_on(async {
            let mut config = token.config();
            config.generate_key = false;
            let hsm = Hsm::start(config).unwrap();
            let config = establish(&hsm).await.unwrap();
            let key = config.active().unwrap();
            assert_eq!(
                (key.origin, key.cka_id.as_str()),
                (KeyOrigin::Adopted, "a1b2")
            );
            round_trip(&hsm).await;
        });
    });
}

#[test]
fn no_key_is_its_own_error() {
    isolated("no_key_is_its_own_error", |token| {
        block_on(async {
            let mut config = token.config();
            config.generate_key = false;
            let hsm = Hsm::start(config).unwrap();
            hsm.connected().await;
            let error = hsm.plan_key().await.unwrap_err();
            assert!(matches!(error, HsmError::KeyMissing { .. }), "{error}");
            assert!(error.to_string().contains("generate_key"), "{error}");
            assert_eq!(hsm.health(), Health::Ok);
        });
    });
}

#[test]
fn two_keys_are_refused_before_and_after_init() {
    isolated("two_keys_are_refused_before_and_after_init", |token| {
        block_on(async {
            let hsm = Hsm::start(token.config()).unwrap();
            let config = establish(&hsm).await.unwrap();
            hsm.shutdown().await;
            token.make_aes("seal", "beef");

            let hsm = Hsm::start(token.config()).unwrap();
            hsm.connected().await;
            let is_duplicate =
                |error: &HsmError| matches!(error, HsmError::KeyDuplicate { count: 2, .. });
            let error = hsm.open(&config).await.unwrap_err();
            assert!(is_duplicate(&error), "{error}");
            let error = hsm.plan_key().await.unwrap_err();
            assert!(is_duplicate(&error), "{error}");
            assert!(error.to_string().contains("exactly one"), "{error}");
        });
    });
}

/// Two keys of one label are no riddle to an operator who says which by id.
#[test]
fn an_id_tells_keys_of_one_label_apart() {
    isolated("an_id_tells_keys_of_one_label_apart", |token| {
        token.make_aes("seal", "01");
        token.make_aes("seal", "02");
        block_on(async {
            let by_id = |id: &[u8]| HsmConfig {
                key_id: Some(id.to_vec()),
                ..token.config()
            };
            let hsm = Hsm::start(by_id(&[2])).unwrap();
            let config = establish(&hsm).await.unwrap();
            assert_eq!(config.active().unwrap().cka_id, "02");
            round_trip(&hsm).await;
            hsm.shutdown().await;
            let hsm = Hsm::start(by_id(&[3])).unwrap();
            hsm.connected().await;
            let intent = hsm.plan_key().await.unwrap();
            assert_eq!(
                (intent.origin, intent.cka_id.as_str()),
                (KeyOrigin::Generated, "03")
            );
        });
    });
}

#[test]
fn a_missing_and_a_foreign_key_are_told_apart() {
    isolated("a_missing_and_a_foreign_key_are_told_apart", |token| {
        block_on(async {
            let hsm = Hsm::start(token.config()).unwrap();
            let config = establish(&hsm).await.unwrap();
            let blob = round_trip(&hsm).await;
            hsm.shutdown().await;
            let id = &config.active().unwrap().cka_id;
            token.tool(&["--delete-object", "--type", "secrkey", "--label", "seal"]);

            let hsm = Hsm::start(token.config()).unwrap();
            hsm.connected().await;
            let error = hsm.open(&config).await.unwrap_err();
            assert!(matches!(error, HsmError::KeyMissing { .. }), "{error}");
            assert_eq!(
                hsm.health(),
                Health::Ok,
                "the HSM is well, and init may use it"
            );
            hsm.shutdown().await;

            // Same label, same id, other key.
            token.make_aes("seal", id);
            let hsm = Hsm::start(token.config()).unwrap();
            hsm.connected().await;
            let error = hsm.open(&config).await.unwrap_err();
            assert!(matches!(error, HsmError::KeyForeign { .. }), "{error}");
            let other = establish(&hsm).await.unwrap();
            assert_eq!(other.active().unwrap().cka_id, *id);
            assert_eq!(
                hsm.unwrap_core("core/x", &blob).await.unwrap_err(),
                HsmError::Rejected
            );
        });
    });
}

/// The operator's copies of one token hold one key: what one node wraps, another opens.
#[test]
fn copies_of_a_token_open_each_others_values() {
    isolated("copies_of_a_token_open_each_others_values", |token| {
        block_on(async {
            let hsm = Hsm::start(token.config()).unwrap();
            let config = establish(&hsm).await.unwrap();
            let blob = round_trip(&hsm).await;
            let wrapped = SealWrapper::new(hsm.clone())
                .wrap("kv/a", b"inner")
                .await
                .unwrap();
            hsm.shutdown().await;
            // The same process can only see one directory, so the copy takes its place.
            let copy = token.dir.join("copy");
            copy_dir(&token.tokens(), &copy);
            std::fs::remove_dir_all(token.tokens()).unwrap();
            std::fs::rename(&copy, token.tokens()).unwrap();
            let hsm = Hsm::start(token.config()).unwrap();
            hsm.connected().await;
            hsm.open(&config).await.unwrap();
            assert_eq!(&*hsm.unwrap_core("core/x", &blob).await.unwrap(), b"value");
            let wrapper = SealWrapper::new(hsm);
            assert_eq!(
                &wrapper.unwrap("kv/a", &wrapped).await.unwrap()[..],
                b"inner"
            );
        });
    });
}

/// A relabelled or re-numbered key is still the cluster's key if the canary says so.
#[test]
fn the_canary_decides_not_the_id() {
    isolated("the_canary_decides_not_the_id", |token| {
        block_on(async {
            let hsm = Hsm::start(token.config()).unwrap();
            let mut config = establish(&hsm).await.unwrap();
            let mut key = config.active().unwrap().clone();
            key.cka_id = "0102".to_owned();
            config = seal_config(key);
            hsm.open(&config).await.unwrap();
            round_trip(&hsm).await;
        });
    });
}

/// SoftHSM may never show a key that another process has made, until C_Finalize and C_Initialize: opening does that.
#[test]
fn a_key_made_by_another_process_is_found() {
    isolated("a_key_made_by_another_process_is_found", |token| {
        block_on(async {
            let hsm = Hsm::start(token.chaos_config()).unwrap();
            hsm.connected().await;
            let file = token.dir.join("config.json");
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .env("STRONGROOM_SEAL_TEST_OUTPUT", &file)
                .args(["another_process", "--exact"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            let config = SealConfig::from_json(&std::fs::read(&file).unwrap()).unwrap();
            hsm.open(&config).await.unwrap();
            round_trip(&hsm).await;
        });
    });
}

/// While one process logs in, SoftHSM's token is gone for the others: starting together works all the same.
#[test]
fn processes_that_start_together_all_get_in() {
    isolated("processes_that_start_together_all_get_in", |token| {
        let file = token.dir.join("config.json");
        let start = || {
            std::process::Command::new(std::env::current_exe().unwrap())
                .env("STRONGROOM_SEAL_TEST_OUTPUT", &file)
                .args(["another_process", "--exact"])
                .spawn()
                .unwrap()
        };
        assert!(start().wait().unwrap().success());
        for _ in 0..5 {
            let nodes = [start(), start(), start()];
            for mut node in nodes {
                assert!(node.wait().unwrap().success());
            }
        }
    });
}

/// The other process of the tests above; does nothing by itself.
#[test]
fn another_process() {
    let Some(file) = std::env::var_os("STRONGROOM_SEAL_TEST_OUTPUT") else {
        return;
    };
    let token = Token::at(std::path::Path::new(&file).parent().unwrap());
    if let Ok(json) = std::fs::read(&file) {
        return block_on(async {
            let hsm = Hsm::start(token.config()).unwrap();
            hsm.connected().await;
            hsm.open(&SealConfig::from_json(&json).unwrap())
                .await
                .unwrap();
            round_trip(&hsm).await;
            hsm.shutdown().await;
        });
    }
    block_on(async {
        let hsm = Hsm::start(token.config()).unwrap();
        let config = establish(&hsm).await.unwrap();
        std::fs::write(&file, config.to_json().unwrap()).unwrap();
    });
}

/// A key that turned up under the label after the intent was recorded is not taken for the one to be made.
#[test]
fn a_key_that_turned_up_during_init_is_not_taken() {
    isolated("a_key_that_turned_up_during_init_is_not_taken", |token| {
        block_on(async {
            let hsm = Hsm::start(token.config()).unwrap();
            hsm.connected().await;
            let intent = hsm.plan_key().await.unwrap();
            hsm.shutdown().await;
            token.make_aes("seal", "77");
            let hsm = Hsm::start(token.config()).unwrap();
            hsm.connected().await;
            let error = hsm.establish_key(&intent).await.unwrap_err();
            assert!(error.to_string().contains("id 77"), "{error}");
        });
    });
}

#[test]
fn an_unfinished_init_must_be_finished_as_it_began() {
    isolated("an_unfinished_init_must_be_finished_as_it_began", |token| {
        block_on(async {
            let hsm = Hsm::start(token.config()).unwrap();
            hsm.connected().await;
            let intent = hsm.plan_key().await.unwrap();
            for change in [
                |k: &mut SealKey| k.label = "other".to_owned(),
                |k: &mut SealKey| k.version = 0,
                |k: &mut SealKey| k.cka_id = "x".to_owned(),
            ] {
                let mut bad = intent.clone();
                change(&mut bad);
                let error = hsm.establish_key(&bad).await.unwrap_err();
                assert!(matches!(error, HsmError::Misconfigured { .. }), "{error}");
            }
            hsm.establish_key(&intent).await.unwrap();
        });
    });
}

/// SoftHSM takes only SHA-1: the message says which setting to change, and the init goes on with it changed.
#[test]
fn an_oaep_hash_that_is_not_known_can_be_corrected() {
    isolated("an_oaep_hash_that_is_not_known_can_be_corrected", |token| {
        block_on(async {
            let with = |hash| HsmConfig {
                mechanism: Some(Mechanism::RsaOaep),
                rsa_oaep_hash: hash,
                ..token.config()
            };
            let hsm = Hsm::start(with(OaepHash::Sha256)).unwrap();
            hsm.connected().await;
            let intent = hsm.plan_key().await.unwrap();
            let error = hsm.establish_key(&intent).await.unwrap_err();
            assert!(error.to_string().contains("rsa_oaep_hash"), "{error}");
            hsm.shutdown().await;
            let hsm = Hsm::start(with(OaepHash::Sha1)).unwrap();
            hsm.connected().await;
            let key = hsm.establish_key(&intent).await.unwrap();
            assert_eq!(key.oaep_hash, Some(OaepHash::Sha1));
            hsm.open(&seal_config(key)).await.unwrap();
        });
    });
}

async fn whole_suite(token: &Token, mechanism: Mechanism, core: u8, wrap: u8) {
    let mut config = token.config();
    config.mechanism = Some(mechanism);
    let hsm = Hsm::start(config).unwrap();
    let config = establish(&hsm).await.unwrap();
    assert_eq!(config.active().unwrap().mechanism, mechanism);
    let blob = round_trip(&hsm).await;
    assert_eq!(blob[4], core);
    let long = vec![9; 20_000];
    let blob = hsm.wrap_core("core/long", &long).await.unwrap();
    assert_eq!(blob[4], wrap, "long values get a data key");
    assert_eq!(
        &*hsm.unwrap_core("core/long", &blob).await.unwrap(),
        &long[..]
    );
    let wrapper = SealWrapper::new(hsm.clone());
    let wrapped = wrapper.wrap("kv/a", b"inner").await.unwrap();
    assert_eq!(wrapped[4], wrap);
    assert!(is_wrapped(&wrapped));
    wrapper.clear().await;
    assert_eq!(
        &wrapper.unwrap("kv/a", &wrapped).await.unwrap()[..],
        b"inner"
    );
    assert_eq!(
        wrapper.unwrap("kv/b", &wrapped).await,
        Err(HsmError::Rejected)
    );
    assert_eq!(
        hsm.unwrap_core("kv/a", &wrapped).await.unwrap_err(),
        HsmError::Rejected,
        "a wrapped value is no core parameter"
    );
    hsm.shutdown().await;
    let again = Hsm::start(token.config()).unwrap();
    again.connected().await;
    again.open(&config).await.unwrap();
    let wrapper = SealWrapper::new(again);
    assert_eq!(
        &wrapper.unwrap("kv/a", &wrapped).await.unwrap()[..],
        b"inner"
    );
}

#[test]
fn suite_gcm() {
    isolated("suite_gcm", |token| {
        block_on(whole_suite(&token, Mechanism::AesGcm, 4, 1));
    });
}

#[test]
fn suite_cbc_hmac() {
    isolated("suite_cbc_hmac", |token| {
        block_on(whole_suite(&token, Mechanism::AesCbcPadHmac, 5, 2));
        let listed = token.tool(&["--list-objects", "--type", "secrkey"]);
        assert!(listed.contains("seal-hmac"), "{listed}");
    });
}

#[test]
fn suite_oaep() {
    isolated("suite_oaep", |token| {
        block_on(whole_suite(&token, Mechanism::RsaOaep, 3, 3));
    });
}

#[test]
fn an_unknown_key_version_is_named() {
    isolated("an_unknown_key_version_is_named", |token| {
        block_on(async {
            let hsm = Hsm::start(token.config()).unwrap();
            establish(&hsm).await.unwrap();
            let mut blob = round_trip(&hsm).await;
            blob[8] = 9;
            assert_eq!(
                hsm.unwrap_core("core/x", &blob).await.unwrap_err(),
                HsmError::KeyUnknown { version: 9 }
            );
        });
    });
}
