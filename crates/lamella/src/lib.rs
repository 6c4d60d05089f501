//! Lamella: the facade library.
