//! [`MsrTree`]: a small number for each MSR and direction, found in four dependent loads.
//!
//! It knows nothing of what the numbers mean. 0 is what an MSR has that was never set.

use alloc::vec::Vec;

use crate::{Access, MsrIndex};

/// What the tree holds, and the links that it is made of.
pub(crate) type Number = u16;
type Node = [Number; 256];
/// The numbers of 64 neighbours, for reads and for writes.
type Leaf = [[Number; 2]; 64];

/// By index bits 31:22, 21:14, 13:6 and 5:0. A link that is 0 leads to the first of the next level, where all is 0.
#[derive(Clone, Debug)]
pub(crate) struct MsrTree {
    root: Vec<Number>,
    upper: Vec<Node>,
    lower: Vec<Node>,
    leaves: Vec<Leaf>,
}

impl MsrTree {
    pub(crate) fn new() -> Self {
        Self {
            root: alloc::vec![0; 1024],
            upper: alloc::vec![[0; 256]],
            lower: alloc::vec![[0; 256]],
            leaves: alloc::vec![[[0; 2]; 64]],
        }
    }

    #[inline]
    pub(crate) fn get(&self, index: MsrIndex, access: Access) -> Number {
        let [top, upper, lower, slot] = digits(index.0);
        let node = usize::from(self.root[top]);
        let node = usize::from(self.upper[node][upper]);
        let leaf = usize::from(self.lower[node][lower]);
        self.leaves[leaf][slot][access as usize]
    }

    /// Gives the MSRs from `first` to `last` a number. `None`: there is no room for more than 65,535 leaves; the MSRs
    /// before the one that did not fit have the number.
    pub(crate) fn set(
        &mut self,
        first: MsrIndex,
        last: MsrIndex,
        access: Access,
        number: Number,
    ) -> Option<()> {
        for page in first.0 / 64..=last.0 / 64 {
            let leaf = self.leaf_mut(page)?;
            let start = first.0.saturating_sub(page * 64).min(63) as usize;
            let end = (last.0 - page * 64).min(63) as usize;
            for slot in &mut leaf[start..=end] {
                slot[access as usize] = number;
            }
        }
        Some(())
    }

    /// The leaf of 64 neighbours, made where there is none.
    fn leaf_mut(&mut self, page: u32) -> Option<&mut Leaf> {
        let [top, upper, lower, _] = digits(page * 64);
        let node = child(&mut self.root[top], &mut self.upper, [0; 256])?;
        let node = child(&mut self.upper[node][upper], &mut self.lower, [0; 256])?;
        let leaf = child(&mut self.lower[node][lower], &mut self.leaves, [[0; 2]; 64])?;
        Some(&mut self.leaves[leaf])
    }
}

/// Where `index` is found at each level.
const fn digits(index: u32) -> [usize; 4] {
    [
        (index >> 22) as usize,
        (index >> 14 & 0xff) as usize,
        (index >> 6 & 0xff) as usize,
        (index & 0x3f) as usize,
    ]
}

/// The node that `link` leads to, made where it leads nowhere.
fn child<T>(link: &mut Number, nodes: &mut Vec<T>, empty: T) -> Option<usize> {
    if *link == 0 {
        *link = Number::try_from(nodes.len()).ok()?;
        nodes.push(empty);
    }
    Some(usize::from(*link))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(first: u32, last: u32, access: Access) -> MsrTree {
        let mut tree = MsrTree::new();
        tree.set(MsrIndex(first), MsrIndex(last), access, 7)
            .unwrap();
        tree
    }

    #[test]
    fn range_across_leaves_reaches_its_ends_and_not_its_neighbours() {
        let tree = tree(0x3e, 0x4081, Access::Read);
        for index in [0x3e, 0x3f, 0x40, 0x4000, 0x4081] {
            assert_eq!(tree.get(MsrIndex(index), Access::Read), 7, "{index:#x}");
            assert_eq!(tree.get(MsrIndex(index), Access::Write), 0);
        }
        for index in [0, 0x3d, 0x4082, 0x40_003e, u32::MAX] {
            assert_eq!(tree.get(MsrIndex(index), Access::Read), 0, "{index:#x}");
        }
    }

    #[test]
    fn last_index_can_be_set() {
        let tree = tree(u32::MAX, u32::MAX, Access::Write);
        assert_eq!(tree.get(MsrIndex(u32::MAX), Access::Write), 7);
        assert_eq!(tree.get(MsrIndex(u32::MAX - 1), Access::Write), 0);
    }

    #[test]
    fn whole_index_space_is_refused_in_bounded_room() {
        let mut tree = MsrTree::new();
        let whole = (MsrIndex(0), MsrIndex(u32::MAX));
        assert_eq!(tree.set(whole.0, whole.1, Access::Read, 7), None);
        assert!(tree.leaves.len() <= 1 << 16);
    }
}
