//! Small dense helpers of the fit: orthonormal rows, and eigenvectors of a small symmetric matrix.

/// Makes the rows of `[.., n]` orthonormal, one after the other (twice, for accuracy). A row that depends on those
/// before becomes zero.
pub(super) fn orthonormalize(rows: &mut [f64], n: usize) {
    let count = rows.len() / n;
    for row in 0..count {
        let (before, rest) = rows.split_at_mut(row * n);
        let current = &mut rest[..n];
        for _ in 0..2 {
            for other in before.chunks_exact(n) {
                let overlap: f64 = other.iter().zip(current.iter()).map(|(a, b)| a * b).sum();
                current.iter_mut().zip(other).for_each(|(cell, &v)| *cell -= overlap * v);
            }
        }
        let norm = current.iter().map(|v| v * v).sum::<f64>().sqrt();
        let scale = if norm > 1e-300 { 1.0 / norm } else { 0.0 };
        current.iter_mut().for_each(|cell| *cell *= scale);
    }
}

/// Eigenvalues, largest first, and eigenvectors as rows, of a symmetric `[n, n]` matrix: cyclic Jacobi rotations.
pub(super) fn symmetric_eigen(mut matrix: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    for _ in 0..12 {
        let total: f64 = matrix.iter().map(|v| v * v).sum();
        let diagonal: f64 = (0..n).map(|i| matrix[i * n + i].powi(2)).sum();
        if total - diagonal <= 1e-20 * total {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let (app, aqq) = (matrix[p * n + p], matrix[q * n + q]);
                // Rounding leaves the two triangles slightly apart.
                let apq = 0.5 * (matrix[p * n + q] + matrix[q * n + p]);
                if apq.abs() <= 1e-16 * (app.abs() + aqq.abs()) {
                    continue;
                }
                let ratio = (aqq - app) / (2.0 * apq);
                let tangent = ratio.signum() / (ratio.abs() + (1.0 + ratio * ratio).sqrt());
                let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                let sine = tangent * cosine;
                for k in 0..n {
                    let (a, b) = (matrix[k * n + p], matrix[k * n + q]);
                    matrix[k * n + p] = cosine * a - sine * b;
                    matrix[k * n + q] = sine * a + cosine * b;
                }
                rotate(&mut matrix, p, q, n, cosine, sine);
                rotate(&mut vectors, p, q, n, cosine, sine);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| matrix[b * n + b].total_cmp(&matrix[a * n + a]));
    let values = order.iter().map(|&i| matrix[i * n + i]).collect();
    let sorted = order.iter().flat_map(|&i| vectors[i * n..(i + 1) * n].iter().copied()).collect();
    (values, sorted)
}

/// Rotates rows `p < q`.
fn rotate(matrix: &mut [f64], p: usize, q: usize, n: usize, cosine: f64, sine: f64) {
    let (before, after) = matrix.split_at_mut(q * n);
    let pairs = before[p * n..(p + 1) * n].iter_mut().zip(&mut after[..n]);
    for (left, right) in pairs {
        let (a, b) = (*left, *right);
        *left = cosine * a - sine * b;
        *right = sine * a + cosine * b;
    }
}
