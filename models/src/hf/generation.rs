//! `generation_config.json`: how its authors would sample, and which tokens end an answer.

use super::{ids, json_fault};
use crate::error::Result;
use crate::sampling::keys;
use lutite_runtime::json::Object;
use lutite_runtime::store::GgufWriter;

const FILE: &str = "generation_config.json";

/// Writes the sampling defaults; tokens that end an answer go in front of `ends`.
///
/// `do_sample: false` is greedy decoding, whatever temperature stands beside it, as transformers has it. Where it is
/// missing only what is said is taken: transformers would be greedy then too, but the people who leave it out (and
/// llama.cpp, which never looks) expect their program's own default.
pub(super) fn write(text: &str, w: &mut GgufWriter, ends: &mut Vec<u32>) -> Result<()> {
    let o = Object::parse(text).map_err(json_fault(FILE))?;
    let number = |key| o.get::<f64>(key).map_err(json_fault(FILE));
    let greedy = o.get::<bool>("do_sample").map_err(json_fault(FILE))? == Some(false);
    if let Some(x) = if greedy { Some(0.0) } else { number("temperature")? } {
        w.set(keys::TEMP, x as f32)?;
    }
    if let Some(k) = o.get::<i32>("top_k").map_err(json_fault(FILE))? {
        w.set(keys::TOP_K, k)?;
    }
    for (name, key) in [("top_p", keys::TOP_P), ("min_p", keys::MIN_P)] {
        if let Some(p) = number(name)? {
            w.set(key, p as f32)?;
        }
    }
    if let Some(x) = number("repetition_penalty")?.filter(|&x| x != 1.0) {
        w.set(keys::PENALTY_REPEAT, x as f32)?;
        // transformers looks back on everything.
        w.set(keys::PENALTY_LAST_N, -1i32)?;
    }
    let own = ids(&o, "eos_token_id").map_err(json_fault(FILE))?;
    ends.splice(0..0, own);
    Ok(())
}
