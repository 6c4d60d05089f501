use super::*;
use crate::{Array, ArraySpec, CodecError, CodedLinear, Encoded, Knowledge, Refusal, Registration};
use std::sync::Arc;

/// What is wrong with a codec of the tests.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    AcceptsCuts,
    CountsThreads,
    LosesTheSign,
    LiesAboutDistortion,
    EncodesInfinity,
    NamesTheWrongPlace,
    IgnoresTheSpec,
    ZerosBecomeOnes,
    DecodesNothing,
    RefusesMatrices,
    ExecutesTheLastRowTwice,
}

/// A matrix that multiplies itself.
struct Multiplied {
    values: Vec<f32>,
    columns: usize,
    fault: Fault,
}

impl CodedLinear for Multiplied {
    fn apply(&self, inputs: &[f32], _tokens: usize, outputs: &mut [f32], stride: usize, column: usize) {
        for (input, outputs) in inputs.chunks_exact(self.columns).zip(outputs.chunks_exact_mut(stride)) {
            for (row, output) in self.values.chunks_exact(self.columns).zip(&mut outputs[column..]) {
                *output = row.iter().zip(input).map(|(w, x)| w * x).sum();
            }
            if self.fault == Fault::ExecutesTheLastRowTwice {
                outputs[column] = outputs[column + self.values.len() / self.columns - 1];
            }
        }
    }
    fn add_row(&self, index: usize, target: &mut [f32]) {
        let row = &self.values[index * self.columns..][..self.columns];
        target.iter_mut().zip(row).for_each(|(cell, weight)| *cell += weight);
    }
    fn resident_bytes(&self) -> usize {
        self.values.len() * 4
    }
}

/// Raw bytes with their length in front, or (`is_exact` not set) rounded to 16 steps per array.
struct Plain {
    recipe: Recipe,
    is_exact: bool,
    fault: Fault,
}

impl Plain {
    fn new(is_exact: bool, fault: Fault) -> Self {
        Self { recipe: Recipe::new("plain").with("steps", 16.0.into()), is_exact, fault }
    }
    fn rounded(&self, array: &Array<'_>) -> Result<Array<'static>, CodecError> {
        if self.is_exact {
            return Ok(array.clone().into_owned());
        }
        let mut values = array.to_f32()?;
        let largest = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let step = largest / 8.0;
        for v in &mut values {
            *v = if step > 0.0 { ((*v / step).round() * step).clamp(f32::MIN, f32::MAX) } else { 0.0 };
            match self.fault {
                Fault::LosesTheSign => *v = v.abs(),
                Fault::ZerosBecomeOnes if largest == 0.0 => *v = 1e-3,
                _ => {}
            }
        }
        Ok(Array::from_f32(array.spec.clone(), &values)?)
    }
}

impl Codec for Plain {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }
    fn accepts(&self, spec: &ArraySpec) -> Result<(), Refusal> {
        let refuse = |reason: &str| Err(Refusal { reason: reason.to_owned() });
        match self.fault {
            Fault::RefusesMatrices if spec.matrix().is_some() => refuse("is a matrix"),
            _ if !self.is_exact && !spec.dtype.is_float() => refuse("is no float"),
            _ => Ok(()),
        }
    }
    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, _: Rate) -> Result<Encoded, CodecError> {
        let name = &array.spec.name;
        self.accepts(&array.spec).map_err(|refusal| CodecError::Refused {
            recipe: self.recipe.to_string(),
            array: name.clone(),
            refusal,
        })?;
        if let Some(at) = array.first_non_finite()
            && !self.is_exact
            && self.fault != Fault::EncodesInfinity
        {
            let columns = array.spec.shape.last().copied().unwrap_or(1);
            let at = if self.fault == Fault::NamesTheWrongPlace { at + 1 } else { at };
            return Err(CodecError::NonFinite {
                array: name.clone(),
                position: vec![at / columns, at % columns],
            });
        }
        if knowledge
            .second_moment
            .as_ref()
            .is_some_and(|m| Some(m.dimension()) != array.spec.matrix().map(|(_, columns)| columns))
        {
            return Err(CodecError::Solver { array: name.clone(), message: "dimension".to_owned() });
        }
        let rounded = self.rounded(array)?;
        let mut payload = (rounded.bytes.len() as u64).to_le_bytes().to_vec();
        payload.extend_from_slice(&rounded.bytes);
        if self.fault == Fault::CountsThreads {
            payload[7] = rayon::current_num_threads() as u8;
        }
        let (mut distortion, mut nothing) = (0.0, 0.0);
        if let (Ok(original), Ok(values)) = (array.to_f32(), rounded.to_f32()) {
            distortion = synthetic::distortion(&original, &values, knowledge);
            nothing = synthetic::distortion(&original, &vec![0.0; original.len()], knowledge);
        }
        if self.fault == Fault::LiesAboutDistortion {
            distortion *= 0.5;
        }
        Ok(Encoded::single(payload, distortion, nothing))
    }
    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let damaged = |message: &str| CodecError::Damaged {
            array: spec.name.clone(),
            layer: 0,
            message: message.to_owned(),
        };
        if layers.is_empty() && self.fault == Fault::DecodesNothing {
            return Ok(Array::from_f32(spec.clone(), &vec![0.0; spec.len()])?);
        }
        let [layer] = layers else { return Err(damaged("one layer is needed")) };
        let Some((length, bytes)) = layer.split_first_chunk::<8>() else { return Err(damaged("no length")) };
        let mut length = *length;
        if self.fault == Fault::CountsThreads {
            length[7] = 0;
        }
        if self.fault == Fault::AcceptsCuts {
            let mut bytes = bytes.to_vec();
            bytes.resize(spec.checked_size_bytes().filter(|&n| n < 1 << 20).ok_or(damaged("too large"))?, 0);
            return Ok(Array::new(spec.clone(), bytes)?);
        }
        if u64::from_le_bytes(length) != bytes.len() as u64 {
            return Err(damaged("not the length it says"));
        }
        if self.fault == Fault::IgnoresTheSpec {
            let spec = ArraySpec::new(spec.name.clone(), vec![bytes.len()], Dtype::U8);
            return Ok(Array::new(spec, bytes.to_vec())?);
        }
        Ok(Array::new(spec.clone(), bytes.to_vec())?)
    }
    fn execute(
        &self,
        spec: &ArraySpec,
        layers: &[&[u8]],
    ) -> Result<Option<Arc<dyn CodedLinear>>, CodecError> {
        let Some((_, columns)) = spec.matrix().filter(|&(rows, columns)| rows * columns > 0) else {
            return Ok(None);
        };
        let values = self.decode(spec, layers)?.to_f32()?;
        Ok(Some(Arc::new(Multiplied { values, columns, fault: self.fault })))
    }
}

#[test]
fn sound_codecs_pass() {
    let exact = check(&Plain::new(true, Fault::None), &Cases::exact()).unwrap();
    assert!(exact.n_arrays > 100 && exact.n_damaged > 3000 && exact.n_refused == 0, "{exact:?}");
    let cases = Cases { dtypes: vec![Dtype::F32, Dtype::BF16, Dtype::I8], ..Cases::default() };
    let lossy = check(&Plain::new(false, Fault::None), &cases.with_max_relative_distortion(0.2)).unwrap();
    assert!(lossy.n_refused > 5 && lossy.n_executed > 2, "{lossy:?}");
}

#[test]
fn each_fault_breaks_its_law() {
    for (fault, laws) in [
        (Fault::AcceptsCuts, &["cut", "round trip"][..]),
        (Fault::CountsThreads, &["threads"]),
        (Fault::LosesTheSign, &["error"]),
        (Fault::LiesAboutDistortion, &["error"]),
        (Fault::EncodesInfinity, &["non-finite"]),
        (Fault::NamesTheWrongPlace, &["non-finite"]),
        (Fault::IgnoresTheSpec, &["round trip"]),
        (Fault::ZerosBecomeOnes, &["error", "zeros"]),
        (Fault::DecodesNothing, &["layers"]),
        (Fault::RefusesMatrices, &["accepts"]),
        (Fault::ExecutesTheLastRowTwice, &["execution"]),
    ] {
        let broken = check(&Plain::new(false, fault), &Cases::default()).unwrap_err();
        assert!(laws.contains(&broken.law), "{fault:?}: {broken}");
    }
}

#[test]
fn a_lossy_codec_is_not_exact_and_a_bound_binds() {
    let lossy = Plain::new(false, Fault::None);
    let cases = Cases { dtypes: vec![Dtype::F32], ..Cases::exact() };
    assert_eq!(check(&lossy, &cases).unwrap_err().law, "round trip");
    let broken = check(&lossy, &Cases::default().with_max_relative_distortion(1e-4)).unwrap_err();
    assert_eq!(broken.law, "error");
}

#[test]
fn the_stored_recipe_is_what_decodes() {
    const SOUND: Registration = Registration {
        name: "plain",
        summary: "raw bytes",
        arguments: &[("steps", "16", "steps of the largest magnitude")],
        build: |recipe| {
            recipe.reject_unknown(&["steps"])?;
            recipe.integer("steps", 16..=16, 16)?;
            Ok(Arc::new(Plain::new(false, Fault::None)))
        },
    };
    let catalogue = Catalogue::new(Vec::new(), vec![SOUND]);
    check_recipe(&catalogue, "plain(16)", &Cases::default()).unwrap();
    for (recipe, message) in [
        ("plain(bits=3)", "`plain` has no argument `bits`; it takes `steps`"),
        ("plain(steps=17)", "`steps` is 17; it takes a whole number from 16 to 16"),
        ("plain(3, steps=16)", "`steps` is given twice, once without its name"),
        ("plain | plain", "`plain | plain` chains parts with `|`; a codec stands alone, known are plain"),
        ("plane", "no codec is named `plane`; known are plain"),
    ] {
        let broken = check_recipe(&catalogue, recipe, &Cases::default()).unwrap_err();
        assert!(broken.message.ends_with(message), "{broken}");
    }
}
