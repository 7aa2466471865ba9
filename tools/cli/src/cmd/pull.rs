//! `lutite pull`: fetch a model and print the path of its file or folder.

use crate::args::PullArgs;
use crate::pull::Named;
use crate::ui::{self, Answer};
use crate::{hub, interrupt, places, pull};

pub(crate) fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let pulled = match Named::find(&args.name)? {
        Named::Catalog(entry) => {
            let pulled = pull::ensure(entry, &places::models()?, interrupt::flag())?;
            let how = if pulled.fetched { "checksum right" } else { "already here" };
            ui::note(format_args!(
                "{}: {}, {}, {how}",
                entry.name,
                ui::megabytes(entry.size_bytes),
                entry.licence
            ));
            pulled
        }
        Named::Hub(name) => {
            let pulled = hub::ensure(&name, true, interrupt::flag(), None)?;
            ui::note(format_args!(
                "{name}: {}",
                if pulled.fetched { "checksums right" } else { "already here" }
            ));
            pulled
        }
        Named::Path(path) => {
            anyhow::bail!(
                "there is a file or folder {0}; if a hub's model is meant, pull {1}{0}",
                path.display(),
                hub::PREFIX
            )
        }
    };
    Answer::stdout().print(&format!("{}\n", pulled.path.display()))
}
