//! The .lam container: manifest, layers, checksums, cutting and resuming.
