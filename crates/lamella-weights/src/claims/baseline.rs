//! The baselines of claims: `rtn` and `gptq` in the smallest forms that are no smaller than a system's file.

use super::{ClaimBench, Error, Measured};

/// The settings of GPTQ that a careful user would try.
pub const GPTQ_SETTINGS: [&str; 6] = [
    "order=natural, groups=static",
    "order=natural, groups=dynamic",
    "order=activation, groups=static",
    "order=activation, groups=dynamic",
    "order=natural, groups=dynamic, sequential=true",
    "order=activation, groups=static, sequential=true",
];

/// GPTQ at each of its settings, all in files no smaller than was asked.
#[derive(Debug, Clone)]
pub struct GptqBaseline {
    /// One entry a setting.
    pub settings: Vec<Measured>,
}

impl GptqBaseline {
    fn least(&self, loss: impl Fn(&Measured) -> f64) -> &Measured {
        let mut best = &self.settings[0];
        for candidate in &self.settings[1..] {
            if loss(candidate) < loss(best) {
                best = candidate;
            }
        }
        best
    }
    /// The setting with the least KL divergence.
    pub fn by_kl(&self) -> &Measured {
        self.least(|measured| measured.kl)
    }
    /// The setting with the least mean error of the linears.
    pub fn by_error(&self) -> &Measured {
        self.least(Measured::mean_error)
    }
}

impl ClaimBench {
    /// Bytes of the linears under a recipe whose sizes follow from shapes.
    ///
    /// # Errors
    /// A recipe without a codec.
    pub fn stored_bytes(&self, recipe: &str) -> Result<u64, Error> {
        let codec = self.catalogue.codec(&recipe.parse()?)?;
        Ok(self.originals.iter().filter_map(|array| codec.stored_bytes(&array.spec)).sum())
    }

    /// GPTQ at every setting, each in its smallest form whose file is no smaller than the system's. Where several bits
    /// and groups come to nearly the same size, the one with most bits: it has the least loss.
    ///
    /// # Errors
    /// As [`ClaimBench::measure`].
    pub fn gptq(&self, seed: usize, system: &Measured) -> Result<GptqBaseline, Error> {
        self.gptq_at(seed, system, &GPTQ_SETTINGS)
    }

    /// [`ClaimBench::gptq`] at some settings only.
    ///
    /// # Errors
    /// As [`ClaimBench::measure`].
    pub fn gptq_at(&self, seed: usize, system: &Measured, settings: &[&str]) -> Result<GptqBaseline, Error> {
        let settings = settings.iter().map(|setting| {
            let mut least = system.linear_bytes;
            loop {
                let measured = self.measure(seed, &self.next_form("gptq", setting, least)?)?;
                if measured.file_bytes >= system.file_bytes && measured.linear_bytes >= system.linear_bytes {
                    return Ok(measured);
                }
                least = least.max(measured.linear_bytes) + 1;
            }
        });
        Ok(GptqBaseline { settings: settings.collect::<Result<_, Error>>()? })
    }

    /// The smallest form of `codec` (`rtn` or `gptq`) with these other arguments whose linears take at least so many bytes.
    ///
    /// # Errors
    /// No form that is so large.
    pub fn next_form(&self, codec: &str, arguments: &str, least: u64) -> Result<String, Error> {
        let mut forms = Vec::new();
        for bits in 2..=8u32 {
            for group in [8, 16, 32, 64, 128, 256, 1024] {
                let recipe =
                    format!("{codec}(bits={bits}, group_size={group}, {arguments})").replace(", )", ")");
                let bytes = self.stored_bytes(&recipe)?;
                if bytes >= least {
                    forms.push((bytes, bits, std::cmp::Reverse(group), recipe));
                }
            }
        }
        let smallest = forms.iter().map(|form| form.0).min();
        let smallest = smallest.ok_or_else(|| format!("no form of `{codec}` takes {least} bytes"))?;
        let near = forms.into_iter().filter(|form| form.0 as f64 <= 1.02 * smallest as f64);
        let best = near.max_by_key(|form| (form.1, form.2));
        Ok(best.map(|form| form.3).unwrap_or_default())
    }
}
