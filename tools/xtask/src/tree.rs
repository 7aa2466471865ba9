//! The files of the repository, whether or not git is there to list them.

use std::fs;
use std::io;
use std::path::Path;

/// A file; the text is empty where it is no UTF-8.
#[derive(Debug)]
pub(crate) struct File {
    /// From the repository's root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Larger files are data, of which only the name counts.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// All files but hidden and built ones, sorted by path.
pub(crate) fn read(root: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    walk(root, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<File>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "target" || name.starts_with("target-") {
            continue;
        }
        let path = format!("{prefix}{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), &format!("{path}/"), files)?;
        } else if kind.is_file() {
            let text = if entry.metadata()?.len() > MAX_TEXT_BYTES {
                String::new()
            } else {
                String::from_utf8(fs::read(entry.path())?).unwrap_or_default()
            };
            files.push(File { path, text });
        }
    }
    Ok(())
}
