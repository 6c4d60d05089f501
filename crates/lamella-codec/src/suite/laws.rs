//! Laws of honest use: what is encoded comes back, as the codec says it does.

use std::sync::Arc;

use super::{Run, Violation, synthetic};
use crate::{Array, ArraySpec, Codec, CodecError, Dtype, Encoded, Knowledge, Rate};

impl Run<'_> {
    pub(super) fn recipe(&self) -> Result<(), Violation> {
        let text = self.codec.recipe().to_string();
        let read = text.parse().map_err(|error| self.broken("recipe", &text, error as crate::RecipeError))?;
        if self.codec.recipe() == &read {
            return Ok(());
        }
        Err(self.broken("recipe", text, format!("reads back as `{read}`")))
    }

    /// Every shape, dtype, rate, with and without a second moment.
    pub(super) fn arrays(&mut self) -> Result<(), Violation> {
        let cases = self.cases;
        let mut n_matrices = 0;
        for shape in &cases.shapes {
            for &dtype in &cases.dtypes {
                let spec = ArraySpec::new("suite", shape.clone(), dtype);
                if self.codec.accepts(&spec).is_err() {
                    self.refused(&spec)?;
                    continue;
                }
                n_matrices += usize::from(spec.matrix().is_some() && !spec.is_empty());
                let array = self.synthetic(&spec, 1)?;
                for rate in self.rates() {
                    self.round_trip(&array, &synthetic::knowledge(&spec, 1), rate)?;
                    self.round_trip(&array, &Knowledge::default(), rate)?;
                }
            }
        }
        if n_matrices > 0 {
            Ok(())
        } else {
            Err(self.broken("accepts", "every case", "no matrix is accepted"))
        }
    }

    pub(super) fn synthetic(&self, spec: &ArraySpec, seed: u64) -> Result<Array<'static>, Violation> {
        synthetic::array(spec.clone(), seed).map_err(|error| self.broken("accepts", &spec.name, error))
    }

    fn refused(&mut self, spec: &ArraySpec) -> Result<(), Violation> {
        let array = self.synthetic(spec, 1)?;
        for rate in self.rates() {
            let case = describe(spec, rate);
            match self.codec.encode(&array, &Knowledge::default(), rate) {
                Err(CodecError::Refused { .. } | CodecError::Array(_)) => {}
                Err(error) => return Err(self.broken("accepts", case, format!("refused as: {error}"))),
                Ok(_) => return Err(self.broken("accepts", case, "not accepted, yet encoded")),
            }
        }
        self.checked.n_refused += 1;
        Ok(())
    }

    pub(super) fn encode(
        &self,
        law: &'static str,
        array: &Array<'_>,
        knowledge: &Knowledge,
        rate: Rate,
    ) -> Result<Encoded, Violation> {
        self.codec
            .encode(array, knowledge, rate)
            .map_err(|error| self.broken(law, describe(&array.spec, rate), error))
    }

    /// Decodes the first `n` layers and checks that the array is what the spec says.
    fn decode(
        &self,
        law: &'static str,
        spec: &ArraySpec,
        encoded: &Encoded,
        n: usize,
        rate: Rate,
    ) -> Result<Array<'static>, Violation> {
        let case = || format!("{}, {n} of {} layers", describe(spec, rate), encoded.layers.len());
        let layers: Vec<&[u8]> = encoded.layers[..n].iter().map(|layer| &layer.payload[..]).collect();
        let decoded = self.codec.decode(spec, &layers).map_err(|error| self.broken(law, case(), error))?;
        if let Some(message) = unlike(spec, &decoded) {
            return Err(self.broken(law, case(), message));
        }
        match decoded.first_non_finite() {
            Some(position) if !self.cases.is_exact => {
                Err(self.broken(law, case(), format!("element {position} is not finite")))
            }
            _ => Ok(decoded),
        }
    }

    fn round_trip(&mut self, array: &Array<'_>, knowledge: &Knowledge, rate: Rate) -> Result<(), Violation> {
        let spec = &array.spec;
        let case = describe(spec, rate);
        let encoded = self.encode("round trip", array, knowledge, rate)?;
        if encoded.layers.is_empty() {
            return Err(self.broken("layers", case, "no layer was written"));
        }
        if self.codec.decode(spec, &[]).is_ok() && !spec.is_empty() {
            return Err(self.broken("layers", case, "no layer at all was decoded"));
        }
        self.estimate(array, knowledge, rate)?;
        self.checked.n_arrays += 1;
        let mut shorter = f64::INFINITY;
        for n in 1..=encoded.layers.len() {
            let law = if n == encoded.layers.len() { "round trip" } else { "layers" };
            let decoded = self.decode(law, spec, &encoded, n, rate)?;
            if n == encoded.layers.len() && self.cases.is_exact && decoded.bytes != array.bytes {
                return Err(self.broken("round trip", case, "the bytes differ"));
            }
            if let (Ok(original), Ok(values)) = (array.to_f32(), decoded.to_f32()) {
                let measured = synthetic::distortion(&original, &values, knowledge);
                let zeros = synthetic::distortion(&original, &vec![0.0; original.len()], knowledge);
                self.distortions(&encoded, n, measured, zeros, spec, &case)?;
                if measured > shorter * 1.01 + 1e-9 * zeros {
                    let message =
                        format!("{n} layers have distortion {measured:.6e}, fewer had {shorter:.6e}");
                    return Err(self.broken("layers", case, message));
                }
                shorter = measured;
            }
        }
        Ok(())
    }

    fn distortions(
        &self,
        encoded: &Encoded,
        n: usize,
        measured: f64,
        zeros: f64,
        spec: &ArraySpec,
        case: &str,
    ) -> Result<(), Violation> {
        let reported = encoded.layers[n - 1].distortion;
        // Rounding to the array's own type comes after what most encoders measure.
        let rounding = match spec.dtype {
            Dtype::F32 | Dtype::F64 => 1e-9,
            Dtype::F16 => 1e-5,
            _ => 1e-2,
        };
        let allowed = |truth: f64| self.cases.distortion_tolerance * truth + rounding * zeros;
        let is_last = n == encoded.layers.len();
        // Written this way round, a distortion that is NaN does not pass.
        let is_within = |value: f64, bound: f64| value <= bound;
        if is_last && !is_within(measured, self.cases.max_relative_distortion * zeros * (1.0 + 1e-6)) {
            let message = format!("distortion {measured:.6e}, storing nothing has {zeros:.6e}");
            return Err(self.broken("error", case, message));
        }
        if !is_within((reported - measured).abs(), allowed(measured)) {
            let message =
                format!("layer {} reports distortion {reported:.6e}, measured {measured:.6e}", n - 1);
            return Err(self.broken("error", case, message));
        }
        let nothing = encoded.distortion_of_zeros;
        if !is_within((nothing - zeros).abs(), allowed(zeros)) {
            let message = format!("reports {nothing:.6e} for storing nothing, measured {zeros:.6e}");
            return Err(self.broken("error", case, message));
        }
        Ok(())
    }

    fn estimate(&self, array: &Array<'_>, knowledge: &Knowledge, rate: Rate) -> Result<(), Violation> {
        let case = describe(&array.spec, rate);
        let ask = || {
            self.codec
                .estimate(array, knowledge, &[rate, rate])
                .map_err(|error| self.broken("estimate", &case, error))
        };
        let points = ask()?;
        let is_sound = |point: &crate::Point| {
            point.rate == rate
                && point.bytes.is_finite()
                && point.bytes >= 0.0
                && point.distortion.is_finite()
                && point.distortion >= 0.0
        };
        if points.len() != 2 || !points.iter().all(is_sound) || points[0] != points[1] || points != ask()? {
            return Err(self.broken("estimate", case, format!("two equal rates gave {points:?}")));
        }
        Ok(())
    }

    /// Zeros, constants, huge and subnormal values.
    pub(super) fn extremes(&mut self) -> Result<(), Violation> {
        let spec = ArraySpec::new("suite", vec![6, 20], Dtype::F32);
        if self.codec.accepts(&spec).is_err() {
            return Ok(());
        }
        let shape = synthetic::values(spec.len(), 3);
        let limit = f64::from(f32::MAX);
        let scaled = |scale: f64| -> Vec<f32> {
            shape.iter().map(|&v| (f64::from(v) * scale).clamp(-limit, limit) as f32).collect()
        };
        let kinds: [(&str, Vec<f32>); 6] = [
            ("zeros", vec![0.0; spec.len()]),
            ("ones", vec![1.0; spec.len()]),
            ("minus thirds", vec![-1.0 / 3.0; spec.len()]),
            ("values near 1e37", scaled(2e38)),
            ("values up to the largest", scaled(1e40)),
            ("subnormal values", scaled(1e-39)),
        ];
        for (i, (kind, values)) in kinds.iter().enumerate() {
            let array = Array::from_f32(spec.clone(), values)
                .map_err(|error| self.broken("extremes", *kind, error))?;
            for rate in self.rates() {
                for knowledge in [Knowledge::default(), synthetic::knowledge(&spec, 3)] {
                    if i < 3 {
                        self.round_trip(&array, &knowledge, rate).map_err(|broken| Violation {
                            case: format!("{kind}, {}", broken.case),
                            ..broken
                        })?;
                    }
                    let Ok(encoded) = self.codec.encode(&array, &knowledge, rate) else { continue };
                    let decoded = self.decode("extremes", &spec, &encoded, encoded.layers.len(), rate)?;
                    let is_zero = || decoded.to_f32().is_ok_and(|all| all.iter().all(|v| v.abs() <= 1e-6));
                    if i == 0 && !is_zero() {
                        return Err(self.broken("zeros", describe(&spec, rate), "not all zeros came back"));
                    }
                    self.checked.n_arrays += 1;
                }
            }
        }
        Ok(())
    }

    pub(super) fn non_finite(&mut self) -> Result<(), Violation> {
        for (dtype, bad, row, column) in [
            (Dtype::F32, f32::NAN, 4, 11),
            (Dtype::F32, f32::INFINITY, 0, 0),
            (Dtype::BF16, f32::NEG_INFINITY, 8, 22),
        ] {
            let spec = ArraySpec::new("suite", vec![9, 23], dtype);
            if self.codec.accepts(&spec).is_err() {
                continue;
            }
            let mut values = synthetic::values(spec.len(), 5);
            values[row * 23 + column] = bad;
            values[9 * 23 - 1] = bad;
            let array = Array::from_f32(spec.clone(), &values)
                .map_err(|error| self.broken("non-finite", &spec.name, error))?;
            for rate in self.rates() {
                let case = format!("{}, {bad} at [{row}, {column}]", describe(&spec, rate));
                let knowledge = synthetic::knowledge(&spec, 5);
                match self.codec.encode(&array, &knowledge, rate) {
                    Ok(encoded) if self.cases.is_exact => {
                        let n = encoded.layers.len();
                        if self.decode("non-finite", &spec, &encoded, n, rate)?.bytes != array.bytes {
                            return Err(self.broken("non-finite", case, "the bytes differ"));
                        }
                    }
                    Ok(_) => return Err(self.broken("non-finite", case, "encoded without an error")),
                    Err(CodecError::NonFinite { position, .. }) if position == [row, column] => {}
                    Err(error) => return Err(self.broken("non-finite", case, error)),
                }
                self.checked.n_arrays += 1;
            }
        }
        Ok(())
    }

    /// A second moment that does not fit: an error or not, but no panic.
    pub(super) fn knowledge(&mut self) -> Result<(), Violation> {
        let spec = ArraySpec::new("suite", vec![6, 20], Dtype::F32);
        let array = self.synthetic(&spec, 7)?;
        for dimension in [0, 19, 21] {
            let Some(moment) = synthetic::second_moment(dimension, 7) else { continue };
            let knowledge = Knowledge::of_inputs(Arc::new(moment));
            for rate in self.rates() {
                if let Ok(encoded) = self.codec.encode(&array, &knowledge, rate) {
                    self.decode("knowledge", &spec, &encoded, encoded.layers.len(), rate)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn threads(&mut self) -> Result<(), Violation> {
        let spec = ArraySpec::new("suite", vec![150, 130], Dtype::F32);
        if self.codec.accepts(&spec).is_err() {
            return Ok(());
        }
        let array = self.synthetic(&spec, 9)?;
        let knowledge = synthetic::knowledge(&spec, 9);
        for rate in self.rates() {
            let case = describe(&spec, rate);
            let run = |n_threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(n_threads)
                    .build()
                    .map_err(|error| self.broken("threads", &case, error))?;
                pool.install(|| {
                    let encoded = self.encode("threads", &array, &knowledge, rate)?;
                    let decoded = self.decode("threads", &spec, &encoded, encoded.layers.len(), rate)?;
                    Ok((encoded, decoded))
                })
            };
            let (one, four, again) = (run(1)?, run(4)?, run(4)?);
            if one.0 != four.0 || four.0 != again.0 {
                return Err(self.broken("threads", case, "the layers differ between one thread and four"));
            }
            if one.1 != four.1 {
                return Err(self.broken("threads", case, "the decoded arrays differ"));
            }
            self.checked.n_arrays += 3;
        }
        Ok(())
    }

    /// What this codec writes, `other` reads as this codec does.
    pub(super) fn decodes_as(&self, other: &dyn Codec) -> Result<(), Violation> {
        let spec = ArraySpec::new("suite", vec![24, 40], Dtype::F32);
        let array = self.synthetic(&spec, 1)?;
        for rate in self.rates() {
            if self.codec.accepts(&spec).is_err() {
                continue;
            }
            let encoded = self.encode("recipe", &array, &synthetic::knowledge(&spec, 1), rate)?;
            let decoded = self.decode("recipe", &spec, &encoded, encoded.layers.len(), rate)?;
            let stored = Run { codec: other, cases: self.cases, checked: self.checked };
            let read = stored.decode("recipe", &spec, &encoded, encoded.layers.len(), rate)?;
            if read != decoded {
                let case = describe(&spec, rate);
                return Err(self.broken("recipe", case, "a codec of the stored recipe decodes otherwise"));
            }
        }
        Ok(())
    }
}

/// Why `decoded` is not an array of `spec`.
pub(super) fn unlike(spec: &ArraySpec, decoded: &Array<'_>) -> Option<String> {
    if &decoded.spec != spec {
        return Some(format!("decoded as {:?}", decoded.spec));
    }
    let needed = spec.checked_size_bytes();
    (needed != Some(decoded.bytes.len())).then(|| format!("{} bytes, not {needed:?}", decoded.bytes.len()))
}

pub(super) fn describe(spec: &ArraySpec, rate: Rate) -> String {
    format!("{} {:?} at {rate:?}", spec.dtype.name(), spec.shape)
}
