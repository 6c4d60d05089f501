//! The order of layers in a file.

/// What an order depends on: for each target its layers' lengths and distortions, in the order they are applied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerGain {
    /// Bytes of the payload.
    pub length_bytes: u64,
    /// Distortion once the layer is applied, times what it costs the task (any unit shared by all targets).
    pub distortion: f64,
}

/// The order of layers, by target number, in which every prefix buys most: first the first layer of each target in
/// turn, so that the file is complete as early as possible; then all others by gain per byte, the largest first.
///
/// A layer that gains little itself but opens the way to one that gains much is taken with it: the layers of a target
/// are merged into runs of falling gain per byte (the convex hull of its rate-distortion points), and whole runs are
/// sorted. Equal gains keep the order of targets, so the result is the same everywhere.
///
/// ```
/// use lamella_file::{LayerGain, order_by_gain};
/// let layer = |length_bytes, distortion| LayerGain { length_bytes, distortion };
/// let order = order_by_gain(&[
///     vec![layer(10, 9.0), layer(10, 8.0)],
///     vec![layer(10, 9.0), layer(10, 8.9), layer(10, 1.0)],
/// ]);
/// assert_eq!(order, [0, 1, 1, 1, 0]);
/// ```
pub fn order_by_gain(targets: &[Vec<LayerGain>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..targets.len()).filter(|&target| !targets[target].is_empty()).collect();
    let mut runs: Vec<Run> = Vec::new();
    for (target, layers) in targets.iter().enumerate() {
        let first_run = runs.len();
        for pair in layers.array_windows::<2>() {
            let gain = (pair[0].distortion - pair[1].distortion).max(0.0);
            let mut run = Run { target, layers: 1, bytes: pair[1].length_bytes as f64, gain };
            while runs.len() > first_run && runs.last().is_some_and(|last| !last.is_steeper_than(&run)) {
                if let Some(last) = runs.pop() {
                    run = Run {
                        target,
                        layers: last.layers + run.layers,
                        bytes: last.bytes + run.bytes,
                        gain: last.gain + run.gain,
                    };
                }
            }
            runs.push(run);
        }
    }
    // A stable sort: runs of one target have strictly falling slopes and so keep their order.
    runs.sort_by(|left, right| right.slope().total_cmp(&left.slope()));
    order.extend(runs.iter().flat_map(|run| std::iter::repeat_n(run.target, run.layers)));
    order
}

#[derive(Debug, Clone, Copy)]
struct Run {
    target: usize,
    layers: usize,
    bytes: f64,
    gain: f64,
}

impl Run {
    fn slope(&self) -> f64 {
        // An empty payload is free, whatever it gains.
        if self.bytes == 0.0 { f64::INFINITY } else { self.gain / self.bytes }
    }
    fn is_steeper_than(&self, other: &Self) -> bool {
        self.slope() > other.slope()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(points: &[(u64, f64)]) -> Vec<LayerGain> {
        points.iter().map(|&(length_bytes, distortion)| LayerGain { length_bytes, distortion }).collect()
    }

    #[test]
    fn every_target_comes_first_once() {
        let order = order_by_gain(&[
            layers(&[(5, 1.0)]),
            Vec::new(),
            layers(&[(9, 100.0), (1, 1.0), (0, 1.0)]),
            layers(&[(5, 1.0), (1, 0.5)]),
        ]);
        // The empty payload is free, so it comes with the layer before it.
        assert_eq!(order, [0, 2, 3, 2, 2, 3]);
    }

    #[test]
    fn layers_of_equal_gain_stay_in_target_order() {
        let same = layers(&[(5, 4.0), (1, 3.0), (1, 2.0)]);
        assert_eq!(order_by_gain(&[same.clone(), same]), [0, 1, 0, 0, 1, 1]);
    }
}
