//! RFLAGS, with the six arithmetic flags computed only when somebody looks.
//!
//! The last result gives ZF, SF and PF. `aux` gives the others, and corrects the first three where an
//! instruction (POPF, SAHF, …) sets a combination that no result has. The layout of `aux`:
//!
//! | bit | meaning |
//! |---|---|
//! | 63 | CF: carry out of the top bit |
//! | 62 | carry into the top bit; OF is their difference |
//! | 15:8 | differs from `result`'s low byte in parity: flips PF |
//! | 3 | AF: carry out of bit 3 |
//! | 0 | flips SF |

use crate::int::Int;

pub(crate) const CF: u64 = 1 << 0;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const TF: u64 = 1 << 8;
pub(crate) const IF: u64 = 1 << 9;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const OF: u64 = 1 << 11;
pub(crate) const IOPL: u64 = 3 << 12;
pub(crate) const NT: u64 = 1 << 14;
pub(crate) const RF: u64 = 1 << 16;
pub(crate) const VM: u64 = 1 << 17;
pub(crate) const AC: u64 = 1 << 18;
pub(crate) const VIF: u64 = 1 << 19;
pub(crate) const VIP: u64 = 1 << 20;
pub(crate) const ID: u64 = 1 << 21;

/// CF, PF, AF, ZF, SF and OF.
pub(crate) const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
/// The bits that exist, other than the arithmetic ones and bit 1.
const OTHERS: u64 = TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
const ALWAYS_ONE: u64 = 1 << 1;

const CARRY_OUT: u64 = 1 << 63;
const CARRY_IN: u64 = 1 << 62;
const FLIP_PF: u64 = 1 << 8;
const NIBBLE_CARRY: u64 = 1 << 3;
const FLIP_SF: u64 = 1 << 0;

/// RFLAGS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    /// Sign-extended from the operand size.
    result: u64,
    aux: u64,
    /// All but the arithmetic flags.
    others: u64,
}

impl Default for Flags {
    fn default() -> Self {
        let mut flags = Self {
            result: 0,
            aux: 0,
            others: 0,
        };
        flags.set(0);
        flags
    }
}

impl Flags {
    /// All of RFLAGS.
    pub(crate) fn get(&self) -> u64 {
        self.arithmetic() | self.others | ALWAYS_ONE
    }

    /// Sets all of RFLAGS; bits that do not exist are dropped.
    pub(crate) fn set(&mut self, value: u64) {
        self.others = value & OTHERS;
        self.set_arithmetic(value);
    }

    /// The arithmetic flags alone.
    pub(crate) fn arithmetic(&self) -> u64 {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        bit(self.cf(), CF)
            | bit(self.pf(), PF)
            | bit(self.af(), AF)
            | bit(self.zf(), ZF)
            | bit(self.sf(), SF)
            | bit(self.of(), OF)
    }

    /// Sets the arithmetic flags out of `value`.
    pub(crate) fn set_arithmetic(&mut self, value: u64) {
        let carry = value & CF != 0;
        let overflow = value & OF != 0;
        // Not zero, low byte 0, not negative: PF would be set and SF clear.
        self.result = if value & ZF != 0 { 0 } else { 1 << 8 };
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        self.aux = bit(carry, CARRY_OUT)
            | bit(carry != overflow, CARRY_IN)
            | bit(value & PF == 0, FLIP_PF)
            | bit(value & AF != 0, NIBBLE_CARRY)
            | bit(value & SF != 0, FLIP_SF);
    }

    /// Sets those arithmetic flags that `mask` names out of `value`.
    pub(crate) fn merge_arithmetic(&mut self, mask: u64, value: u64) {
        self.set_arithmetic(self.arithmetic() & !mask | value & mask);
    }

    /// Whether a flag outside the arithmetic ones is set.
    #[inline(always)]
    pub(crate) const fn has(&self, bit: u64) -> bool {
        self.others & bit != 0
    }

    /// Changes flags outside the arithmetic ones.
    pub(crate) const fn put(&mut self, bits: u64, on: bool) {
        if on {
            self.others |= bits & OTHERS;
        } else {
            self.others &= !bits;
        }
    }

    #[inline(always)]
    pub(crate) const fn cf(&self) -> bool {
        (self.aux as i64) < 0
    }

    #[inline(always)]
    pub(crate) const fn zf(&self) -> bool {
        self.result == 0
    }

    #[inline(always)]
    pub(crate) const fn sf(&self) -> bool {
        (self.result >> 63 ^ self.aux) & 1 != 0
    }

    #[inline(always)]
    pub(crate) const fn of(&self) -> bool {
        ((self.aux ^ self.aux << 1) as i64) < 0
    }

    #[inline(always)]
    pub(crate) const fn pf(&self) -> bool {
        ((self.result ^ self.aux >> 8) as u8).count_ones() & 1 == 0
    }

    #[inline(always)]
    pub(crate) const fn af(&self) -> bool {
        self.aux & NIBBLE_CARRY != 0
    }

    /// The condition of Jcc, SETcc and CMOVcc: the low four bits of their opcode.
    #[inline(always)]
    pub(crate) const fn condition<const CC: u8>(&self) -> bool {
        let holds = match CC >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        holds != (CC & 1 != 0)
    }

    /// After AND, OR, XOR, TEST: CF, OF and AF are clear.
    #[inline(always)]
    pub(crate) fn logic<T: Int>(&mut self, result: T) {
        self.result = result.sx();
        self.aux = 0;
    }

    /// After `result = a + b (+ carry)`.
    #[inline(always)]
    pub(crate) fn add<T: Int>(&mut self, a: T, b: T, result: T) {
        let (a, b, sum) = (a.zx(), b.zx(), result.zx());
        self.arithmetic_result(result, a & b | (a | b) & !sum);
    }

    /// After `result = a - b (- borrow)`.
    #[inline(always)]
    pub(crate) fn sub<T: Int>(&mut self, a: T, b: T, result: T) {
        let (a, b, difference) = (a.zx(), b.zx(), result.zx());
        self.arithmetic_result(result, !a & b | (!a | b) & difference);
    }

    /// `carries`: bit `i` is the carry out of bit `i`.
    #[inline(always)]
    fn arithmetic_result<T: Int>(&mut self, result: T, carries: u64) {
        self.result = result.sx();
        self.aux = carries << (64 - T::BITS) & (CARRY_OUT | CARRY_IN) | carries & NIBBLE_CARRY;
    }

    /// Sets CF, keeping the others.
    #[inline(always)]
    pub(crate) const fn set_cf(&mut self, carry: bool) {
        // Turning both over leaves OF, their difference, alone.
        if self.cf() != carry {
            self.aux ^= CARRY_OUT | CARRY_IN;
        }
    }

    /// Sets CF and OF, keeping the others.
    #[inline(always)]
    pub(crate) const fn set_cf_of(&mut self, carry: bool, overflow: bool) {
        self.aux = self.aux & !(CARRY_OUT | CARRY_IN)
            | (carry as u64) << 63
            | ((carry != overflow) as u64) << 62;
    }

    /// The flags of `result`, with CF and OF given and AF clear: shifts and multiplications.
    #[inline(always)]
    pub(crate) fn result<T: Int>(&mut self, result: T, carry: bool, overflow: bool) {
        self.result = result.sx();
        self.aux = u64::from(carry) << 63 | u64::from(carry != overflow) << 62;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_arithmetic_flags_survives() {
        for bits in 0..64_u64 {
            let value = (0..6)
                .filter(|i| bits >> i & 1 != 0)
                .map(|i| [CF, PF, AF, ZF, SF, OF][i])
                .sum();
            let mut flags = Flags::default();
            flags.set_arithmetic(value);
            assert_eq!(flags.arithmetic(), value);
            flags.set_cf(true);
            assert_eq!(flags.arithmetic(), value | CF);
            flags.set_cf_of(false, true);
            assert_eq!(flags.arithmetic(), value & !CF | OF);
        }
    }

    #[test]
    fn add_and_sub_of_all_bytes_have_the_manuals_flags() {
        for a in 0..=255_u8 {
            for b in 0..=255_u8 {
                let mut flags = Flags::default();
                flags.add(a, b, a.wrapping_add(b));
                assert_eq!(flags.cf(), a.checked_add(b).is_none());
                assert_eq!(flags.of(), (a as i8).checked_add(b as i8).is_none());
                assert_eq!(flags.af(), (a & 15) + (b & 15) > 15);
                flags.sub(a, b, a.wrapping_sub(b));
                assert_eq!(flags.cf(), a < b);
                assert_eq!(flags.of(), (a as i8).checked_sub(b as i8).is_none());
                assert_eq!(flags.af(), a & 15 < b & 15);
                assert_eq!(flags.sf(), (a.wrapping_sub(b) as i8) < 0);
                assert_eq!(flags.condition::<0xc>(), (a as i8) < b as i8);
            }
        }
    }
}
