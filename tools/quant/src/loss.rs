//! What fitting lost, as the packed file tells it: keys `lutite.loss.*`.
//!
//! The loss is measured on the finished tensors, and the metadata comes before them in the file: room is made for the
//! figures first, and they are patched in last. Files of exact weights have no such keys.

use crate::error::Result;
use lutite_runtime::store::{Gguf, GgufStream, GgufWriter};
use std::fmt;

const KL_KEY: &str = "lutite.loss.kl";
const KL_ERROR_KEY: &str = "lutite.loss.kl_error";
const SAME_TOP_KEY: &str = "lutite.loss.same_top";
const TOKENS_KEY: &str = "lutite.loss.tokens";

/// How far a packed model's predictions are from its source's, on tokens that were sampled from the source.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Mean KL divergence of the packed model's distribution to the source's, in nats.
    pub kl: f32,
    /// Its standard error.
    pub kl_error: f32,
    /// Share of positions at which both have the same best token, 0 to 1.
    pub same_top: f32,
    /// Positions that were compared; 0 if nothing was measured.
    pub tokens: u32,
}

impl Loss {
    /// The loss that a file tells; `None` where all weights are exact, or the file is older than these keys.
    ///
    /// # Errors
    /// Keys of another type.
    pub fn read(gguf: &Gguf<'_>) -> Result<Option<Loss>> {
        let Some(tokens) = gguf.u32(TOKENS_KEY)? else { return Ok(None) };
        let number = |key| Ok::<_, crate::Error>(gguf.f32(key)?.unwrap_or(f32::NAN));
        Ok(Some(Loss {
            kl: number(KL_KEY)?,
            kl_error: number(KL_ERROR_KEY)?,
            same_top: number(SAME_TOP_KEY)?,
            tokens,
        }))
    }

    /// Makes room for the figures.
    pub(crate) fn announce(w: &mut GgufWriter) -> Result<()> {
        for key in [KL_KEY, KL_ERROR_KEY, SAME_TOP_KEY] {
            w.set(key, 0f32)?;
        }
        w.set(TOKENS_KEY, 0u32)?;
        Ok(())
    }

    /// Writes them there.
    pub(crate) fn store(&self, out: &mut GgufStream) -> Result<()> {
        out.patch(KL_KEY, self.kl)?;
        out.patch(KL_ERROR_KEY, self.kl_error)?;
        out.patch(SAME_TOP_KEY, self.same_top)?;
        out.patch(TOKENS_KEY, self.tokens)?;
        Ok(())
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tokens == 0 {
            return f.write_str("loss not measured");
        }
        let (kl, error, same, tokens) = (self.kl, self.kl_error, 100.0 * self.same_top, self.tokens);
        write!(
            f,
            "KL {kl:.4} ± {error:.4}, same top token {same:.1} % over {tokens} tokens sampled from the source"
        )
    }
}
