//! Room on disks.

use std::path::Path;

/// Bytes that this user can still write to the file system of `path`, or of its nearest ancestor that exists;
/// `None` where the system does not tell.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|p| p.exists())?;
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(there).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = there;
        None
    }
}
