//! A network over a source of arrays: open, run block by block, read logits or embeddings.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use lamella_codec::{ArraySpec, TensorSource};
use rayon::prelude::*;
use serde_json::Value;

use crate::LmError;
use crate::block::Block;
use crate::check::{check, check_counts, completed};
use crate::config::{Positions, TransformerConfig};
use crate::embedding::{Pooling, Table};
use crate::head::{Head, normed};
use crate::hidden::Hidden;
use crate::kv_cache::Cache;
use crate::linear::{Linear, OperatorLookup, read_vector};
use crate::norm::Norm;
use crate::plan::TransformerPlan;
use crate::rope::Rotations;
use crate::site::{Family, LinearSite, Observer, Watch};

/// A language model or encoder.
///
/// Weights stay where they are: every block is read when it runs, so memory holds one block beside the
/// activations. [`Network::resident`] reads all of them once instead, for repeated evaluation. Results are the same
/// bits either way and at any thread count.
pub struct Network {
    config: TransformerConfig,
    plan: TransformerPlan,
    source: Arc<dyn TensorSource>,
    linears: Vec<LinearSite>,
    unused: Vec<String>,
    pooling: Pooling,
    tables: BTreeMap<String, Table<'static>>,
    blocks: Vec<Arc<Block>>,
    head: OnceLock<Arc<Head>>,
}

/// All results, or the first error.
fn in_order<T>(results: Vec<Result<T, LmError>>) -> Result<Vec<T>, LmError> {
    results.into_iter().collect()
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network")
            .field("architecture", &self.config.architecture)
            .field("n_blocks", &self.n_blocks())
            .field("is_resident", &self.is_resident())
            .finish_non_exhaustive()
    }
}

impl Network {
    /// Reads a Hugging Face configuration and checks that every array it asks for exists in the right shape. No
    /// weights are read.
    ///
    /// # Errors
    /// [`LmError::UnknownArchitecture`] (callers may then treat the arrays without a network), bad fields, arrays
    /// that are missing, have another shape, or hold no floats; biases the configuration does not mention.
    pub fn open(config: &Value, source: Arc<dyn TensorSource>) -> Result<Self, LmError> {
        let specs: HashMap<&str, &ArraySpec> =
            source.arrays().iter().map(|spec| (spec.name.as_str(), spec)).collect();
        let config = TransformerConfig::from_json(&completed(config, &specs))?;
        check_counts(&config, specs.len())?;
        let plan = TransformerPlan::new(&config, &|name| Some(specs.get(name)?.shape.clone()));
        let linears = plan.linears();
        check(&config.architecture, &specs, &linears, &plan.others)?;
        let used: HashSet<&str> = linears
            .iter()
            .flat_map(|site| [Some(site.weight.as_str()), site.bias.as_deref()])
            .flatten()
            .chain(plan.others.iter().map(|(name, _)| name.as_str()))
            .collect();
        let unused = source
            .arrays()
            .iter()
            .map(|spec| &spec.name)
            .filter(|name| !used.contains(name.as_str()))
            .cloned()
            .collect();
        Ok(Self {
            config,
            plan,
            source,
            linears,
            unused,
            pooling: Pooling::default(),
            tables: BTreeMap::new(),
            blocks: Vec::new(),
            head: OnceLock::new(),
        })
    }

    /// Reads all weights once.
    ///
    /// # Errors
    /// Arrays that cannot be read.
    pub fn resident(self) -> Result<Self, LmError> {
        self.resident_with(&|_| None)
    }

    /// As [`Network::resident`], with the linears that `operators` knows kept in coded form. Arrays are read side by
    /// side.
    ///
    /// # Errors
    /// Arrays that cannot be read; the first of them in the network's order.
    pub fn resident_with(mut self, operators: &OperatorLookup<'_>) -> Result<Self, LmError> {
        let tables = || {
            let sites = self.plan.tables(&self.config);
            let read = |site: LinearSite| {
                let length = site.in_features * site.out_features;
                let table = match operators(&site) {
                    Some(operator) => Table::Coded(operator),
                    None => Table::Resident(Arc::new(read_vector(&*self.source, &site.weight, length)?)),
                };
                Ok((site.weight, table))
            };
            in_order(sites.into_par_iter().map(read).collect()).map(BTreeMap::from_iter)
        };
        let block = |index| Ok(Arc::new(self.load_block(index, &*self.source, operators)?));
        let blocks = || in_order((0..self.n_blocks()).into_par_iter().map(block).collect());
        let own_head = || match &self.plan.head {
            Some(site) if self.plan.tables(&self.config).iter().any(|table| table.weight == site.weight) => {
                None
            }
            _ => Some(self.load_head(&*self.source, operators)),
        };
        let (blocks, (tables, head)) = rayon::join(blocks, || rayon::join(tables, own_head));
        (self.tables, self.blocks) = (tables?, blocks?);
        // A tied head shares the table.
        let head = head.unwrap_or_else(|| self.load_head(&*self.source, operators))?;
        self.head = OnceLock::from(Arc::new(head));
        Ok(self)
    }

    /// Whether all weights are in memory.
    pub fn is_resident(&self) -> bool {
        self.blocks.len() == self.n_blocks()
    }
    /// Bytes of all weights in memory; 0 unless [resident](Network::resident). A tied head counts once.
    pub fn resident_bytes(&self) -> usize {
        let mut bytes = self.tables.values().map(Table::resident_bytes).sum();
        let mut count = |linear: &Linear| bytes += linear.resident_bytes();
        for block in &self.blocks {
            block.for_each_linear(&mut count);
        }
        if let (true, Some(head)) = (self.is_resident(), self.head.get()) {
            let own = head.linear.iter().filter(|linear| !self.tables.contains_key(&linear.site.weight));
            own.for_each(count);
        }
        bytes
    }
    /// Decoder or encoder.
    pub fn family(&self) -> Family {
        self.config.family
    }
    /// The architecture's name by the configuration.
    pub fn architecture(&self) -> &str {
        &self.config.architecture
    }
    /// What the configuration says.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }
    /// Blocks.
    pub fn n_blocks(&self) -> usize {
        self.config.n_blocks
    }
    /// Tokens of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }
    /// Tokens of context the network was made for.
    pub fn context_length(&self) -> usize {
        self.config.context_length
    }
    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }
    /// Every linear in the order it runs, the head last. A tied head names the embedding's array.
    pub fn linears(&self) -> &[LinearSite] {
        &self.linears
    }
    /// Arrays that are looked up: token embedding first, then positions and token types where they exist.
    pub fn embeddings(&self) -> Vec<String> {
        self.plan.tables(&self.config).into_iter().map(|site| site.weight).collect()
    }
    /// Arrays of the checkpoint that this network does not read.
    pub fn unused_arrays(&self) -> &[String] {
        &self.unused
    }
    /// Chooses how [`Network::embed`] makes one vector of a text.
    pub fn set_pooling(&mut self, pooling: Pooling) {
        self.pooling = pooling;
    }
    /// The source the weights come from.
    pub fn source(&self) -> &Arc<dyn TensorSource> {
        &self.source
    }

    /// Embeds a batch of sequences; lengths may differ, empty ones are allowed.
    ///
    /// # Errors
    /// Tokens outside the vocabulary; sequences longer than learned positions; arrays that cannot be read.
    pub fn begin(&self, sequences: &[Vec<u32>]) -> Result<Hidden, LmError> {
        self.begin_at(&*self.source, sequences, None, vec![0; sequences.len()])
    }

    /// As [`Network::begin`] with a token type for every token (encoders of text pairs); [`Network::begin`] takes 0.
    ///
    /// # Errors
    /// As [`Network::begin`]; types that do not fit the sequences or the table.
    pub fn begin_with_types(&self, sequences: &[Vec<u32>], types: &[Vec<u32>]) -> Result<Hidden, LmError> {
        let fits = sequences.len() == types.len()
            && sequences.iter().zip(types).all(|(sequence, types)| sequence.len() == types.len())
            && types.iter().flatten().all(|&kind| (kind as usize) < self.config.type_vocab_size);
        if !fits {
            return Err(self.unsupported(format!(
                "needs one token type below {} for every token",
                self.config.type_vocab_size
            )));
        }
        self.begin_at(&*self.source, sequences, Some(types), vec![0; sequences.len()])
    }

    /// As [`Network::begin`] with the tables of another source.
    ///
    /// # Errors
    /// As [`Network::begin`].
    pub fn begin_with(&self, source: &dyn TensorSource, sequences: &[Vec<u32>]) -> Result<Hidden, LmError> {
        self.begin_at(source, sequences, None, vec![0; sequences.len()])
    }

    fn begin_at(
        &self,
        source: &dyn TensorSource,
        sequences: &[Vec<u32>],
        kinds: Option<&[Vec<u32>]>,
        starts: Vec<usize>,
    ) -> Result<Hidden, LmError> {
        let config = &self.config;
        let is_own = std::ptr::addr_eq(source, &*self.source);
        let sites = self.plan.tables(config);
        let table = |name: &str| match self.tables.get(name) {
            Some(table) if is_own => Ok(table.clone()),
            _ => {
                let rows = sites.iter().find(|site| site.weight == name).map_or(0, |site| site.out_features);
                Table::open(source, name, (rows, config.hidden_size))
            }
        };
        let tokens = table(&self.plan.token_embedding)?;
        let types = self.plan.type_embedding.as_deref().map(table).transpose()?;
        let positions = self.plan.position_embedding.as_deref().map(table).transpose()?;
        let mut offsets = vec![0];
        let mut values = vec![0.0; sequences.iter().map(Vec::len).sum::<usize>() * config.hidden_size];
        let mut rows = values.chunks_exact_mut(config.hidden_size);
        for (number, (sequence, &start)) in sequences.iter().zip(&starts).enumerate() {
            offsets.push(offsets[offsets.len() - 1] + sequence.len());
            if let Positions::Learned { rows, offset } = config.positions
                && start + sequence.len() > rows - offset
            {
                return Err(LmError::TooLong { tokens: start + sequence.len(), positions: rows - offset });
            }
            for (index, (&token, row)) in sequence.iter().zip(&mut rows).enumerate() {
                if token as usize >= config.vocab_size {
                    return Err(LmError::Token { token, vocab_size: config.vocab_size });
                }
                tokens.add_row(token as usize, row)?;
                if let Some(types) = &types {
                    types.add_row(kinds.map_or(0, |kinds| kinds[number][index] as usize), row)?;
                }
                if let (Some(positions), Positions::Learned { offset, .. }) = (&positions, &config.positions)
                {
                    positions.add_row(start + index + offset, row)?;
                }
            }
        }
        if let Some(plan) = &self.plan.embedding_norm {
            let norm = Norm::load(plan, config.norm, config.norm_epsilon, config.hidden_size, source)?;
            norm.rows(&mut values);
        }
        let rotations = match &config.positions {
            Positions::Rotary(rope) => {
                let mut tables: BTreeMap<(usize, usize), Arc<Rotations>> = BTreeMap::new();
                let lengths = sequences.iter().map(Vec::len);
                let table = |(start, length): (usize, usize)| {
                    let make = || Arc::new(Rotations::new(rope, start, length));
                    tables.entry((start, length)).or_insert_with(make).clone()
                };
                starts.iter().copied().zip(lengths).map(table).collect()
            }
            Positions::Learned { .. } | Positions::Order => Vec::new(),
        };
        Ok(Hidden {
            values,
            hidden_size: config.hidden_size,
            offsets,
            starts,
            rotations,
            first_values: Vec::new(),
        })
    }

    fn unsupported(&self, message: String) -> LmError {
        LmError::Unsupported { architecture: self.config.architecture.clone(), message }
    }

    fn load_block(
        &self,
        index: usize,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Block, LmError> {
        let plan = self.plan.blocks.get(index).ok_or(LmError::Block { index, n_blocks: self.n_blocks() })?;
        Block::load(plan, &self.config, source, operators)
    }

    fn own_block(&self, index: usize) -> Result<Arc<Block>, LmError> {
        match self.blocks.get(index) {
            Some(block) => Ok(block.clone()),
            None => Ok(Arc::new(self.load_block(index, &*self.source, &|_| None)?)),
        }
    }

    /// Runs one block over a batch.
    ///
    /// # Errors
    /// Arrays that cannot be read; an index beyond the last block.
    pub fn block(
        &self,
        index: usize,
        hidden: &mut Hidden,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), LmError> {
        self.own_block(index)?.forward(index, hidden, None, &mut Watch(observer));
        Ok(())
    }

    /// As [`Network::block`] with weights from another source, one that holds the already quantised block for
    /// instance.
    ///
    /// # Errors
    /// As [`Network::block`].
    pub fn block_with(
        &self,
        index: usize,
        source: &dyn TensorSource,
        hidden: &mut Hidden,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), LmError> {
        let block = self.load_block(index, source, &|_| None)?;
        block.forward(index, hidden, None, &mut Watch(observer));
        Ok(())
    }

    /// Runs all blocks over a batch.
    ///
    /// # Errors
    /// As [`Network::begin`] and [`Network::block`].
    pub fn forward(&self, sequences: &[Vec<u32>]) -> Result<Hidden, LmError> {
        let mut hidden = self.begin(sequences)?;
        for index in 0..self.n_blocks() {
            self.block(index, &mut hidden, None)?;
        }
        Ok(hidden)
    }

    /// An empty memory for one sequence.
    pub fn cache(&self) -> Cache {
        Cache::new(self.n_blocks())
    }

    /// Runs all blocks over further tokens of sequences whose earlier tokens are in `caches`, and adds them there.
    ///
    /// # Errors
    /// As [`Network::forward`]; [`LmError::Unsupported`] for encoders and where there is not one cache per
    /// sequence. After an error the caches must not be used again.
    pub fn extend(&self, sequences: &[Vec<u32>], caches: &mut [Cache]) -> Result<Hidden, LmError> {
        if self.family() == Family::Encoder {
            return Err(self.unsupported("is an encoder and cannot extend a text".to_owned()));
        }
        if sequences.len() != caches.len() || caches.iter().any(|cache| cache.blocks.len() != self.n_blocks())
        {
            return Err(self.unsupported(format!(
                "needs one cache of {} blocks for each of {} sequences",
                self.n_blocks(),
                sequences.len()
            )));
        }
        let starts = caches.iter().map(Cache::n_tokens).collect();
        let mut hidden = self.begin_at(&*self.source, sequences, None, starts)?;
        for index in 0..self.n_blocks() {
            self.own_block(index)?.forward(index, &mut hidden, Some(caches), &mut Watch(None));
        }
        for (cache, sequence) in caches.iter_mut().zip(sequences) {
            cache.n_tokens += sequence.len();
        }
        Ok(hidden)
    }

    fn load_head(&self, source: &dyn TensorSource, operators: &OperatorLookup<'_>) -> Result<Head, LmError> {
        let is_own = std::ptr::addr_eq(source, &*self.source);
        let tied = self.plan.head.as_ref().and_then(|site| self.tables.get(&site.weight));
        Head::load(&self.plan, &self.config, tied.filter(|_| is_own), source, operators)
    }

    fn own_head(&self) -> Result<Arc<Head>, LmError> {
        if let Some(head) = self.head.get() {
            return Ok(head.clone());
        }
        let head = Arc::new(self.load_head(&*self.source, &|_| None)?);
        Ok(self.head.get_or_init(|| head).clone())
    }

    fn head_logits(
        &self,
        head: &Head,
        hidden: &Hidden,
        range: Range<usize>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<Vec<f32>, LmError> {
        head.logits(hidden, range, &mut Watch(observer))
            .ok_or_else(|| self.unsupported("is an encoder and has no logits".to_owned()))
    }

    /// Logits after every token, `[total_tokens, vocab_size]`.
    ///
    /// # Errors
    /// Arrays that cannot be read; [`LmError::Unsupported`] for encoders.
    pub fn logits(&self, hidden: &Hidden, observer: Option<&mut dyn Observer>) -> Result<Vec<f32>, LmError> {
        self.logits_range(hidden, 0..hidden.n_tokens(), observer)
    }

    /// Logits after some tokens (rows of `hidden`; the part of the range that exists), so that callers bound memory.
    ///
    /// # Errors
    /// As [`Network::logits`].
    pub fn logits_range(
        &self,
        hidden: &Hidden,
        range: Range<usize>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<Vec<f32>, LmError> {
        self.head_logits(&*self.own_head()?, hidden, range, observer)
    }

    /// As [`Network::logits_range`] with norm and head of another source.
    ///
    /// # Errors
    /// As [`Network::logits`].
    pub fn logits_with(
        &self,
        source: &dyn TensorSource,
        hidden: &Hidden,
        range: Range<usize>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<Vec<f32>, LmError> {
        self.head_logits(&self.load_head(source, &|_| None)?, hidden, range, observer)
    }

    /// Shows the head's inputs to an observer without multiplying (or reading) the head.
    ///
    /// # Errors
    /// Arrays that cannot be read.
    pub fn observe_head(&self, hidden: &Hidden, observer: &mut dyn Observer) -> Result<(), LmError> {
        if let Some(site) = &self.plan.head {
            let norm = Head::load_norm(&self.plan, &self.config, &*self.source)?;
            let rows = normed(norm.as_ref(), hidden, 0..hidden.n_tokens());
            Watch(Some(observer)).see(site, &rows);
        }
        Ok(())
    }

    /// One vector of unit norm per sequence, from rows that have passed all blocks.
    pub fn embed(&self, hidden: &Hidden) -> Vec<Vec<f32>> {
        self.pooling.pool(hidden)
    }
}

// Networks are shared between threads: evaluation runs batches side by side.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Network>();
};
