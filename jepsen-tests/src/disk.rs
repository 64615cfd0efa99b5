//! Disks that lose power: a file system of its own for each node, in a file, mounted through the loop device.
//!
//! [`power_off`] tells the file system to go down without writing its journal: what was not synced is gone after the next
//! mount, files and renames too, as when the machine loses power. `kill -9` cannot find a missing sync: the kernel writes
//! what a dead process has left behind.
//!
//! Needs root, loop devices, e2fsprogs and xfsprogs.
//!
//! Source: `ioctl(EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH)`, `XFS_IOC_GOINGDOWN`; the same number for both.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use crate::machine::{program, wait_for};

/// Size of an image, bytes; it holds holes only until something is written. XFS wants 300 MB at least.
const SIZE: u64 = 400 << 20;
/// Takes the file systems down at once. Python, because this crate allows itself no `unsafe`.
const GOING_DOWN: &str = "
import fcntl, os, struct, sys
FS_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
for fd in [os.open(path, os.O_RDONLY) for path in sys.argv[1:]]:
    fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack('I', NO_LOG_FLUSH))
";

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4, journal and all, with Debian's defaults.
    Ext4,
    /// XFS, with Debian's defaults.
    Xfs,
}

/// One file system in a file, mounted; unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes the file system in `dir` and mounts it there.
    ///
    /// # Panics
    /// If this machine or user cannot do that, with what is missing.
    #[must_use]
    pub fn make(dir: &Path, kind: Kind) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "disks that lose power are mounted images, and mounting needs root"
        );
        fs::create_dir_all(dir).expect("directory of a disk");
        let disk = Self {
            image: dir.join("image"),
            mount: dir.join("mount"),
        };
        fs::create_dir_all(&disk.mount).expect("mount point");
        let image = fs::File::create(&disk.image).expect("image");
        image.set_len(SIZE).expect("size of the image");
        let mut make = match kind {
            Kind::Ext4 => {
                let mut make = Command::new(program("mkfs.ext4", "e2fsprogs"));
                // No thread of the kernel's that goes on initialising it in the background.
                make.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
                make
            }
            Kind::Xfs => {
                let mut make = Command::new(program("mkfs.xfs", "xfsprogs"));
                make.args(["-q", "-f"]);
                make
            }
        };
        must(make.arg(&disk.image));
        disk.mount();
        disk
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Mounts it; the file system recovers as after any crash.
    pub fn mount(&self) {
        let mut mount = Command::new(program("mount", "mount"));
        must(mount.args(["-o", "loop"]).arg(&self.image).arg(&self.mount));
    }

    /// Writes everything that is on its way to it.
    pub fn sync(&self) {
        let mut sync = Command::new(program("sync", "coreutils"));
        must(sync.arg("-f").arg(&self.mount));
    }

    /// Unmounts it; nobody uses it any more, but the kernel may need a moment to see that.
    pub fn unmount(&self) {
        wait_for("a disk to be let go", Duration::from_secs(10), || {
            self.try_unmount().then_some(())
        });
    }

    fn try_unmount(&self) -> bool {
        let mut unmount = Command::new(program("umount", "mount"));
        let unmount = unmount.arg(&self.mount).stderr(Stdio::null());
        unmount.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for _ in 0..40 {
            if self.try_unmount() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // As good as it gets: gone as soon as the last process has let go.
        let mut lazily = Command::new(program("umount", "mount"));
        let _ = lazily
            .arg("-l")
            .arg(&self.mount)
            .stderr(Stdio::null())
            .status();
    }
}

/// Power off, for all `disks` at once: what is not on them by now never comes. Until they are mounted again they answer
/// everything with an error.
///
/// # Panics
/// If a file system does not go down.
pub fn power_off(disks: &[&Disk]) {
    let mut down = Command::new(program("python3", "python3"));
    must(
        down.args(["-c", GOING_DOWN])
            .args(disks.iter().map(|disk| disk.path())),
    );
}

fn must(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A library that makes every sync a lie, for `LD_PRELOAD`: what a server that forgot to sync looks like.
///
/// # Panics
/// If there is no C compiler.
#[must_use]
pub fn lying_library(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("nosync.c"), dir.join("nosync.so"));
    let text = "int fsync(int f) { return 0; } int fdatasync(int f) { return 0; }\n\
                int sync_file_range(int f, long o, long n, unsigned g) { return 0; } int syncfs(int f) { return 0; }\n";
    fs::write(&source, text).expect("source of a library");
    let mut compile = Command::new(program("cc", "gcc"));
    compile
        .args(["-shared", "-fPIC", "-w", "-o"])
        .arg(&library)
        .arg(&source);
    must(&mut compile);
    library
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// What is synced stays, what is not synced goes: else the runs on these disks would prove nothing.
    #[test]
    fn a_disk_without_power_keeps_what_was_synced_and_nothing_else() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("NOT TESTED: mounting needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for kind in [Kind::Ext4, Kind::Xfs] {
            let disk = Disk::make(&dir.path().join(format!("{kind:?}")), kind);
            for (name, sync) in [("synced", true), ("not-synced", false)] {
                let mut file = fs::File::create(disk.path().join(name)).unwrap();
                file.write_all(b"something").unwrap();
                if sync {
                    file.sync_all().unwrap();
                }
            }
            let mut file = fs::File::options()
                .append(true)
                .open(disk.path().join("synced"))
                .unwrap();
            file.write_all(b" more").unwrap();
            drop(file);
            power_off(&[&disk]);
            assert!(fs::write(disk.path().join("later"), b"x").is_err());
            disk.unmount();
            disk.mount();
            assert_eq!(fs::read(disk.path().join("synced")).unwrap(), b"something");
            assert!(!disk.path().join("not-synced").exists(), "{kind:?}");
        }
    }
}
