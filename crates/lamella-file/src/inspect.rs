//! A report of what a file holds, from its manifest alone.

use lamella_codec::ArraySpec;
use serde::Serialize;

use crate::limits::FORMAT_VERSION;
use crate::{ArrayEntry, File, Shard, SideFile, Storage};

/// What is known of one array.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArrayReport {
    /// Name, shape, dtype.
    #[serde(flatten)]
    pub spec: ArraySpec,
    /// Recipe text.
    pub recipe: String,
    /// Source file.
    pub shard: String,
    /// How it is stored.
    pub storage: Storage,
    /// Bytes of its payloads that are there. A bundle's are divided among its arrays by their elements; an alias has
    /// none.
    pub bytes: u64,
    /// `bytes` in bits, over the array's elements.
    pub bits_per_element: f64,
    /// Layers that are there.
    pub layers: usize,
    /// Layers of the whole file.
    pub all_layers: usize,
    /// Distortion after the layers that are there (of the whole bundle), `None` where there is none.
    pub distortion: Option<f32>,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Version of this report.
    pub schema: u32,
    /// Version of the file format.
    pub format_version: u8,
    /// Bytes there are.
    pub bytes: u64,
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// Bytes of the shortest valid prefix.
    pub smallest_complete_bytes: u64,
    /// Bytes of header and manifest.
    pub manifest_bytes: u64,
    /// Bytes of the stored side files.
    pub side_bytes: u64,
    /// Bytes of all layers' payloads in the whole file.
    pub payload_bytes: u64,
    /// Bytes of the whole file that are neither payload nor side files: header, manifest, padding.
    pub overhead_bytes: u64,
    /// Elements of all arrays, tied ones once.
    pub elements: u64,
    /// Bits per element of what is there, side files left out.
    pub bits_per_element: f64,
    /// Layers that are there.
    pub whole_layers: usize,
    /// Layers of the whole file.
    pub layers: usize,
    /// The budget as the user wrote it.
    pub budget: String,
    /// Free key/value texts.
    pub metadata: Vec<(String, String)>,
    /// Source files.
    pub shards: Vec<Shard>,
    /// Copied files.
    pub side_files: Vec<SideFile>,
    /// Every array, in source order.
    pub arrays: Vec<ArrayReport>,
}

impl File {
    /// Reports what the file holds. Reads nothing: the manifest is known since the file was opened.
    pub fn inspect(&self) -> Inspection {
        let layout = self.layout();
        let manifest = self.manifest();
        let side_bytes = layout.side.end - layout.side.start;
        // The layout has added these up before without overflow.
        let payload_bytes = manifest.layers.iter().map(|layer| layer.length_bytes).sum();
        let present = self.length_bytes().min(layout.end_of(self.whole_layers()));
        Inspection {
            schema: 1,
            format_version: FORMAT_VERSION,
            bytes: self.length_bytes(),
            file_bytes: layout.file_bytes,
            smallest_complete_bytes: layout.smallest_complete_bytes,
            manifest_bytes: layout.manifest_bytes,
            side_bytes,
            payload_bytes,
            overhead_bytes: layout.file_bytes - side_bytes - payload_bytes,
            elements: self.elements(),
            bits_per_element: self.bits_per_element(present),
            whole_layers: self.whole_layers(),
            layers: manifest.layers.len(),
            budget: manifest.budget.clone(),
            metadata: manifest.metadata.clone(),
            shards: manifest.shards.clone(),
            side_files: manifest.side.files.clone(),
            arrays: self.array_reports(),
        }
    }

    fn array_reports(&self) -> Vec<ArrayReport> {
        let mut reports: Vec<ArrayReport> =
            self.arrays().iter().map(|array| self.unfilled_report(array)).collect();
        let mut all_layers = vec![0usize; self.targets().len()];
        self.layers().iter().for_each(|layer| all_layers[layer.target] += 1);
        for target in 0..self.targets().len() {
            let layers = self.layer_indices(target);
            let members = self.targets().members(target);
            let bytes: u64 = layers.iter().map(|&layer| self.layers()[layer as usize].length_bytes).sum();
            let elements = |member: u32| self.arrays()[member as usize].spec.len() as u128;
            let total: u128 = members.iter().map(|&member| elements(member)).sum();
            let (mut before, mut given) = (0u128, 0u64);
            for &member in members {
                before += elements(member);
                // Cumulative shares, rounded down, so that the parts add up to the whole.
                let share = (u128::from(bytes) * before).checked_div(total).unwrap_or(0) as u64;
                let report = &mut reports[member as usize];
                report.bytes = share - given;
                given = share;
                report.bits_per_element = report.bytes as f64 * 8.0 / (elements(member).max(1) as f64);
            }
            // A bundle without elements still may have a payload.
            if let (0, Some(&first)) = (total, members.first()) {
                reports[first as usize].bytes = bytes;
            }
        }
        for (index, report) in reports.iter_mut().enumerate() {
            let Some(target) = self.targets().of_array(index) else { continue };
            let layers = self.layer_indices(target);
            report.layers = layers.len();
            report.all_layers = all_layers[target];
            report.distortion = layers.last().map(|&layer| self.layers()[layer as usize].distortion);
        }
        reports
    }

    fn unfilled_report(&self, array: &ArrayEntry) -> ArrayReport {
        ArrayReport {
            spec: array.spec.clone(),
            recipe: self.recipe(array).to_owned(),
            shard: self.manifest().shards.get(array.shard).map_or(String::new(), |shard| shard.name.clone()),
            storage: array.storage,
            bytes: 0,
            bits_per_element: 0.0,
            layers: 0,
            all_layers: 0,
            distortion: None,
        }
    }
}
