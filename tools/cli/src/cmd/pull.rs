//! `lutite pull`: fetch a model of the catalog.

use crate::args::PullArgs;
use crate::ui::{self, Answer};
use crate::{interrupt, places, pull};

/// Fetches the model and prints the path of its file.
pub(crate) fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let entry = args.entry;
    let pulled = pull::ensure(entry, &places::models()?, interrupt::flag())?;
    let size = ui::megabytes(entry.size_bytes);
    if pulled.fetched {
        ui::note(format_args!("{}: {size}, {}, checksum right", entry.name, entry.licence));
    } else {
        ui::note(format_args!("{}: already here, {size}, {}", entry.name, entry.licence));
    }
    Answer::stdout().print(&format!("{}\n", pulled.path.display()))
}
