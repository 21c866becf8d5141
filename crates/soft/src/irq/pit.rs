//! [`Pit`]: the 8254, whose channel 0 is IRQ 0, and port 0x61 with channel 2's gate.
//!
//! A state machine over nanoseconds. As in KVM, BCD counts are binary, the null-count bit is never set, and mode 2's
//! output is high for the count for which an 8254's is low.

#[cfg(test)]
mod tests;

/// Counts in a second (`KVM_PIT_FREQ`).
const HZ: u128 = 1_193_181;
const NANOSECONDS: u128 = 1_000_000_000;
/// A guest does not get more ticks than this (`kvm.min_timer_period_us`).
const MIN_PERIOD: u64 = 200_000;
/// Ticks that are made up for later are not more than these.
const MAX_PENDING: u64 = 1 << 16;
/// The port of the speaker and of channel 2's gate.
pub(crate) const SPEAKER_PORT: u16 = 0x61;
/// `KVM_PIT_FLAGS_*`.
const FLAG_HPET_LEGACY: u32 = 1;
const FLAG_SPEAKER_ON: u32 = 2;
/// Which byte of a count comes next, other than the low one alone.
const HIGH: u8 = 2;
const WORD_LOW: u8 = 3;
const WORD_HIGH: u8 = 4;

/// One channel: `struct kvm_pit_channel_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Channel {
    pub(crate) count: u32,
    pub(crate) latched_count: u16,
    pub(crate) count_latched: u8,
    pub(crate) status_latched: u8,
    pub(crate) status: u8,
    pub(crate) read_state: u8,
    pub(crate) write_state: u8,
    pub(crate) write_latch: u8,
    pub(crate) rw_mode: u8,
    pub(crate) mode: u8,
    pub(crate) bcd: u8,
    pub(crate) gate: u8,
    /// When counting began, in nanoseconds.
    pub(crate) count_load_time: u64,
}

/// The timer behind channel 0.
#[derive(Clone, Copy, Debug, Default)]
struct Timer {
    period: u64,
    target: u64,
    armed: bool,
    periodic: bool,
}

/// A PIT.
#[derive(Debug)]
pub(crate) struct Pit {
    channels: [Channel; 3],
    flags: u32,
    timer: Timer,
    /// Ticks that the guest has not had.
    pending: u64,
    /// The guest has seen the last tick.
    acknowledged: bool,
    /// Ticks that come while one waits are made up for.
    reinject: bool,
    /// Port 0x61 is not the client's.
    has_speaker: bool,
}

impl Pit {
    /// As after reset: nothing ticks until a mode is set.
    pub(crate) fn new(has_speaker: bool, now: u64) -> Self {
        let channel = |gate| Channel {
            count: 0x1_0000,
            mode: 0xff,
            gate,
            count_load_time: now,
            ..Channel::default()
        };
        Self {
            channels: [channel(1), channel(1), channel(0)],
            flags: 0,
            timer: Timer::default(),
            pending: 0,
            acknowledged: true,
            reinject: true,
            has_speaker,
        }
    }

    /// Whether the port is one of its own.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        matches!(port, 0x40..=0x43) || self.has_speaker && port == SPEAKER_PORT
    }

    /// OUT of one byte.
    pub(crate) fn write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            SPEAKER_PORT => self.write_speaker(value, now),
            0x43 => self.command(value, now),
            _ => self.write_count(usize::from(port & 3), value, now),
        }
    }

    /// IN of one byte.
    pub(crate) fn read(&mut self, port: u16, now: u64) -> u8 {
        match port {
            SPEAKER_PORT => self.read_speaker(now),
            0x43 => 0,
            _ => self.read_count(usize::from(port & 3), now),
        }
    }

    fn command(&mut self, value: u8, now: u64) {
        let channel = usize::from(value >> 6);
        if channel == 3 {
            for channel in (0..3).filter(|channel| value & 2 << channel != 0) {
                if value & 0x20 == 0 {
                    self.latch_count(channel, now);
                }
                if value & 0x10 == 0 {
                    self.latch_status(channel, now);
                }
            }
            return;
        }
        let access = value >> 4 & 3;
        if access == 0 {
            self.latch_count(channel, now);
            return;
        }
        let channel = &mut self.channels[channel];
        (channel.rw_mode, channel.read_state, channel.write_state) = (access, access, access);
        // Modes 6 and 7 are other names of 2 and 3.
        channel.mode = value >> 1 & 7;
        if channel.mode > 5 {
            channel.mode -= 4;
        }
        channel.bcd = value & 1;
    }

    fn write_count(&mut self, index: usize, value: u8, now: u64) {
        let channel = &mut self.channels[index];
        let value = u32::from(value);
        let count = match channel.write_state {
            HIGH => value << 8,
            WORD_LOW => {
                channel.write_latch = value.to_le_bytes()[0];
                channel.write_state = WORD_HIGH;
                return;
            }
            WORD_HIGH => {
                channel.write_state = WORD_LOW;
                value << 8 | u32::from(channel.write_latch)
            }
            _ => value,
        };
        self.load_count(index, count, now);
    }

    fn read_count(&mut self, index: usize, now: u64) -> u8 {
        let [low, high] = self.count(index, now).to_le_bytes();
        let channel = &mut self.channels[index];
        if std::mem::take(&mut channel.status_latched) != 0 {
            return channel.status;
        }
        let [latched_low, latched_high] = channel.latched_count.to_le_bytes();
        match (
            std::mem::take(&mut channel.count_latched),
            channel.read_state,
        ) {
            (0, HIGH) => high,
            (0, WORD_LOW) => {
                channel.read_state = WORD_HIGH;
                low
            }
            (0, WORD_HIGH) => {
                channel.read_state = WORD_LOW;
                high
            }
            (0, _) => low,
            (HIGH, _) => latched_high,
            (WORD_LOW, _) => {
                channel.count_latched = HIGH;
                latched_low
            }
            _ => latched_low,
        }
    }

    /// The largest count is written as 0.
    fn load_count(&mut self, index: usize, count: u32, now: u64) {
        let count = if count == 0 { 0x1_0000 } else { count };
        let channel = &mut self.channels[index];
        channel.count = count;
        if index != 0 {
            channel.count_load_time = now;
            return;
        }
        let mode = channel.mode;
        self.timer.armed = false;
        if !matches!(mode, 0..=4) || self.flags & FLAG_HPET_LEGACY != 0 {
            return;
        }
        let nanoseconds = u128::from(count) * NANOSECONDS / HZ;
        let interval = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
        let periodic = matches!(mode, 2 | 3);
        self.timer = Timer {
            period: if periodic {
                interval.max(MIN_PERIOD)
            } else {
                interval
            },
            target: now.saturating_add(interval),
            armed: true,
            periodic,
        };
        (self.pending, self.acknowledged) = (0, true);
    }

    /// Counts since counting began.
    fn elapsed(&self, index: usize, now: u64) -> u64 {
        let start = if index == 0 {
            self.timer.target.saturating_sub(self.timer.period)
        } else {
            self.channels[index].count_load_time
        };
        let nanoseconds = u128::from(now.saturating_sub(start));
        u64::try_from(nanoseconds * HZ / NANOSECONDS).unwrap_or(u64::MAX)
    }

    fn count(&self, index: usize, now: u64) -> u16 {
        let channel = &self.channels[index];
        let count = u64::from(channel.count).max(1);
        let elapsed = if index == 0 && self.timer.period == 0 {
            0
        } else {
            self.elapsed(index, now)
        };
        let counter = match channel.mode {
            0 | 1 | 4 | 5 => count.wrapping_sub(elapsed),
            3 => count - elapsed.wrapping_mul(2) % count,
            _ => count - elapsed % count,
        };
        let [low, high, ..] = counter.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    fn output(&self, index: usize, now: u64) -> bool {
        let channel = &self.channels[index];
        let (count, elapsed) = (u64::from(channel.count).max(1), self.elapsed(index, now));
        match channel.mode {
            1 => elapsed < count,
            2 => elapsed != 0 && elapsed % count == 0,
            3 => elapsed % count < count.div_ceil(2),
            4 | 5 => elapsed == count,
            _ => elapsed >= count,
        }
    }

    fn latch_count(&mut self, index: usize, now: u64) {
        let count = self.count(index, now);
        let channel = &mut self.channels[index];
        if channel.count_latched == 0 {
            channel.latched_count = count;
            channel.count_latched = channel.rw_mode;
        }
    }

    fn latch_status(&mut self, index: usize, now: u64) {
        let output = self.output(index, now);
        let channel = &mut self.channels[index];
        if channel.status_latched == 0 {
            channel.status =
                u8::from(output) << 7 | channel.rw_mode << 4 | channel.mode << 1 | channel.bcd;
            channel.status_latched = 1;
        }
    }

    fn write_speaker(&mut self, value: u8, now: u64) {
        self.flags &= !FLAG_SPEAKER_ON;
        if value & 2 != 0 {
            self.flags |= FLAG_SPEAKER_ON;
        }
        let channel = &mut self.channels[2];
        let rises = channel.gate < value & 1;
        if rises && matches!(channel.mode, 1 | 2 | 3 | 5) {
            channel.count_load_time = now;
        }
        channel.gate = value & 1;
    }

    /// Bit 4 toggles about every 15 µs, as memory was once refreshed.
    fn read_speaker(&self, now: u64) -> u8 {
        let refresh = u8::from(now >> 14 & 1 == 1) << 4;
        let on = u8::from(self.flags & FLAG_SPEAKER_ON != 0) << 1;
        on | refresh | self.channels[2].gate & 1 | u8::from(self.output(2, now)) << 5
    }

    /// When channel 0 ticks next.
    pub(crate) fn target(&self) -> Option<u64> {
        self.timer.armed.then_some(self.timer.target)
    }

    /// Lets time pass; whether IRQ 0 pulses.
    pub(crate) fn tick(&mut self, now: u64) -> bool {
        if !self.timer.armed || now < self.timer.target {
            return false;
        }
        let mut ticks = 1;
        if self.timer.periodic {
            ticks += (now - self.timer.target) / self.timer.period;
            self.timer.target += ticks * self.timer.period;
        } else {
            self.timer.armed = false;
        }
        if !self.reinject {
            return true;
        }
        self.pending = (self.pending + ticks).min(MAX_PENDING);
        std::mem::take(&mut self.acknowledged)
    }

    /// The guest has had its interrupt; whether IRQ 0 pulses again to make up for one that it missed.
    pub(crate) fn acknowledge(&mut self) -> bool {
        if !self.reinject {
            return false;
        }
        self.acknowledged = true;
        self.pending = self.pending.saturating_sub(1);
        self.pending > 0 && std::mem::take(&mut self.acknowledged)
    }

    /// `KVM_REINJECT_CONTROL`.
    pub(crate) fn set_reinject(&mut self, reinject: bool) {
        if self.reinject != reinject {
            self.reinject = reinject;
            (self.pending, self.acknowledged) = (0, true);
        }
    }

    /// `KVM_GET_PIT2`: the channels and the flags.
    pub(crate) fn state(&self) -> ([Channel; 3], u32) {
        (self.channels, self.flags)
    }

    /// `KVM_SET_PIT2`. Counting starts anew.
    pub(crate) fn set_state(&mut self, channels: [Channel; 3], flags: u32, now: u64) {
        self.flags = flags;
        self.channels = channels;
        for (index, channel) in channels.iter().enumerate() {
            self.load_count(index, channel.count, now);
        }
    }
}
