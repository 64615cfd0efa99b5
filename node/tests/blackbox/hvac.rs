//! An application in Python with hvac, against a leader and a follower.

use std::path::Path;

use strongroom_jepsen_tests::{Cluster, logs::STARTING};

use crate::BINARY;

#[test]
fn an_application_with_hvac() {
    let mut cluster = Cluster::initialized(3, BINARY);
    let script = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
        .join("tests/blackbox/hvac_application.py");
    for node in [cluster.leader(), cluster.follower()] {
        let done = cluster.python(node, &script).ok();
        assert_eq!(done.stdout.trim(), "hvac is content", "{}", done.all());
    }
    cluster.assert_logs_clean(&[STARTING]);
}
