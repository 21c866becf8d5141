//! The run loop: blocks after blocks, and what happens between them.
//!
//! A block runs without a look at anything but its instructions' [`Flow`]. What needs one instruction at a
//! time (single-stepping, interrupt shadows, MMIO, stores into code, the last instructions of a budget) goes
//! through [`Cpu::step`].

use core::any::Any;

use crate::code::Code;
use crate::cpu::Shadow;
use crate::flags;
use crate::interrupt::Event;
use crate::op::{Exit, Fault, Op, vector};
use crate::{Bus, Cpu, Stop};

/// DR6.BS: a #DB is due to single-stepping.
const DR6_BS: u64 = 1 << 14;

/// Why [`Cpu::run_known_blocks`] ended.
enum End<B> {
    /// [`Cpu::attention`], between two blocks.
    Attention,
    /// The block at RIP is not in the table, or longer than the budget.
    Unknown,
    /// An instruction that does not just go on to the next. It is not counted yet.
    Within(Op<B>, Exit),
    /// There is no code at RIP.
    Fetch(Exit),
}

impl Cpu {
    /// Runs until something happens that the processor cannot finish alone, but for at most about `budget`
    /// instructions: exactly that many, unless a repeated string instruction or an exception, which each
    /// count at least once, ends them.
    pub fn run<B: Bus>(&mut self, bus: &mut B, budget: u64) -> Stop {
        self.pauses = 0;
        let mut code = self.take_code::<B>();
        let stop = self.run_blocks(bus, &mut code, budget);
        self.code = Some(code);
        stop
    }

    /// The decoded code, if it is for this kind of bus; else none.
    fn take_code<B: Bus>(&mut self) -> Box<Code<B>> {
        let code: Option<Box<dyn Any>> = self.code.take().map(|code| code as Box<dyn Any>);
        match code.and_then(|code| code.downcast().ok()) {
            Some(code) => code,
            None => {
                self.code_state.flush = true;
                self.attention = true;
                fresh_code()
            }
        }
    }

    fn run_blocks<B: Bus>(&mut self, bus: &mut B, code: &mut Code<B>, budget: u64) -> Stop {
        let mut left = budget;
        let mut alone = false;
        loop {
            if self.attention {
                match self.attend(bus, code, &mut left) {
                    Ok(careful) => alone |= careful,
                    Err(stop) => return stop,
                }
            }
            if left == 0 {
                return Stop::Budget;
            }
            if alone {
                alone = false;
                left -= 1;
                match self.step_at_rip(bus, code) {
                    Ok(()) => continue,
                    Err(stop) => return stop,
                }
            }
            let end = match self.run_known_blocks(bus, code, &mut left) {
                End::Unknown if left > 0 => self.find_or_run_one(bus, code, left),
                end => end,
            };
            let done = match end {
                End::Attention | End::Unknown => Ok(()),
                End::Within(op, exit) => {
                    alone = exit == Exit::Careful;
                    left -= u64::from(!alone);
                    self.finish(bus, &op, exit)
                }
                End::Fetch(exit) => {
                    left -= 1;
                    self.leave(bus, exit)
                }
            };
            if let Err(stop) = done {
                return stop;
            }
        }
    }

    /// Runs one decoded block after the other.
    fn run_known_blocks<B: Bus>(&mut self, bus: &mut B, code: &Code<B>, left: &mut u64) -> End<B> {
        let before = *left;
        let end = self.run_table(bus, code, left);
        self.retired += before - *left;
        end
    }

    /// What is taken from `left` is not in [`Cpu::retired`] yet.
    #[inline(never)]
    fn run_table<B: Bus>(&mut self, bus: &mut B, code: &Code<B>, left: &mut u64) -> End<B> {
        'blocks: while let Some(block) = code.find_known(self)
            && u64::from(block.instructions) <= *left
        {
            for op in &*block.ops {
                if let Err(exit) = (op.exec)(self, bus, op) {
                    if exit != Exit::Jump {
                        *left -= u64::from(op.through - op.instructions());
                        return End::Within(*op, exit);
                    }
                    *left -= u64::from(op.through);
                    if self.attention {
                        return End::Attention;
                    }
                    continue 'blocks;
                }
            }
            *left -= u64::from(block.instructions);
            if let Some(last) = block.ops.last() {
                self.rip = self.next_rip(last);
            }
            if self.attention {
                return End::Attention;
            }
        }
        End::Unknown
    }

    /// Looks up the block at RIP, for [`Cpu::run_known_blocks`]; if it is longer than the budget, runs its first
    /// instruction.
    fn find_or_run_one<B: Bus>(&mut self, bus: &mut B, code: &mut Code<B>, left: u64) -> End<B> {
        match code.find(self, bus) {
            Ok(()) if u64::from(code.found(self).instructions) <= left => End::Unknown,
            Ok(()) => {
                let op = code.first(self);
                let flow = (op.exec)(self, bus, &op);
                End::Within(op, flow.err().unwrap_or(Exit::Leave))
            }
            Err(exit) => End::Fetch(exit),
        }
    }

    fn step_at_rip<B: Bus>(&mut self, bus: &mut B, code: &mut Code<B>) -> Result<(), Stop> {
        match code.find(self, bus) {
            Ok(()) => {
                let op = code.first(self);
                self.step(bus, &op)
            }
            Err(exit) => self.leave(bus, exit),
        }
    }

    /// Executes one instruction alone, and everything that belongs between it and the next.
    #[cold]
    fn step<B: Bus>(&mut self, bus: &mut B, op: &Op<B>) -> Result<(), Stop> {
        self.attention = true;
        let resume = self.flags.has(flags::RF);
        let hits = self.code_breakpoints(op);
        if hits != 0 && !resume {
            self.fault = Fault::debug(hits);
            return self.finish(bus, op, Exit::Fault);
        }
        self.trap = self.flags.has(flags::TF);
        let shadow = core::mem::take(&mut self.shadow);
        self.careful = true;
        self.watched = 0;
        self.mmio.start();
        let flow = (op.exec)(self, bus, op);
        self.careful = false;
        match flow {
            Err(Exit::Stop) => {
                self.shadow = shadow;
                return self.finish(bus, op, Exit::Stop);
            }
            Err(Exit::Fault) => {
                self.mmio.abandon();
                return self.finish(bus, op, Exit::Fault);
            }
            _ => self.mmio.commit(),
        }
        let repeats = matches!(flow, Err(Exit::Repeat | Exit::StopRepeat));
        // IRET may have set RF for what follows; everybody else clears it.
        if resume && !repeats && flow != Err(Exit::Jump) {
            self.flags.put(flags::RF, false);
        }
        let end = self.finish(bus, op, flow.err().unwrap_or(Exit::Leave));
        let traps = self.watched | if self.trap { DR6_BS } else { 0 };
        if traps != 0 && self.shadow != Shadow::MovSs && self.pending.exception.is_none() {
            self.queue(Fault::debug(traps));
        }
        end?;
        if self.config.single_step && !repeats {
            return Err(Stop::Debug {
                vector: vector::DB,
                rip: self.rip,
                dr6: DR6_BS,
            });
        }
        Ok(())
    }

    /// Moves RIP and counts, as the end of an instruction demands.
    fn finish<B: Bus>(&mut self, bus: &mut B, op: &Op<B>, exit: Exit) -> Result<(), Stop> {
        match exit {
            Exit::Jump => self.retired += 1,
            Exit::Leave => {
                self.rip = self.next_rip(op);
                self.retired += 1;
            }
            Exit::StopAfter => {
                self.rip = self.next_rip(op);
                self.retired += 1;
                return Err(self.stop);
            }
            Exit::Fault | Exit::Stop | Exit::Repeat | Exit::StopRepeat | Exit::Careful => {
                self.rip = self.rip_of(op);
                self.stopped_len = op.len;
                return self.leave(bus, exit);
            }
        }
        Ok(())
    }

    /// Ends an instruction that has not retired; RIP is its own.
    fn leave<B: Bus>(&mut self, bus: &mut B, exit: Exit) -> Result<(), Stop> {
        match exit {
            Exit::Fault => {
                let fault = self.fault;
                self.deliver_or_stop(bus, fault)
            }
            Exit::Stop | Exit::StopRepeat => Err(self.stop),
            _ => Ok(()),
        }
    }

    fn deliver_or_stop<B: Bus>(&mut self, bus: &mut B, fault: Fault) -> Result<(), Stop> {
        self.attention = true;
        let trapped = match fault.vector {
            vector::DB => self.config.trap_debug,
            vector::BP => self.config.trap_breakpoint,
            _ => false,
        };
        if trapped {
            return Err(Stop::Debug {
                vector: fault.vector,
                rip: self.rip,
                dr6: fault.payload,
            });
        }
        self.deliver(bus, Event::Exception(fault))
    }

    /// Looks at what waits between two instructions. `Ok(true)`: the next instruction must run alone.
    #[cold]
    fn attend<B: Bus>(
        &mut self,
        bus: &mut B,
        code: &mut Code<B>,
        left: &mut u64,
    ) -> Result<bool, Stop> {
        if self.shut_down {
            return Err(Stop::TripleFault);
        }
        code.settle(self);
        if let Some(stop) = self.mmio.next_store() {
            return Err(stop);
        }
        self.attention = false;
        // What a device has answered must not be lost to an interrupt, nor answer its handler.
        let restarts = self.io_in.is_some() || self.mmio.has_answers();
        if *left > 0 && !restarts && self.deliver_pending(bus)? {
            *left -= 1;
        }
        if self.shut_down {
            return Err(Stop::TripleFault);
        }
        if self.pending.window && !restarts && self.can_interrupt() {
            self.pending.window = false;
            self.attention = true;
            return Err(Stop::InterruptWindow);
        }
        let alone = restarts
            || self.shadow != Shadow::None
            || self.flags.has(flags::TF)
            || self.flags.has(flags::RF)
            || self.config.single_step
            || self.has_breakpoints();
        self.attention |= alone || self.is_event_pending();
        Ok(alone)
    }

    fn is_event_pending(&self) -> bool {
        self.pending.exception.is_some()
            || self.pending.interrupt.is_some()
            || self.pending.nmi && !self.pending.nmi_masked
            || self.pending.window
    }

    /// Delivers the first of what waits. `true`: something was.
    fn deliver_pending<B: Bus>(&mut self, bus: &mut B) -> Result<bool, Stop> {
        if let Some(fault) = self.pending.exception.take() {
            self.shadow = Shadow::None;
            self.deliver_or_stop(bus, fault)?;
        } else if self.pending.nmi && !self.pending.nmi_masked && self.shadow != Shadow::MovSs {
            (self.pending.nmi, self.pending.nmi_masked) = (false, true);
            self.deliver(bus, Event::Nmi)?;
        } else if self.shadow == Shadow::None
            && let Some(vector) = self.pending.interrupt.take()
        {
            self.deliver(bus, Event::External(vector))?;
        } else {
            return Ok(false);
        }
        self.attention = true;
        Ok(true)
    }

    /// Retires the instruction that stopped: a completion did its work.
    pub(crate) fn step_over(&mut self) {
        self.rip = self.wrap_rip(self.rip.wrapping_add(u64::from(self.stopped_len)));
        self.retired += 1;
        self.shadow = Shadow::None;
        if self.flags.has(flags::TF) {
            self.queue(Fault::debug(DR6_BS));
        }
        self.flags.put(flags::RF, false);
        self.stopped_len = 0;
    }
}

/// No code. In a function of its own, as the frame that builds it is large and `run`'s should not be.
#[cold]
#[inline(never)]
fn fresh_code<B: Bus>() -> Box<Code<B>> {
    Box::new(Code::new())
}
