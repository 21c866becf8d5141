//! System instructions.

use iced_x86::Instruction;

use crate::Bus;
use crate::op::{Exec, Op};

pub(crate) fn lower<B: Bus>(_insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    None
}
