//! Where a GSI leads to: pins of the controllers, or messages (`KVM_SET_GSI_ROUTING`).

use super::{ioapic, pic};

/// GSIs are fewer (`KVM_MAX_IRQ_ROUTES`), and so are the entries of a table.
pub(crate) const MAX_ROUTES: u32 = 4096;

/// One destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A pin of the 8259 pair, 0 to 15.
    Pic(usize),
    /// A pin of the I/O APIC.
    Ioapic(usize),
    /// A message-signalled interrupt.
    Msi { address: u64, data: u32 },
}

/// A GSI's way to one destination; a GSI may have several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) gsi: u32,
    pub(crate) target: Target,
}

/// The table that `KVM_CREATE_IRQCHIP` makes: each GSI to the pins of its number.
pub(crate) fn default_routes() -> Vec<Route> {
    let gsis = 0..u32::try_from(ioapic::PINS).unwrap_or(0);
    let pins = gsis.zip(0..ioapic::PINS);
    let route = |gsi, target| Route { gsi, target };
    pins.flat_map(|(gsi, pin)| {
        let pic = (pin < pic::PINS).then(|| route(gsi, Target::Pic(pin)));
        [Some(route(gsi, Target::Ioapic(pin))), pic]
    })
    .flatten()
    .collect()
}
