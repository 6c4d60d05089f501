//! Weighted k-means over short vectors, the same on every run and at any thread count.

use rayon::prelude::*;

/// Vectors whose nearest centroids one task finds; fixed, so that sums do not depend on the thread count.
const VECTORS_PER_CHUNK: usize = 4096;

/// How centroids are fitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KMeans {
    /// Centroids.
    pub clusters: usize,
    /// Most rounds of assigning and averaging.
    pub iterations: usize,
    /// Ends where a round lowers the weighted error by less than this fraction.
    pub tolerance: f64,
    /// Which vectors the centroids start from.
    pub seed: u64,
}

/// Centroids prepared for searching: one row per coordinate.
#[derive(Debug, Clone, PartialEq)]
pub struct Codebook {
    dimension: usize,
    clusters: usize,
    /// `[dimension, clusters]`.
    by_coordinate: Vec<f32>,
}

impl Codebook {
    /// From centroids, `[clusters, dimension]`.
    pub fn new(centroids: &[f32], dimension: usize) -> Self {
        let clusters = centroids.len().checked_div(dimension).unwrap_or(0);
        let at = |i: usize| centroids[i % clusters * dimension + i / clusters];
        Self { dimension, clusters, by_coordinate: (0..clusters * dimension).map(at).collect() }
    }

    /// The nearest centroid by squared distance, the first of equals. A vector shorter than the dimension is compared
    /// in the coordinates it has. `scratch` is resized as needed.
    pub fn nearest(&self, vector: &[f32], scratch: &mut Vec<f32>) -> usize {
        self.nearest_weighted(vector, &[], scratch)
    }

    /// [`Codebook::nearest`] with a weight per coordinate; none for equal weights.
    pub fn nearest_weighted(&self, vector: &[f32], weights: &[f32], scratch: &mut Vec<f32>) -> usize {
        scratch.clear();
        scratch.resize(self.clusters, 0.0);
        for (coordinate, &value) in vector.iter().enumerate().take(self.dimension) {
            let weight = weights.get(coordinate).copied().unwrap_or(1.0);
            let row = &self.by_coordinate[coordinate * self.clusters..][..self.clusters];
            for (distance, &centroid) in scratch.iter_mut().zip(row) {
                let difference = value - centroid;
                *distance += weight * difference * difference;
            }
        }
        let mut best = 0;
        for (cluster, distance) in scratch.iter().enumerate() {
            if *distance < scratch[best] {
                best = cluster;
            }
        }
        best
    }
}

/// What one chunk of vectors adds to the next round: weighted sums, weights, the worst vector, and the error.
struct Part {
    sums: Vec<f64>,
    weights: Vec<f64>,
    worst: (f64, usize),
    error: f64,
}

impl KMeans {
    /// Centroids `[clusters, dimension]` of the vectors `[n, dimension]`, each counted `weights[i]` times (all alike
    /// where `weights` is empty). Empty clusters move to the vector that is worst served.
    ///
    /// Fewer vectors than clusters repeat themselves; none at all give zeros.
    ///
    /// # Panics
    /// Where weights are given for another number of vectors: a caller's mistake.
    pub fn fit(&self, vectors: &[f32], dimension: usize, weights: &[f32]) -> Vec<f32> {
        let n = vectors.len().checked_div(dimension).unwrap_or(0);
        assert!(weights.is_empty() || weights.len() == n, "one weight per vector is needed");
        if n == 0 || self.clusters == 0 {
            return vec![0.0; self.clusters * dimension];
        }
        let mut centroids = self.start(vectors, dimension, n);
        let mut before = f64::INFINITY;
        for _ in 0..self.iterations {
            let parts = self.assign(&centroids, vectors, dimension, weights);
            let error: f64 = parts.iter().map(|part| part.error).sum();
            self.average(&mut centroids, &parts, vectors, dimension);
            let is_settled = before.is_finite() && before - error <= self.tolerance * before;
            before = error;
            if is_settled {
                break;
            }
        }
        centroids
    }

    /// Distinct vectors drawn at random, while there are any.
    fn start(&self, vectors: &[f32], dimension: usize, n: usize) -> Vec<f32> {
        let mut state = self.seed;
        let mut random = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        let mut order: Vec<usize> = (0..n).collect();
        for i in 0..self.clusters.min(n) {
            let other = i + (random() % (n - i) as u64) as usize;
            order.swap(i, other);
        }
        (0..self.clusters).flat_map(|k| &vectors[order[k % n] * dimension..][..dimension]).copied().collect()
    }

    fn assign(&self, centroids: &[f32], vectors: &[f32], dimension: usize, weights: &[f32]) -> Vec<Part> {
        let codebook = Codebook::new(centroids, dimension);
        vectors
            .par_chunks(VECTORS_PER_CHUNK * dimension)
            .enumerate()
            .map(|(chunk, vectors)| {
                let mut part = Part {
                    sums: vec![0.0; self.clusters * dimension],
                    weights: vec![0.0; self.clusters],
                    worst: (-1.0, 0),
                    error: 0.0,
                };
                let mut scratch = Vec::new();
                for (i, vector) in vectors.chunks_exact(dimension).enumerate() {
                    let index = chunk * VECTORS_PER_CHUNK + i;
                    let weight = weights.get(index).map_or(1.0, |&weight| f64::from(weight));
                    let cluster = codebook.nearest(vector, &mut scratch);
                    let loss = weight * f64::from(scratch[cluster]);
                    part.error += loss;
                    if loss > part.worst.0 {
                        part.worst = (loss, index);
                    }
                    part.weights[cluster] += weight;
                    let sums = &mut part.sums[cluster * dimension..][..dimension];
                    sums.iter_mut().zip(vector).for_each(|(sum, &v)| *sum += weight * f64::from(v));
                }
                part
            })
            .collect()
    }

    fn average(&self, centroids: &mut [f32], parts: &[Part], vectors: &[f32], dimension: usize) {
        // The worst vectors of the chunks, the very worst first, are where empty clusters go.
        let mut worst: Vec<(f64, usize)> = parts.iter().map(|part| part.worst).collect();
        worst.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut homes = worst.into_iter().filter(|home| home.0 > 0.0);
        for (cluster, centroid) in centroids.chunks_exact_mut(dimension).enumerate() {
            let weight: f64 = parts.iter().map(|part| part.weights[cluster]).sum();
            if weight > 0.0 {
                for (coordinate, value) in centroid.iter_mut().enumerate() {
                    let at = cluster * dimension + coordinate;
                    *value = (parts.iter().map(|part| part.sums[at]).sum::<f64>() / weight) as f32;
                }
            } else if let Some((_, index)) = homes.next() {
                centroid.copy_from_slice(&vectors[index * dimension..][..dimension]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(clusters: usize) -> KMeans {
        KMeans { clusters, iterations: 50, tolerance: 1e-6, seed: 1 }
    }

    #[test]
    fn separate_heaps_are_found_and_weights_pull() {
        let vectors = [0.0, 0.0, 0.0, 1.0, 10.0, 10.0, 10.0, 11.0];
        let mut found = settings(2).fit(&vectors, 2, &[]);
        if found[0] > 5.0 {
            found.rotate_left(2);
        }
        assert_eq!(found, [0.0, 0.5, 10.0, 10.5]);
        assert_eq!(settings(1).fit(&[0.0, 4.0], 1, &[3.0, 1.0]), [1.0]);
    }

    #[test]
    fn as_many_clusters_as_vectors_have_no_error_and_short_vectors_are_compared_in_part() {
        let vectors: Vec<f32> = (0..24).map(|i| (i * 7 % 24) as f32).collect();
        let centroids = settings(8).fit(&vectors, 3, &[]);
        let codebook = Codebook::new(&centroids, 3);
        let mut scratch = Vec::new();
        for vector in vectors.chunks_exact(3) {
            let nearest = codebook.nearest(vector, &mut scratch);
            assert_eq!(&centroids[nearest * 3..][..3], vector);
            assert_eq!(codebook.nearest(&vector[..1], &mut scratch), nearest);
        }
        assert_eq!(settings(3).fit(&[], 2, &[]), [0.0; 6]);
    }
}
