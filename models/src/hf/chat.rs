//! The chat template, in the places where transformers looks for it, in its order.

use super::{Folder, fault, json_fault, text_of};
use crate::error::Result;
use lutite_runtime::json::{Object, Text};

/// The template's source, if the folder has one.
pub(super) fn template(folder: &mut Folder<'_>) -> Result<Option<String>> {
    const JINJA: &str = "chat_template.jinja";
    if let Some(bytes) = folder.read(JINJA)? {
        return Ok(Some(text_of(JINJA, &bytes)?.to_owned()));
    }
    for file in ["chat_template.json", "tokenizer_config.json"] {
        if let Some(bytes) = folder.read(file)? {
            let o = Object::parse(text_of(file, &bytes)?).map_err(json_fault(file))?;
            if let Some(template) = field(file, &o)? {
                return Ok(Some(template));
            }
        }
    }
    Ok(None)
}

/// The field `chat_template`: a text, or a list of templates with names, of which `default` is the one for chat.
fn field(file: &str, o: &Object<'_>) -> Result<Option<String>> {
    let key = "chat_template";
    if let Ok(one) = o.get::<Text<'_>>(key) {
        return Ok(one.map(|text| text.0.into_owned()));
    }
    let list = o.get::<Vec<Object<'_>>>(key).map_err(json_fault(file))?.unwrap_or_default();
    let mut names = Vec::new();
    for entry in &list {
        let get = |name| entry.get::<Text<'_>>(name).map_err(|e| json_fault(file)(e.within(key)));
        match (get("name")?, get("template")?) {
            (Some(name), Some(template)) if &*name == "default" => return Ok(Some(template.0.into_owned())),
            (name, _) => names.push(name.unwrap_or_default().chars().take(40).collect::<String>()),
        }
    }
    names.truncate(10);
    Err(fault(
        file,
        format!("{key}: none of its templates is called \"default\" (there are: {})", names.join(", ")),
    ))
}
