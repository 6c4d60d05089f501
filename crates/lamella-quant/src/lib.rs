//! Quantisers and solvers: grids, round-to-nearest, GPTQ and the entropy-coded LDLQ sweep.
