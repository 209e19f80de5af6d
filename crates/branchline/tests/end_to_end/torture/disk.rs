//! A disk that can be full: a small file system in memory, where the system lets us mount one.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::office::skipped;

/// A mounted file system of a few megabytes.
pub struct SmallDisk {
    pub path: PathBuf,
}

impl SmallDisk {
    /// Mounts one below the build's folder; none, and a word about it, where that is not allowed.
    pub fn mount(megabytes: u64) -> Option<Self> {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let options = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "branchline-test"])
            .arg(&path)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { path }),
            refused => {
                skipped(&format!(
                    "no disk is filled, since none can be mounted here: {refused:?}"
                ));
                drop(std::fs::remove_dir(&path));
                None
            }
        }
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let mut ballast = std::fs::File::create(self.ballast()).unwrap();
        let mut zeros = std::io::repeat(0);
        let filled = std::io::copy(&mut zeros, &mut ballast);
        assert!(filled.is_err(), "a small disk has an end");
    }

    /// Makes room again.
    pub fn empty(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.path).status();
        if unmounted.is_ok_and(|status| status.success()) {
            drop(std::fs::remove_dir(&self.path));
        }
    }
}
