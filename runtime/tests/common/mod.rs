//! Makes `/proc` and `/sys` folders of machines that are not here.

use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A folder with the given files; the names are absolute, as on the machine.
pub(crate) fn tree(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().expect("a temporary folder");
    for (name, text) in files {
        add(dir.path(), name, text);
    }
    dir
}

/// One more file.
pub(crate) fn add(root: &Path, name: &str, text: &str) {
    let path = root.join(name.trim_start_matches('/'));
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    // The kernel ends its files with a newline.
    fs::write(path, format!("{text}\n")).expect("a file");
}
