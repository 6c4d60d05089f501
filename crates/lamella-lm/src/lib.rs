//! The language-model runtime: load, calibrate, run, evaluate.
