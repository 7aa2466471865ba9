//! The dependency arrow, from the manifests.
//!
//! ```text
//! kernels <- runtime <- models <- tools        benches and targets see all, nobody sees them
//! ```
//!
//! Dependencies for tests and for single targets count like any other: a test that looks to the right is in the
//! wrong crate.

use crate::tree::File;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// The layers from left to right. The crates of `tools/` may use each other; cargo sees to it that they form no circle.
const LAYERS: [&str; 4] = ["kernels", "runtime", "models", "tools"];
/// They see all; nobody sees them.
const OUTSIDE: [&str; 2] = ["benches", "targets"];
/// What kernels may take from others: number formats and exact elementary functions.
const KERNELS_TAKE: [&str; 2] = ["half", "libm"];

struct Manifest<'a> {
    path: &'a str,
    layer: usize,
    outside: bool,
    name: String,
    /// Name of the package, and whether tests alone use it.
    dependencies: Vec<(String, bool)>,
}

/// One line for each fault.
pub(crate) fn check(files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut manifests = Vec::new();
    for file in files.iter().filter(|f| f.path.ends_with("/Cargo.toml")) {
        match manifest(file) {
            Ok(m) => manifests.push(m),
            Err(why) => faults.push(format!("{}: {why}", file.path)),
        }
    }
    let by_name: BTreeMap<&str, &Manifest<'_>> = manifests.iter().map(|m| (m.name.as_str(), m)).collect();
    for m in &manifests {
        for (name, dev) in &m.dependencies {
            match by_name.get(name.as_str()) {
                Some(d) if d.outside => {
                    faults.push(format!("{}: uses {name}; nothing may use benches or targets", m.path));
                }
                Some(d) if !m.outside && (d.layer > m.layer || (d.layer == m.layer && m.layer < 3)) => {
                    faults.push(format!(
                        "{}: {} uses {name}, which is not to its left ({})",
                        m.path,
                        m.name,
                        LAYERS.join(" <- ")
                    ));
                }
                None if m.layer == 0 && !dev && !KERNELS_TAKE.contains(&name.as_str()) => {
                    let may = KERNELS_TAKE.join(" and ");
                    faults.push(format!("{}: kernels may use {may}, not {name}", m.path));
                }
                _ => {}
            }
        }
    }
    faults
}

fn manifest(file: &File) -> Result<Manifest<'_>, String> {
    let table: Table = file.text.parse().map_err(|e| format!("no TOML: {e}"))?;
    let top = file.path.split('/').next().unwrap_or_default();
    let layer = LAYERS.iter().position(|l| *l == top);
    let outside = OUTSIDE.contains(&top);
    if layer.is_none() && !outside {
        let rooms = [&LAYERS[..], &OUTSIDE[..]].concat().join(", ");
        return Err(format!("a crate in none of the rooms ({rooms})"));
    }
    let name = table.get("package").and_then(|p| p.get("name")).and_then(Value::as_str);
    let mut dependencies = Vec::new();
    collect(&table, &mut dependencies);
    for target in table.get("target").and_then(Value::as_table).into_iter().flatten() {
        target.1.as_table().into_iter().for_each(|t| collect(t, &mut dependencies));
    }
    Ok(Manifest {
        path: &file.path,
        layer: layer.unwrap_or(LAYERS.len()),
        outside,
        name: name.ok_or("no package.name")?.to_owned(),
        dependencies,
    })
}

/// The three tables of dependencies; `package = ` undoes a renaming.
fn collect(table: &Table, to: &mut Vec<(String, bool)>) {
    for (key, dev) in [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)] {
        for (name, value) in table.get(key).and_then(Value::as_table).into_iter().flatten() {
            let real = value.get("package").and_then(Value::as_str).unwrap_or(name);
            to.push((real.to_owned(), dev));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crates(list: &[(&str, &str, &str)]) -> Vec<String> {
        let file = |(folder, name, rest): &(&str, &str, &str)| File {
            path: format!("{folder}/Cargo.toml"),
            text: format!("[package]\nname = '{name}'\n{rest}\n"),
        };
        check(&list.iter().map(file).collect::<Vec<_>>())
    }

    #[test]
    fn the_arrow_as_it_is_drawn() {
        let all = [
            ("kernels", "k", "[dependencies]\nhalf = '2'\n[dev-dependencies]\nproptest = '1'"),
            ("runtime", "r", "[dependencies]\nk.workspace = true\nrayon = '1'"),
            ("models", "m", "[dependencies]\nk.workspace = true\nr.workspace = true"),
            ("tools/quant", "q", "[dependencies]\nm.workspace = true"),
            ("tools/cli", "c", "[dependencies]\nq.workspace = true"),
            ("benches", "b", "[dependencies]\nc.workspace = true"),
            ("targets/capi", "a", "[dependencies]\nm.workspace = true"),
        ];
        assert_eq!(crates(&all), [""; 0]);
    }

    #[test]
    fn each_way_of_looking_right_is_found() {
        for rest in [
            "[dependencies]\nm.workspace = true",
            "[dependencies]\nother = { package = 'm', version = '1' }",
            "[dev-dependencies]\nm.workspace = true",
            "[build-dependencies]\nm = '1'",
            "[target.'cfg(unix)'.dependencies]\nm = '1'",
        ] {
            let faults = crates(&[("models", "m", ""), ("runtime", "r", rest)]);
            assert!(faults.len() == 1 && faults[0].contains("r uses m"), "{rest}: {faults:?}");
        }
    }

    #[test]
    fn what_else_is_refused() {
        for (list, why) in [
            (&[("benches", "b", ""), ("tools/cli", "c", "[dependencies]\nb = '1'")][..], "nothing may use"),
            (&[("kernels", "k", "[dependencies]\nrayon = '1'")], "not rayon"),
            (&[("extras", "x", "")], "none of the rooms"),
            (&[("kernels", "k", "[dependencies")], "no TOML"),
        ] {
            let faults = crates(list);
            assert!(faults.len() == 1 && faults[0].contains(why), "{faults:?}");
        }
    }
}
