//! Rotary position embeddings and the ways to stretch them.
//!
//! Features `i` and `i + d/2` of a head are a plane, turned by the angle `position * frequency[i]`, with
//! `frequency[i] = theta^(-2 i / d)`. Stretching a context means turning more slowly: every plane (linear), only
//! the slow ones (llama3, yarn), or with a larger `theta` once the text is longer than the context (dynamic).
//! Angles are formed in `f32`, as the published networks were trained.

use serde_json::Value;

use crate::LmError;
use crate::fields::Fields;

/// How frequencies are changed for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All frequencies divided by a factor.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Theta grows with the text once it is longer than the context.
    Dynamic {
        /// Growth.
        factor: f64,
    },
    /// Wavelengths beyond the original context divided by a factor, with a smooth transition.
    Llama3 {
        /// Divisor of the lowest frequencies.
        factor: f64,
        /// Original context over this is the wavelength from which the full factor holds.
        low_frequency_factor: f64,
        /// Original context over this is the wavelength up to which nothing changes.
        high_frequency_factor: f64,
        /// Context before stretching.
        original_context: usize,
    },
    /// Planes that turn rarely within the original context divided by a factor, a linear ramp between, and
    /// attention sharpened.
    Yarn {
        /// Divisor.
        factor: f64,
        /// Multiplies sine and cosine.
        attention_factor: f64,
        /// Turns above which nothing changes.
        beta_fast: f64,
        /// Turns below which the full factor holds.
        beta_slow: f64,
        /// Context before stretching.
        original_context: usize,
        /// Whether the ramp's ends are rounded outwards to whole planes.
        is_truncated: bool,
    },
}

/// Rotary position embeddings of one network.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Features that are rotated: the first of every head.
    pub rotated: usize,
    /// Context the network was made for.
    pub context_length: usize,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// Reads `rope_parameters` (newer configurations) or `rope_theta` and `rope_scaling`.
    ///
    /// # Errors
    /// [`LmError::Config`] for unknown types and missing or bad parameters.
    pub fn from_json(
        config: &Value,
        head_dim: usize,
        context_length: usize,
        default_theta: f64,
    ) -> Result<Self, LmError> {
        let outer = Fields(config);
        let empty = Value::Null;
        let inner =
            Fields(outer.get("rope_parameters").or_else(|| outer.get("rope_scaling")).unwrap_or(&empty));
        let theta = inner.positive_or("rope_theta", outer.positive_or("rope_theta", default_theta)?)?;
        let part = inner
            .positive_or("partial_rotary_factor", outer.positive_or("partial_rotary_factor", 1.0)?)?
            .min(1.0);
        let rotated = (head_dim as f64 * part) as usize / 2 * 2;
        let original_context = outer.extent_or(
            "original_max_position_embeddings",
            Some(inner.extent_or("original_max_position_embeddings", Some(context_length))?),
        )?;
        let required = |field: &str| -> Result<f64, LmError> {
            match inner.get(field) {
                Some(_) => inner.positive_or(field, 1.0),
                None => Err(LmError::Config {
                    field: format!("rope_parameters.{field}"),
                    message: "is missing".to_owned(),
                }),
            }
        };
        let scaling = match inner.text("rope_type").or_else(|| inner.text("type")).unwrap_or("default") {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: required("factor")? },
            "dynamic" => RopeScaling::Dynamic { factor: required("factor")? },
            "llama3" => {
                let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
                if high <= low {
                    return Err(LmError::Config {
                        field: "rope_parameters.high_freq_factor".to_owned(),
                        message: format!("{high} is not above `low_freq_factor` of {low}"),
                    });
                }
                RopeScaling::Llama3 {
                    factor: required("factor")?,
                    low_frequency_factor: low,
                    high_frequency_factor: high,
                    original_context,
                }
            }
            "yarn" => {
                let factor = inner.positive_or("factor", context_length as f64 / original_context as f64)?;
                let growth = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
                let (mscale, all) =
                    (inner.number_or("mscale", 0.0)?, inner.number_or("mscale_all_dim", 0.0)?);
                let derived =
                    if mscale != 0.0 && all != 0.0 { growth(mscale) / growth(all) } else { growth(1.0) };
                RopeScaling::Yarn {
                    factor,
                    attention_factor: inner.positive_or("attention_factor", derived)?,
                    beta_fast: inner.positive_or("beta_fast", 32.0)?,
                    beta_slow: inner.positive_or("beta_slow", 1.0)?,
                    original_context,
                    is_truncated: inner.flag_or("truncate", true)?,
                }
            }
            other => {
                return Err(LmError::Config {
                    field: "rope_parameters.rope_type".to_owned(),
                    message: format!(
                        "`{other}` is not known (default, linear, dynamic, llama3 and yarn are)"
                    ),
                });
            }
        };
        Ok(Self { theta, rotated, context_length, scaling })
    }

    /// Angle per position of each plane, for a text of `tokens` tokens, and what sine and cosine are multiplied
    /// with.
    pub fn frequencies(&self, tokens: usize) -> (Vec<f32>, f32) {
        let planes = self.rotated / 2;
        let at = |theta: f64| -> Vec<f32> {
            let exponent = |i: usize| (2 * i) as f32 / self.rotated as f32;
            (0..planes).map(|i| 1.0 / (theta.powf(f64::from(exponent(i))) as f32)).collect()
        };
        let plain = at(self.theta);
        match self.scaling {
            RopeScaling::Default => (plain, 1.0),
            RopeScaling::Linear { factor } => (plain.into_iter().map(|f| f / factor as f32).collect(), 1.0),
            RopeScaling::Dynamic { factor } => {
                let stretch = tokens.max(self.context_length) as f64 / self.context_length as f64;
                let d = self.rotated as f64;
                let growth = (factor * stretch - (factor - 1.0)).max(f64::MIN_POSITIVE);
                (at(self.theta * growth.powf(d / (d - 2.0).max(1.0))), 1.0)
            }
            RopeScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context,
            } => {
                let context = original_context as f64;
                let stretched = plain.into_iter().map(|frequency| {
                    let f = f64::from(frequency);
                    let wavelength = 2.0 * std::f64::consts::PI / f;
                    if wavelength > context / low {
                        (f / factor) as f32
                    } else if wavelength < context / high {
                        frequency
                    } else {
                        let smooth = (context / wavelength - low) / (high - low);
                        ((1.0 - smooth) * f / factor + smooth * f) as f32
                    }
                });
                (stretched.collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                original_context,
                is_truncated,
            } => {
                let d = self.rotated as f64;
                // The plane that turns `turns` times within the original context.
                let plane = |turns: f64| {
                    d * (original_context as f64 / (turns * 2.0 * std::f64::consts::PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (plane(beta_fast), plane(beta_slow));
                if is_truncated {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(d - 1.0));
                if low == high {
                    high += 0.001;
                }
                let stretched = plain.into_iter().enumerate().map(|(i, frequency)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    let f = f64::from(frequency);
                    (f / factor * ramp + f * (1.0 - ramp)) as f32
                });
                (stretched.collect(), attention_factor as f32)
            }
        }
    }
}

/// Sines and cosines of a range of positions.
#[derive(Debug, Clone)]
pub(crate) struct Rotations {
    planes: usize,
    /// Per position: cosines of all planes, then sines.
    table: Vec<f32>,
}

impl Rotations {
    /// For positions `start .. start + count` of a text of `start + count` tokens.
    pub(crate) fn new(config: &RopeConfig, start: usize, count: usize) -> Self {
        let (frequencies, factor) = config.frequencies(start + count);
        let planes = frequencies.len();
        let mut table = Vec::with_capacity(count * planes * 2);
        for position in start..start + count {
            let angle = |f: &f32| f64::from(position as f32 * f);
            table.extend(frequencies.iter().map(|f| angle(f).cos() as f32 * factor));
            table.extend(frequencies.iter().map(|f| angle(f).sin() as f32 * factor));
        }
        Self { planes, table }
    }

    /// Rotates one head's features for the `index`-th position of the range.
    pub(crate) fn apply(&self, index: usize, head: &mut [f32]) {
        let (cosines, sines) = self.table[index * 2 * self.planes..][..2 * self.planes].split_at(self.planes);
        let (first, rest) = head.split_at_mut(self.planes);
        let second = &mut rest[..self.planes];
        for i in 0..self.planes {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cosines[i] - b * sines[i];
            second[i] = b * cosines[i] + a * sines[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value) -> RopeConfig {
        RopeConfig::from_json(&config, 8, 64, 1e4).unwrap()
    }

    #[test]
    fn old_and_new_keys_mean_the_same() {
        let old = read(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}));
        let new = read(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}}));
        assert_eq!(old, new);
        assert_eq!(old.frequencies(10).0[0], 0.25);
    }

    #[test]
    fn dynamic_scaling_starts_beyond_the_context() {
        let rope = read(json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}));
        let plain = read(json!({}));
        assert_eq!(rope.frequencies(64), plain.frequencies(64));
        assert!(rope.frequencies(128).0[3] < plain.frequencies(128).0[3]);
    }

    #[test]
    fn a_rotation_keeps_lengths_and_relative_angles() {
        let rope = read(json!({}));
        let rotations = Rotations::new(&rope, 0, 20);
        let (query, key) =
            ([1.0, 2.0, -1.0, 0.5, 0.3, 0.1, 2.0, -0.7], [0.2, 1.0, 0.4, 3.0, -1.0, 0.0, 1.0, 1.0]);
        let score = |i: usize, j: usize| -> f32 {
            let (mut q, mut k) = (query, key);
            rotations.apply(i, &mut q);
            rotations.apply(j, &mut k);
            q.iter().zip(&k).map(|(a, b)| a * b).sum()
        };
        assert!((score(5, 2) - score(19, 16)).abs() < 1e-5);
        assert!((score(5, 2) - score(5, 3)).abs() > 1e-3);
    }

    #[test]
    fn unknown_scalings_are_named() {
        let error =
            RopeConfig::from_json(&json!({"rope_scaling": {"type": "spiral"}}), 8, 64, 1e4).unwrap_err();
        assert!(error.to_string().contains("`spiral`"));
    }
}
