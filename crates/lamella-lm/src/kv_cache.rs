//! What a network remembers of a text between calls.

/// State of one block for one sequence.
#[derive(Debug, Clone, Default)]
pub(crate) struct BlockState {
    /// Keys of an attention block, `[tokens, kv_heads * head_dim]`, rotated; unused by RWKV.
    pub(crate) keys: Vec<f32>,
    /// Values, of the same shape.
    pub(crate) values: Vec<f32>,
    /// RWKV's matrix state, `[heads, head_dim, head_dim]`.
    pub(crate) matrix: Vec<f32>,
    /// The row the time mix saw last.
    pub(crate) time_shift: Vec<f32>,
    /// The row the channel mix saw last.
    pub(crate) channel_shift: Vec<f32>,
}

/// One sequence's memory: keys and values of attention blocks, states of recurrent ones.
///
/// Made by [`crate::Network::cache`]; [`crate::Network::extend`] adds tokens to it.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    pub(crate) blocks: Vec<BlockState>,
    pub(crate) n_tokens: usize,
}

impl Cache {
    pub(crate) fn new(n_blocks: usize) -> Self {
        Self { blocks: vec![BlockState::default(); n_blocks], n_tokens: 0 }
    }
    /// Tokens seen so far.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }
    /// Keys of an attention block, `[tokens, kv_heads * head_dim]`, rotated: what a cache's codec may change.
    ///
    /// # Panics
    /// Where the network has no such block.
    pub fn keys_mut(&mut self, block: usize) -> &mut [f32] {
        &mut self.blocks[block].keys
    }
    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        self.blocks
            .iter()
            .map(|state| {
                [&state.keys, &state.values, &state.matrix, &state.time_shift, &state.channel_shift]
                    .iter()
                    .map(|numbers| size_of_val(&numbers[..]))
                    .sum::<usize>()
            })
            .sum()
    }
}
