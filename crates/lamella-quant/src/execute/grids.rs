//! A scale and a zero point for every row and group of features.

use super::{BLOCK, TILE};

/// One group of one tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    /// One a row; 0 in rows that fill up the tile.
    pub(super) scales: [f32; TILE],
    /// The unsigned code that stands for zero, one a row.
    pub(super) zeros: [u8; TILE],
}

/// The groups of one tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileGrids<'a> {
    pub(super) grids: &'a [Grid],
    /// Blocks of a group.
    pub(super) blocks: usize,
}

impl TileGrids<'_> {
    /// Whether a group ends behind this one of so many blocks.
    #[inline]
    pub(super) fn ends(&self, block: usize, n_blocks: usize) -> bool {
        (block + 1).is_multiple_of(self.blocks) || block + 1 == n_blocks
    }
}

/// Scales and zero points of a packed matrix whose codes are read as `scale * (code - zero)`, codes unsigned.
#[derive(Debug, Clone)]
pub struct Grids {
    blocks: usize,
    groups: usize,
    /// `[tiles, groups]`.
    grids: Vec<Grid>,
}

impl Grids {
    /// Grids of zeros for `rows` of `columns` in groups of `group_size`, a multiple of [`BLOCK`].
    ///
    /// # Panics
    /// Where the group size is no positive multiple of [`BLOCK`].
    pub fn zeros(rows: usize, columns: usize, group_size: usize) -> Self {
        assert!(group_size > 0 && group_size.is_multiple_of(BLOCK), "groups are whole blocks");
        let groups = columns.div_ceil(group_size);
        let zero = Grid { scales: [0.0; TILE], zeros: [0; TILE] };
        Self { blocks: group_size / BLOCK, groups, grids: vec![zero; rows.div_ceil(TILE) * groups] }
    }

    /// Sets one grid.
    ///
    /// # Panics
    /// Where there is no such row or group.
    pub fn set(&mut self, row: usize, group: usize, scale: f32, zero: u8) {
        assert!(group < self.groups, "no such group");
        let grid = &mut self.grids[row / TILE * self.groups + group];
        (grid.scales[row % TILE], grid.zeros[row % TILE]) = (scale, zero);
    }

    /// Scale and zero point of a row's group.
    ///
    /// # Panics
    /// Where there is no such row or group.
    pub fn get(&self, row: usize, group: usize) -> (f32, u8) {
        assert!(group < self.groups, "no such group");
        let grid = &self.grids[row / TILE * self.groups + group];
        (grid.scales[row % TILE], grid.zeros[row % TILE])
    }

    /// Features of a group.
    pub fn group_size(&self) -> usize {
        self.blocks * BLOCK
    }

    /// Bytes in memory.
    pub fn size_bytes(&self) -> usize {
        size_of_val(&self.grids[..])
    }

    pub(super) fn tile(&self, tile: usize) -> TileGrids<'_> {
        TileGrids { grids: &self.grids[tile * self.groups..][..self.groups], blocks: self.blocks }
    }

    pub(super) fn fits(&self, rows: usize, columns: usize) -> bool {
        self.grids.len() == rows.div_ceil(TILE) * self.groups
            && self.groups == columns.div_ceil(self.group_size())
    }
}
