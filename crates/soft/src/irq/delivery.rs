//! Interrupt messages, and how one finds its local APICs (`kvm_irq_delivery_to_apic`).

use super::lapic::Lapic;

/// How the receiver takes a message: the same three bits in ICR, LVT, redirection table and MSI data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum DeliveryMode {
    #[default]
    Fixed,
    LowestPriority,
    Smi,
    RemoteRead,
    Nmi,
    Init,
    StartUp,
    ExtInt,
}

impl DeliveryMode {
    /// Bits 10:8.
    pub(crate) fn of(bits: u32) -> Self {
        match bits >> 8 & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::RemoteRead,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::ExtInt,
        }
    }
}

/// Who is meant, if it is not the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shorthand {
    #[default]
    Destination,
    Myself,
    All,
    AllButMyself,
}

/// An interrupt on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) mode: DeliveryMode,
    pub(crate) vector: u8,
    pub(crate) destination: u32,
    pub(crate) logical: bool,
    pub(crate) level_triggered: bool,
    /// Level-triggered and not asserted, it is nothing.
    pub(crate) assert: bool,
    pub(crate) shorthand: Shorthand,
    /// One of several receivers is enough.
    pub(crate) redirect: bool,
}

impl Message {
    /// What a write of ICR sends.
    pub(crate) fn of_icr(low: u32, destination: u32) -> Self {
        Self {
            mode: DeliveryMode::of(low),
            vector: low.to_le_bytes()[0],
            destination,
            logical: low >> 11 & 1 == 1,
            level_triggered: low >> 15 & 1 == 1,
            assert: low >> 14 & 1 == 1,
            shorthand: match low >> 18 & 3 {
                0 => Shorthand::Destination,
                1 => Shorthand::Myself,
                2 => Shorthand::All,
                _ => Shorthand::AllButMyself,
            },
            redirect: false,
        }
    }

    /// What a message-signalled interrupt sends. `wide_ids`: the destination's upper bits are those of the
    /// upper address (`KVM_CAP_X2APIC_API`).
    pub(crate) fn of_msi(address: u64, data: u32, wide_ids: bool) -> Self {
        let destination = u32::from((address >> 12).to_le_bytes()[0]);
        let [_, _, _, _, _, upper @ ..] = address.to_le_bytes();
        let upper = u32::from_le_bytes([0, upper[0], upper[1], upper[2]]);
        Self {
            mode: DeliveryMode::of(data),
            vector: data.to_le_bytes()[0],
            destination: destination | if wide_ids { upper } else { 0 },
            logical: address >> 2 & 1 == 1,
            level_triggered: data >> 15 & 1 == 1,
            assert: true,
            shorthand: Shorthand::Destination,
            redirect: address >> 3 & 1 == 1,
        }
    }

    /// It is for those of an ID or a logical set, not for all of a kind.
    fn is_named(&self) -> bool {
        self.shorthand == Shorthand::Destination && !matches!(self.destination, 0xff | u32::MAX)
    }

    /// One receiver is chosen among several.
    fn is_for_one(&self) -> bool {
        self.redirect || self.mode == DeliveryMode::LowestPriority
    }
}

/// Delivers `message`, which local APIC `source` sent, or a device. How many took it; `None` if it was for all
/// and there was nobody.
pub(crate) fn deliver(lapics: &mut [Lapic], source: Option<u32>, message: &Message) -> Option<u32> {
    let is_source = |lapic: &Lapic| source == Some(lapic.id());
    let is_meant = |lapic: &Lapic| {
        lapic.is_enabled()
            && match message.shorthand {
                Shorthand::Destination => {
                    lapic.is_destination(message.destination, message.logical, source.is_none())
                }
                Shorthand::Myself => is_source(lapic),
                Shorthand::All => true,
                Shorthand::AllButMyself => !is_source(lapic),
            }
    };
    let mut meant: Vec<&mut Lapic> = lapics.iter_mut().filter(|lapic| is_meant(lapic)).collect();
    if message.is_for_one() {
        meant.retain(|lapic| lapic.is_software_enabled());
        // As KVM does: the vector chooses, so that each has its place.
        let chosen = usize::from(message.vector) % meant.len().max(1);
        meant = meant.into_iter().skip(chosen).take(1).collect();
    }
    if meant.is_empty() {
        return message.is_named().then_some(0);
    }
    let takers = meant.iter_mut().map(|lapic| lapic.accept(message));
    Some(takers.map(u32::from).sum())
}
