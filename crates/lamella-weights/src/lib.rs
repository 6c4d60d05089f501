//! The weight wing: the recipes and systems that compress model weights.
