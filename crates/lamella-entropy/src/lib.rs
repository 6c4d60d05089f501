//! Entropy models and coders: rANS, range coding, Huffman, Golomb-Rice, bit packing.
