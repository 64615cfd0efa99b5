//! Data written by earlier versions opens, and everything acknowledged is there.

use std::path::Path;

use strongroom_jepsen_tests::{
    cluster::{read, write},
    fixture,
};

use crate::BINARY;

#[test]
fn data_of_every_earlier_version_opens() {
    let dir = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("tests/fixtures");
    let mut archives: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gz"))
        .collect();
    archives.sort();
    assert!(!archives.is_empty(), "no fixtures in {}", dir.display());
    for archive in archives {
        println!("{}", archive.display());
        let (mut cluster, about) = fixture::start(Path::new(BINARY), &archive);
        let check = |client| {
            for (path, value) in about["values"].as_object().unwrap() {
                assert_eq!(read(&client, path).as_deref(), value.as_str(), "{path}");
            }
            for path in about["deleted"].as_array().unwrap() {
                assert_eq!(read(&client, path.as_str().unwrap()), None, "{path}");
            }
        };
        check(cluster.client(1));
        write(&cluster.client(1), "plain/new", "written later");
        assert!(cluster.terminate(1).success());
        cluster.start_node(1);
        cluster.wait_unsealed(1);
        check(cluster.client(1));
        assert_eq!(
            read(&cluster.client(1), "plain/new").as_deref(),
            Some("written later")
        );
        cluster.assert_no_panics();
    }
}
