//! [`Chips`]: all interrupt controllers of a VM, wired to each other. No locks, no threads: time is an argument.

use std::sync::Arc;

use super::delivery::{self, Message};
use super::ioapic::{self, Ioapic};
use super::lapic::{Effect, Invalid, Lapic};
use super::pic::PicPair;
use super::pit::Pit;
use super::routing::{Route, Target, default_routes};
use crate::eventfd::EventFd;

/// Who holds a line high.
const CLIENT: u8 = 0;
const TIMER: u8 = 1;
const RESAMPLED: u8 = 2;
/// The GSI of the PIT.
const TIMER_GSI: u32 = 0;

/// All controllers of a VM.
#[derive(Debug)]
pub(crate) struct Chips {
    lapics: Vec<Lapic>,
    pub(crate) ioapic: Ioapic,
    pub(crate) pics: PicPair,
    pub(crate) pit: Option<Pit>,
    /// GSIs below this are the pins of an I/O APIC that the client has, and not this one's.
    client_pins: Option<u32>,
    routes: Vec<Route>,
    /// Who wants to hear that an interrupt of a GSI has ended, which lowers what [`Chips::raise_until_ended`] raised.
    resamplers: Vec<(u32, Arc<EventFd>)>,
    /// `KVM_CAP_X2APIC_API`: IDs have 32 bits.
    pub(crate) wide_ids: bool,
    /// A vCPU may have got something to look at since [`Chips::take_raised`].
    raised: bool,
}

impl Chips {
    /// All controllers; or, with the number of `client_pins`, local APICs alone.
    pub(crate) fn new(client_pins: Option<u32>) -> Self {
        Self {
            lapics: Vec::new(),
            ioapic: Ioapic::default(),
            pics: PicPair::default(),
            pit: None,
            client_pins,
            routes: client_pins.map_or_else(default_routes, |_| Vec::new()),
            resamplers: Vec::new(),
            wide_ids: false,
            raised: false,
        }
    }

    /// Whether there are only local APICs.
    pub(crate) fn is_split(&self) -> bool {
        self.client_pins.is_some()
    }

    /// A vCPU comes.
    pub(crate) fn add(&mut self, lapic: Lapic) {
        self.lapics.push(lapic);
        self.lapics.sort_by_key(Lapic::id);
    }

    /// A vCPU goes.
    pub(crate) fn remove(&mut self, id: u32) {
        self.lapics.retain(|lapic| lapic.id() != id);
    }

    /// The local APIC of vCPU `id`.
    pub(crate) fn lapic(&mut self, id: u32) -> Option<&mut Lapic> {
        self.lapics.iter_mut().find(|lapic| lapic.id() == id)
    }

    /// Whether any vCPU may have something new to look at.
    pub(crate) fn take_raised(&mut self) -> bool {
        std::mem::take(&mut self.raised)
    }

    /// Lets time pass: timers fire.
    pub(crate) fn advance(&mut self, now: u64) {
        for lapic in &mut self.lapics {
            self.raised |= lapic.tick(now);
        }
        if self.pit.as_mut().is_some_and(|pit| pit.tick(now)) {
            self.pulse_timer();
        }
    }

    /// When the next timer fires.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        let pit = self.pit.as_ref().and_then(Pit::target);
        let lapics = self.lapics.iter().filter_map(Lapic::timer_target);
        lapics.chain(pit).min()
    }

    fn pulse_timer(&mut self) {
        self.set_gsi_from(TIMER_GSI, TIMER, true);
        self.set_gsi_from(TIMER_GSI, TIMER, false);
        for lapic in &mut self.lapics {
            self.raised |= lapic.tick_lint0();
        }
    }

    /// `KVM_IRQ_LINE`. How many took the interrupt, added up over the routes; -1 if it is masked everywhere or
    /// the GSI leads nowhere.
    pub(crate) fn set_gsi(&mut self, gsi: u32, high: bool) -> i32 {
        self.set_gsi_from(gsi, CLIENT, high)
    }

    /// An event with a resampler has come.
    pub(crate) fn raise_until_ended(&mut self, gsi: u32) {
        self.set_gsi_from(gsi, RESAMPLED, true);
    }

    pub(crate) fn add_resampler(&mut self, gsi: u32, ended: Arc<EventFd>) {
        self.resamplers.push((gsi, ended));
    }

    /// With the last one of a GSI its line falls.
    pub(crate) fn remove_resampler(&mut self, gsi: u32, ended: &Arc<EventFd>) {
        let mut all = self.resamplers.iter();
        if let Some(at) = all.position(|(own, event)| *own == gsi && Arc::ptr_eq(event, ended)) {
            self.resamplers.swap_remove(at);
        }
        if self.resamplers.iter().all(|(other, _)| *other != gsi) {
            self.set_gsi_from(gsi, RESAMPLED, false);
        }
    }

    fn set_gsi_from(&mut self, gsi: u32, source: u8, high: bool) -> i32 {
        let mut answer = -1;
        for at in 0..self.routes.len() {
            let Route { gsi: own, target } = self.routes[at];
            if own != gsi {
                continue;
            }
            let takers = match target {
                Target::Pic(pin) => self.set_pic_pin(pin, source, high),
                Target::Ioapic(pin) => {
                    self.with_ioapic(|ioapic, deliver| ioapic.set_line(pin, source, high, deliver))
                }
                Target::Msi { address, data } if high => self.send_msi(address, data),
                Target::Msi { .. } => None,
            };
            if let Some(takers) = takers {
                let takers = i32::try_from(takers).unwrap_or(i32::MAX);
                answer = takers.saturating_add(answer.max(0));
            }
        }
        answer
    }

    fn set_pic_pin(&mut self, pin: usize, source: u8, high: bool) -> Option<u32> {
        let takers = self.pics.set_line(pin, source, high);
        self.raised |= self.pics.output();
        takers
    }

    /// `KVM_SIGNAL_MSI`. How many took it; `None` if it was for all and there was nobody.
    pub(crate) fn send_msi(&mut self, address: u64, data: u32) -> Option<u32> {
        let message = Message::of_msi(address, data, self.wide_ids);
        self.send(None, &message)
    }

    fn send(&mut self, source: Option<u32>, message: &Message) -> Option<u32> {
        self.raised = true;
        delivery::deliver(&mut self.lapics, source, message)
    }

    fn with_ioapic<R>(&mut self, work: impl FnOnce(&mut Ioapic, ioapic::Deliver<'_>) -> R) -> R {
        let Self {
            ioapic,
            lapics,
            raised,
            ..
        } = self;
        work(ioapic, &mut |message| {
            *raised = true;
            delivery::deliver(lapics, None, message)
        })
    }

    /// `KVM_SET_GSI_ROUTING`.
    pub(crate) fn set_routes(&mut self, routes: Vec<Route>) {
        self.routes = routes;
    }

    /// Whether vCPU `id` would get an interrupt now.
    pub(crate) fn has_interrupt(&mut self, id: u32) -> bool {
        let output = self.pics.output();
        self.lapic(id).is_some_and(|lapic| {
            (output || lapic.external.is_some()) && lapic.takes_extint() || lapic.vector().is_some()
        })
    }

    /// Whether the client's own 8259s may interrupt vCPU `id` (`KVM_INTERRUPT`).
    pub(crate) fn takes_external(&mut self, id: u32) -> bool {
        let split = self.is_split();
        self.lapic(id)
            .is_some_and(|lapic| split && lapic.takes_extint() && lapic.external.is_none())
    }

    /// vCPU `id` takes its interrupt: from the 8259s first, as KVM does.
    pub(crate) fn acknowledge(&mut self, id: u32) -> Option<u8> {
        let output = self.pics.output();
        let lapic = self.lapic(id)?;
        if !lapic.takes_extint() {
            return lapic.acknowledge();
        }
        if let Some(vector) = lapic.external.take() {
            return Some(vector);
        }
        if !output {
            return lapic.acknowledge();
        }
        let vector = self.pics.acknowledge();
        self.settle_pics();
        Some(vector)
    }

    /// What follows from interrupts that have ended at the 8259s.
    fn settle_pics(&mut self) {
        self.raised |= self.pics.output();
        let ended = self.pics.take_ended();
        self.note_ended(|target| matches!(target, Target::Pic(pin) if ended >> pin & 1 == 1));
    }

    /// Tells the PIT and the resamplers whose interrupts have ended.
    fn note_ended(&mut self, has_ended: impl Fn(Target) -> bool) {
        let of_gsi = |routes: &[Route], gsi| {
            let mut routes = routes.iter();
            routes.any(|route| route.gsi == gsi && has_ended(route.target))
        };
        if of_gsi(&self.routes, TIMER_GSI) && self.pit.as_mut().is_some_and(Pit::acknowledge) {
            self.pulse_timer();
        }
        for at in 0..self.resamplers.len() {
            let gsi = self.resamplers[at].0;
            if of_gsi(&self.routes, gsi) {
                self.set_gsi_from(gsi, RESAMPLED, false);
                self.resamplers[at].1.signal();
            }
        }
    }

    /// vCPU `id` loads from its APIC page.
    pub(crate) fn load_lapic(&mut self, id: u32, offset: usize, len: usize, now: u64) -> u64 {
        let lapic = self.lapic(id);
        lapic.map_or(0, |lapic| lapic.load(offset, len, now))
    }

    /// vCPU `id` stores to its APIC page.
    pub(crate) fn store_lapic(&mut self, id: u32, offset: usize, len: usize, value: u64, now: u64) {
        if let Some(lapic) = self.lapic(id) {
            let effect = lapic.store(offset, len, value, now);
            self.carry_out(id, effect);
        }
    }

    /// vCPU `id` writes its x2APIC register.
    pub(crate) fn wrmsr_lapic(
        &mut self,
        id: u32,
        register: usize,
        value: u64,
        now: u64,
    ) -> Result<(), Invalid> {
        let lapic = self.lapic(id).ok_or(Invalid)?;
        let effect = lapic.wrmsr(register, value, now)?;
        self.carry_out(id, effect);
        Ok(())
    }

    fn carry_out(&mut self, id: u32, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(message) => {
                self.send(Some(id), &message);
            }
            Effect::EndOfInterrupt { vector, .. } if self.is_split() => {
                if self.is_of_client(vector)
                    && let Some(lapic) = self.lapic(id)
                {
                    lapic.ended = Some(vector);
                }
            }
            Effect::EndOfInterrupt {
                vector,
                level_triggered,
            } => {
                let ended = self.ioapic.pins_of(vector);
                // A line that falls now does not interrupt again.
                self.note_ended(
                    |target| matches!(target, Target::Ioapic(pin) if ended >> pin & 1 == 1),
                );
                if level_triggered {
                    self.with_ioapic(|ioapic, deliver| ioapic.end_of_interrupt(ended, deliver));
                }
            }
        }
    }

    /// Whether the client's I/O APIC waits for the end of the interrupt: one of its pins has it as a level.
    fn is_of_client(&self, vector: u8) -> bool {
        const LEVEL: u32 = 1 << 15;
        let pins = self.client_pins.unwrap_or(0);
        let mut routes = self.routes.iter().filter(|route| route.gsi < pins);
        routes.any(|route| match route.target {
            Target::Msi { data, .. } => data & LEVEL != 0 && data.to_le_bytes()[0] == vector,
            _ => false,
        })
    }

    /// Stores to the I/O APIC.
    pub(crate) fn store_ioapic(&mut self, offset: u64, value: u32) {
        let Some(pin) = self.ioapic.store(offset, value) else {
            return;
        };
        // The line may have fallen meanwhile. Who has a resampler raises it again if not.
        let mut asked = false;
        for (gsi, ended) in &self.resamplers {
            let (gsi, target) = (*gsi, Target::Ioapic(pin));
            if self.routes.contains(&Route { gsi, target }) {
                ended.signal();
                asked = true;
            }
        }
        if asked {
            self.ioapic.withdraw(pin);
        } else {
            self.with_ioapic(|ioapic, deliver| ioapic.service(pin, deliver));
        }
    }

    /// `KVM_SET_IRQCHIP` of the I/O APIC.
    pub(crate) fn set_ioapic(&mut self, state: &ioapic::IoapicState) {
        self.with_ioapic(|ioapic, deliver| ioapic.set_state(state, deliver));
    }

    /// Whether the port is somebody's here.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        self.has_pic_port(port) || self.pit.as_ref().is_some_and(|pit| pit.has_port(port))
    }

    fn has_pic_port(&self, port: u16) -> bool {
        !self.is_split() && PicPair::has_port(port)
    }

    /// IN of one byte; `None` for a port that is nobody's here.
    pub(crate) fn read_port(&mut self, port: u16, now: u64) -> Option<u8> {
        if let Some(pit) = self.pit.as_mut().filter(|pit| pit.has_port(port)) {
            return Some(pit.read(port, now));
        }
        let value = self.has_pic_port(port).then(|| self.pics.read(port))?;
        self.settle_pics();
        Some(value)
    }

    /// OUT of one byte; whether the port is somebody's here.
    pub(crate) fn write_port(&mut self, port: u16, value: u8, now: u64) -> bool {
        if let Some(pit) = self.pit.as_mut().filter(|pit| pit.has_port(port)) {
            pit.write(port, value, now);
            return true;
        }
        let own = self.has_pic_port(port);
        if own {
            self.pics.write(port, value);
            self.settle_pics();
        }
        own
    }

    /// `KVM_SET_IRQCHIP` of an 8259.
    pub(crate) fn set_pic(&mut self, second: bool, state: super::pic::Pic) {
        self.pics.set_chip(second, state);
        self.settle_pics();
    }
}
