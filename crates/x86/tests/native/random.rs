//! Random numbers, and values that are likelier to matter than random ones.

/// SplitMix64: the same numbers for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer: edges, small ones, random ones of all sizes.
    pub(crate) fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 => {
                let bits = self.pick(&[8_u32, 16, 32, 64]);
                let edge = 1_u64 << (bits - 1);
                edge.wrapping_add(self.below(3)).wrapping_sub(1)
            }
            1 => self.below(4).wrapping_sub(2),
            2 => self.below(256),
            3 => u64::MAX >> self.below(64),
            4 => 1 << self.below(64),
            5 => self.next() >> self.below(64),
            6 => ((self.next() as i64) >> self.below(64)) as u64,
            _ => self.next(),
        }
    }

    /// A vector register: integers, floats, text.
    pub(crate) fn vector(&mut self) -> u128 {
        let mut halves = || match self.below(4) {
            0 => self.integer(),
            1 => self.single() | self.single() << 32,
            2 => self.double(),
            _ => {
                let text: [u8; 8] = core::array::from_fn(|_| self.pick(b"aabc\0\x80\xff"));
                u64::from_le_bytes(text)
            }
        };
        let low = halves();
        u128::from(low) | u128::from(halves()) << 64
    }

    fn single(&mut self) -> u64 {
        let sign = self.below(2) << 31;
        let exponent = match self.below(4) {
            0 => self.pick(&[0, 1, 2, 0xfd, 0xfe, 0xff]),
            1 => 127 - 8 + self.below(40),
            2 => 127 - 2 + self.below(4),
            _ => self.below(256),
        };
        sign | exponent << 23 | self.fraction(23)
    }

    fn double(&mut self) -> u64 {
        let sign = self.below(2) << 63;
        let exponent = match self.below(4) {
            0 => self.pick(&[0, 1, 2, 0x7fd, 0x7fe, 0x7ff]),
            1 => 1023 - 8 + self.below(80),
            // Near where doubles leave the range of singles.
            2 => self.pick(&[896, 897, 1150, 1151]) - self.below(26),
            _ => self.below(2048),
        };
        sign | exponent << 52 | self.fraction(52)
    }

    fn fraction(&mut self, bits: u32) -> u64 {
        let ones = (1 << bits) - 1;
        match self.below(4) {
            0 => 0,
            1 => ones << self.below(u64::from(bits)) & ones,
            2 => 1 << self.below(u64::from(bits)),
            _ => self.next() & ones,
        }
    }

    /// An x87 register.
    pub(crate) fn extended(&mut self) -> [u8; 16] {
        let sign = self.below(2) << 15;
        let exponent = match self.below(3) {
            0 => self.pick(&[0, 1, 0x7ffe, 0x7fff]),
            1 => 16383 - 4 + self.below(70),
            _ => self.below(0x8000),
        };
        let integer = u64::from(!self.one_in(16)) << 63;
        let mantissa = integer | self.fraction(63);
        (u128::from(mantissa) | u128::from(sign | exponent) << 64).to_le_bytes()
    }
}
