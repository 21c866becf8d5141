//! The fewest [`Window`]s under which every [`Cell`] is decided rightly; `plan` says what that means.
//!
//! Windows are placed from left to right, one more in each round, and every way to place them is followed
//! but those that another is at least as good as. So the first round in which a [`Placement`] has decided
//! all cells has the fewest windows. Bitmaps, and what is in a cell, are not looked at here.

use super::{Cell, Layer, Window};

/// The fewest windows of at most `max_msrs` MSRs that decide `cells`; `None`: more than `limit`.
pub(super) fn cover(cells: &[Cell], max_msrs: u32, limit: usize) -> Option<Vec<Window>> {
    let mut front = vec![Placement::empty(cells)];
    for _ in 0..=limit {
        if let Some(done) = front.iter().find(|placement| placement.is_done(cells)) {
            return Some(trimmed(done.windows.clone(), cells));
        }
        let mut next = Vec::new();
        for placement in &front {
            for layer in Layer::ALL {
                if !placement.reaches(layer) {
                    keep_best(&mut next, placement.with(layer, cells, max_msrs));
                }
            }
        }
        front = next;
    }
    None
}

/// Windows that decide everything left of `next`.
#[derive(Clone, Debug)]
struct Placement {
    windows: Vec<Window>,
    /// By [`Layer`]: behind its last window.
    ends: [u64; 3],
    /// The cell that `next` lies in.
    cell: usize,
    /// The first MSR that is not decided yet.
    next: u64,
}

impl Placement {
    fn empty(cells: &[Cell]) -> Self {
        let mut placement = Self {
            windows: Vec::new(),
            ends: [0; 3],
            cell: 0,
            next: 0,
        };
        placement.advance(cells);
        placement
    }

    fn is_done(&self, cells: &[Cell]) -> bool {
        self.cell == cells.len()
    }

    fn reaches(&self, layer: Layer) -> bool {
        self.ends[layer as usize] > self.next
    }

    /// One more window, from the first MSR that is not decided. The last MSR of all is in no window.
    fn with(&self, layer: Layer, cells: &[Cell], max_msrs: u32) -> Self {
        let mut placement = self.clone();
        let end = (self.next + u64::from(max_msrs)).min(u32::MAX.into());
        placement.ends[layer as usize] = end;
        placement.windows.push(Window {
            layer,
            first: index(self.next),
            last: index(end - 1),
        });
        placement.advance(cells);
        placement
    }

    /// Goes on to the first MSR that is not decided. Every window that ends behind it begins before it.
    fn advance(&mut self, cells: &[Cell]) {
        while let Some(cell) = cells.get(self.cell) {
            let [one, other] = cell.alone.others().map(|layer| self.ends[layer as usize]);
            let end = self.ends[cell.alone as usize].max(one.min(other));
            if end <= u64::from(cell.last) {
                self.next = end.max(cell.first.into());
                return;
            }
            self.cell += 1;
        }
        self.next = u64::MAX;
    }

    /// Whether all that completes `other` completes this one too.
    fn is_as_good_as(&self, other: &Self) -> bool {
        let mut ends = self.ends.iter().zip(other.ends);
        self.next >= other.next && ends.all(|(&end, other)| end >= other || other <= self.next)
    }
}

fn keep_best(front: &mut Vec<Placement>, new: Placement) {
    if !front.iter().any(|old| old.is_as_good_as(&new)) {
        front.retain(|old| !new.is_as_good_as(old));
        front.push(new);
    }
}

/// Each window from the first to the last MSR that would be decided wrongly without it.
fn trimmed(mut windows: Vec<Window>, cells: &[Cell]) -> Vec<Window> {
    let mut cuts: Vec<u32> = windows
        .iter()
        .flat_map(|window| [window.first, window.last + 1])
        .collect();
    cuts.sort_unstable();
    for position in 0..windows.len() {
        windows[position] = trim(position, &windows, cells, &cuts);
    }
    windows
}

fn trim(position: usize, windows: &[Window], cells: &[Cell], cuts: &[u32]) -> Window {
    let holds = |layer: Layer, index: u32| {
        let mut others = windows.iter().enumerate();
        others.any(|(at, other)| at != position && other.layer == layer && other.holds(index))
    };
    let mut needed = pieces(windows[position], cells, cuts).filter(|piece| {
        let [one, other] = piece.alone.others();
        let first = piece.first;
        !(holds(piece.alone, first) || holds(one, first) && holds(other, first))
    });
    let first = needed.next().expect("without need of it there were fewer");
    let last = needed.next_back().unwrap_or(first);
    Window {
        first: first.first,
        last: last.last,
        ..windows[position]
    }
}

/// The cells inside `window`, cut at `cuts`: where windows began and ended before any was trimmed.
fn pieces(window: Window, cells: &[Cell], cuts: &[u32]) -> impl DoubleEndedIterator<Item = Cell> {
    let start = cells.partition_point(|cell| cell.last < window.first);
    let end = cells.partition_point(|cell| cell.first <= window.last);
    cells[start..end].iter().flat_map(move |cell| {
        let first = cell.first.max(window.first);
        let last = cell.last.min(window.last);
        let inner =
            cuts.partition_point(|&cut| cut <= first)..cuts.partition_point(|&cut| cut <= last);
        let mut bounds = vec![first];
        bounds.extend(&cuts[inner]);
        bounds.push(last + 1);
        bounds.dedup();
        let alone = cell.alone;
        let piece = |bounds: &[u32]| Cell {
            first: bounds[0],
            last: bounds[1] - 1,
            alone,
        };
        bounds.windows(2).map(piece).collect::<Vec<_>>()
    })
}

fn index(position: u64) -> u32 {
    u32::try_from(position).expect("what a cell holds is an MSR's index")
}
