//! PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM (SDM vol. 2, 4.1).

/// What an instruction of the family found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// A bit for each element of the second string (IntRes2).
    pub bits: u16,
    /// Elements in a register: 16 or 8.
    pub elements: u8,
    /// The first string ends within its register.
    pub first_ends: bool,
    /// The second string ends within its register.
    pub second_ends: bool,
}

impl Found {
    /// ECX of the -I forms.
    pub(crate) fn index(self, imm: u8) -> u32 {
        let most_significant = imm & 0x40 != 0;
        match self.bits {
            0 => u32::from(self.elements),
            bits if most_significant => bits.ilog2(),
            bits => bits.trailing_zeros(),
        }
    }

    /// XMM0 of the -M forms.
    pub(crate) fn mask(self, imm: u8) -> u128 {
        let expand = imm & 0x40 != 0;
        if !expand {
            return self.bits.into();
        }
        let width = 128 / u32::from(self.elements);
        let element = u128::MAX >> (128 - width);
        (0..self.elements.into())
            .filter(|lane| self.bits >> lane & 1 != 0)
            .fold(0, |mask, lane| mask | element << (lane * width))
    }
}

/// The implicit forms: each string ends at its first zero element.
pub(crate) fn compare_implicit(first: u128, second: u128, imm: u8) -> Found {
    let length = |string| {
        let elements = elements(string, imm);
        elements
            .into_iter()
            .take(count(imm))
            .take_while(|&element| element != 0)
            .count()
    };
    compare(first, second, length(first), length(second), imm)
}

/// The explicit forms: the lengths are the absolute values of RAX (EAX) and RDX (EDX), saturated.
pub(crate) fn compare_explicit(first: u128, second: u128, lengths: (i64, i64), imm: u8) -> Found {
    let saturate = |length: i64| {
        usize::try_from(length.unsigned_abs()).map_or(count(imm), |length| length.min(count(imm)))
    };
    compare(first, second, saturate(lengths.0), saturate(lengths.1), imm)
}

fn compare(first: u128, second: u128, first_len: usize, second_len: usize, imm: u8) -> Found {
    let count = count(imm);
    let (first, second) = (elements(first, imm), elements(second, imm));
    let (first, tail) = (&first[..first_len], &second[..second_len]);
    let holds = |place: usize| match imm >> 2 & 3 {
        // Equal any: the second string's element is in the set.
        0 => place < second_len && first.contains(&second[place]),
        // Ranges: pairs of bounds, both included; half a pair is no range.
        1 => {
            place < second_len
                && first
                    .chunks_exact(2)
                    .any(|pair| (pair[0]..=pair[1]).contains(&second[place]))
        }
        // Equal each: past both ends counts as equal.
        2 => match (first.get(place), tail.get(place)) {
            (Some(a), Some(b)) => a == b,
            (None, None) => true,
            _ => false,
        },
        // Equal ordered: the first string begins here, as far as the register reaches.
        _ => (place..count)
            .zip(first)
            .all(|(at, &wanted)| tail.get(at) == Some(&wanted)),
    };
    let found = (0..count)
        .filter(|&place| holds(place))
        .fold(0, |bits, place| bits | 1_u16 << place);
    let all = ones(count);
    let negated = match imm >> 4 & 3 {
        1 => !found & all,
        3 => found ^ ones(second_len),
        _ => found,
    };
    Found {
        bits: negated,
        elements: if imm & 1 == 0 { 16 } else { 8 },
        first_ends: first_len < count,
        second_ends: second_len < count,
    }
}

/// The low `count` bits, of 16.
fn ones(count: usize) -> u16 {
    u16::MAX
        .checked_shr(16 - u32::try_from(count).expect("at most 16 elements"))
        .unwrap_or(0)
}

fn count(imm: u8) -> usize {
    if imm & 1 == 0 { 16 } else { 8 }
}

/// The elements of a register: bytes or words, signed or not. Words leave the upper half unused.
fn elements(register: u128, imm: u8) -> [i32; 16] {
    let bytes = register.to_le_bytes();
    core::array::from_fn(|at| match imm & 3 {
        0 => bytes[at].into(),
        2 => i8::from_le_bytes([bytes[at]]).into(),
        _ if at >= 8 => 0,
        1 => u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).into(),
        _ => i16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).into(),
    })
}
