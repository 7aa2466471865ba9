//! What cannot be exported, and where to.

use super::packed::packed;
use super::places::Tmpfs;
use super::stop::Running;
use super::*;

/// What is in the folder, but for what was there before.
fn made(here: &Here) -> Vec<String> {
    let known = ["tiny.gguf", "packed.gguf", "large.gguf"];
    listed(here.dir.path()).into_iter().filter(|n| !known.contains(&n.as_str())).collect()
}

fn here() -> Here {
    let here = Here::new();
    here.write("packed.gguf", &packed());
    here
}

#[test]
fn sources_and_targets_that_are_none() {
    let here = here();
    let export = |source: &str, out: &str| fails(&mut here.bare(&["export", source, out]));
    holds(&export("none.gguf", "out.gguf"), &["no model file none.gguf, and no such name in the catalog"]);
    let message = export("packed.gguf", "no/out.gguf");
    holds(&message, &["cannot write no/out.gguf; name another place", "cannot create ", "check the path"]);
    std::fs::create_dir(here.path("folder")).unwrap();
    holds(&export("packed.gguf", "folder"), &["cannot write folder; name another place", "cannot replace "]);
    let mut file = packed();
    let at = file.len() - 200;
    file[at] ^= 1;
    here.write("packed.gguf", &file);
    let message = export("packed.gguf", "out.gguf");
    holds(&message, &["cannot load packed.gguf", "does not match its checksum", "pack its source again"]);
    assert_eq!(made(&here), ["folder"]);
    for args in [&["export", "packed.gguf"][..], &["export", "packed.gguf", "out.gguf", "--type", "q8_0"]] {
        let (code, _, usage) = said(&mut here.bare(args));
        assert_eq!(code, Some(2), "{usage}");
    }
}

/// As `quantize`: what had the name is there until the new file is whole, even if it is the source itself.
#[test]
fn an_older_file_is_replaced() {
    let here = here();
    let export = |source: &str, out: &str| {
        assert_eq!(said(&mut here.bare(&["export", source, out])).0, Some(0));
        std::fs::read(here.path(out)).unwrap()
    };
    let whole = export("packed.gguf", "out.gguf");
    assert_eq!(export("packed.gguf", "out.gguf"), whole);
    assert_eq!(export("packed.gguf", "packed.gguf"), whole);
    assert_eq!(made(&here), ["out.gguf"]);
}

#[test]
fn weights_beyond_f16() {
    let here = Here::new();
    let source = edit(&tiny(), &[], |all| {
        let t = all.iter_mut().find(|t| t.0 == "blk.2.attn_k.weight").unwrap();
        // Two blocks to a row. The second one of row 3: a scale of 2^15, and one code that is not 0.
        let block = &mut t.3[(3 * 2 + 1) * 34..][..34];
        block.fill(0);
        block[1] = 0x78;
        block[2 + 5] = 3;
    });
    here.write("large.gguf", &source);
    assert_eq!(said(&mut here.bare(&["quantize", "large.gguf", "-o", "packed.gguf"])).0, Some(0));
    let message = fails(&mut here.bare(&["export", "packed.gguf", "out.gguf"]));
    let place = "tensor \"blk.2.attn_k.weight\": row 3, column 37 is 98304, beyond the 65504 of f16";
    holds(&message, &["cannot export packed.gguf", place, "use --type f32"]);
    assert_eq!(made(&here), [""; 0]);
    let done = said(&mut here.bare(&["export", "packed.gguf", "out.gguf", "--type", "f32"]));
    assert_eq!(done.0, Some(0), "{}", done.2);
}

#[test]
fn a_disk_without_room() {
    let here = here();
    let Some(disk) = Tmpfs::mount(here.path("disk"), "size=64k") else { return };
    let message = fails(&mut here.bare(&["export", "packed.gguf", "disk/out.gguf"]));
    holds(
        &message,
        &["cannot write disk/out.gguf; name another place", "no room for ", " bytes (No space left"],
    );
    assert_eq!(listed(&disk.0), [""; 0]);
}

#[test]
fn control_c_leaves_nothing() {
    let here = Here::new();
    here.write("large.gguf", &large());
    assert_eq!(said(&mut here.bare(&["quantize", "large.gguf", "-o", "packed.gguf"])).0, Some(0));
    let mut running = Running::of(&mut here.bare(&["export", "packed.gguf", "out.gguf", "--type", "f32"]));
    running.wait_for(here.dir.path(), ".part-");
    running.signal("INT");
    let (code, stdout, stderr) = running.end();
    assert_eq!((code, stdout.as_str()), (Some(130), ""), "{stderr}");
    assert!(!stderr.contains("error"), "{stderr}");
    assert_eq!(made(&here), [""; 0]);
}
