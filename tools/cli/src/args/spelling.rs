//! llama.cpp's flags of one dash and several letters, which clap has no notion of: it reads `-ctk f16` as `-c tk`.

use std::ffi::OsString;

const LONG_FORMS: &[(&str, &str)] = &[
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-hf", "--hf-repo"),
    ("-hfr", "--hf-repo"),
    ("-sys", "--system"),
];

/// Replaces these flags, with or without `=VALUE`, by their long forms.
///
/// What follows `--` is left as it is. A *value* that is exactly such a flag would be replaced too; no one is a prompt.
pub(super) fn long_forms(argv: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut verbatim = false;
    let long_form = |arg: OsString| {
        verbatim |= arg == "--";
        let Some(text) = arg.to_str().filter(|_| !verbatim) else { return arg };
        let (flag, value) = text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value)));
        let Some((_, long)) = LONG_FORMS.iter().find(|(short, _)| *short == flag) else { return arg };
        value.map_or_else(|| (*long).into(), |value| format!("{long}={value}").into())
    };
    argv.into_iter().map(long_form).collect()
}
