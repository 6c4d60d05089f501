//! Budgets and allocation: who gets how many bits.
