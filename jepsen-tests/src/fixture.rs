//! Data directories of earlier versions, kept so that every later version can be shown to open them.
//!
//! An archive (`.tar.gz`) holds the data directory of a single node as `kill -9` left it, the token of its HSM, and
//! `fixture.json`: the root token, the recovery keys, and every value that was acknowledged. Nothing in it protects
//! anything.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Options, write},
    machine::program,
};

/// Makes `archive` with the server `binary`.
///
/// # Panics
/// If anything goes wrong.
pub fn make(binary: &Path, archive: &Path) {
    let mut cluster = Cluster::prepare(&options(binary));
    cluster.start_node(1);
    let init = cluster.init();
    cluster.wait_all();
    cluster.mount_kv("plain", false);
    cluster.mount_kv("wrapped", true);
    let mut values = BTreeMap::new();
    let put =
        |cluster: &Cluster, values: &mut BTreeMap<String, String>, range: std::ops::Range<u32>| {
            for number in range {
                let mount = if number.is_multiple_of(4) {
                    "wrapped"
                } else {
                    "plain"
                };
                // Some are written more than once.
                let (path, value) = (
                    format!("{mount}/folder/{}", number % 30),
                    format!("value-{number}"),
                );
                write(&cluster.client(1), &path, &value);
                values.insert(path, value);
            }
        };
    put(&cluster, &mut values, 0..40);
    // In table files from here on.
    assert!(cluster.terminate(1).success());
    cluster.start_node(1);
    cluster.wait_all();
    put(&cluster, &mut values, 40..50);
    let gone = "plain/folder/1";
    let _ = cluster.client(1).delete(gone).expect(204);
    values.remove(gone);
    cluster.kill9(1);

    let dir = cluster.dir().join("fixture");
    fs::create_dir_all(&dir).expect("directory of the fixture");
    fs::rename(cluster.data_dir(1), dir.join("data")).expect("data directory");
    let _ = cluster.golden().copy_to(&dir.join("hsm"));
    let about = json!({
        "root_token": init.root_token,
        "recovery_keys": init.recovery_keys,
        "values": values,
        "deleted": [gone],
    });
    fs::write(dir.join("fixture.json"), format!("{about:#}\n")).expect("fixture.json");
    let mut pack = Command::new(program("tar", "tar"));
    // RocksDB's notes for people are of no use to a database.
    pack.args([
        "--exclude=LOG",
        "--exclude=LOG.old*",
        "--exclude=raft.lock",
        "--exclude=softhsm2.conf",
    ]);
    pack.args([
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--mtime=@0",
        "-czf",
    ]);
    let pack = pack
        .arg(archive)
        .arg("-C")
        .arg(&dir)
        .args(["data", "hsm", "fixture.json"]);
    assert!(pack.status().expect("tar").success());
}

/// A cluster whose single node has the data and the token of `archive`; started, and unsealed. With what the archive says
/// about itself.
///
/// # Panics
/// If it does not come up.
#[must_use]
pub fn start(binary: &Path, archive: &Path) -> (Cluster, Value) {
    let mut cluster = Cluster::prepare(&options(binary));
    let dir = cluster.dir().join("fixture");
    fs::create_dir_all(&dir).expect("directory of the fixture");
    let mut unpack = Command::new(program("tar", "tar"));
    let unpack = unpack.arg("-xzf").arg(archive).arg("-C").arg(&dir);
    assert!(unpack.status().expect("tar").success());
    cluster.take_over(1, &dir.join("data"), &dir.join("hsm"));
    let about = fs::read(dir.join("fixture.json")).expect("fixture.json");
    let about: Value = serde_json::from_slice(&about).expect("fixture.json");
    let _ = cluster.keep_init(&about);
    cluster.start_node(1);
    cluster.wait_unsealed(1);
    cluster.wait_all();
    (cluster, about)
}

fn options(binary: &Path) -> Options {
    Options {
        binary: binary.to_owned(),
        nodes: 1,
        key_made_before: true,
    }
}
