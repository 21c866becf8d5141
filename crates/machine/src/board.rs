//! What the guest finds at its ports: [`Board`], with a serial console, power, a port that ends the guest, and one
//! that asks for a policy.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;

use msrgate_core::{LineLevel, Vm};
use vm_superio::serial::{Error, NoEvents};
use vm_superio::{Serial, Trigger};

use crate::screen::Screen;

/// COM1 (16550A), eight ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// The line that COM1 raises, where there are interrupt controllers.
pub const SERIAL_GSI: u32 = 4;
/// A byte written here ends the guest with that code.
pub const EXIT_PORT: u16 = 0xf4;
/// A byte written here asks the host for the policy of that number.
pub const POLICY_PORT: u16 = 0x4d53;

/// ACPI's sleep control register: [`POWER_OFF`] ends the guest.
pub(crate) const SLEEP_CONTROL_PORT: u16 = 0x604;
/// ACPI's reset register: [`RESET`] ends the guest too.
pub(crate) const RESET_PORT: u16 = 0x605;
/// ACPI's sleep status register: nobody here sleeps.
pub(crate) const SLEEP_STATUS_PORT: u16 = 0x606;
/// SLP_TYP of the state S5; the DSDT says so.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
/// What resets by [`RESET_PORT`].
pub(crate) const RESET: u8 = 1;

/// SLP_EN, and the type of sleep; ACPI 6.5, 4.8.3.7.
const POWER_OFF: u8 = 1 << 5 | SLEEP_TYPE_OFF << 2;
/// The keyboard controller, of which only the command that pulls the reset line exists.
const KEYBOARD_PORT: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

const SERIAL_LAST: u16 = SERIAL_PORT + 7;
/// What was typed and the guest has not read yet, beyond the serial port's own 64 bytes.
const INPUT_LIMIT: usize = 4096;

/// What a write to a port asks of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// End the guest.
    Exit(u8),
    /// Put the policy of this number into force.
    Policy(u8),
    /// Switch the machine off.
    PowerOff,
    /// Start it again.
    Reset,
    /// Its kernel has said that it panicked, and goes no further.
    Panic,
}

/// The devices.
pub(crate) struct Board<V: Vm, W: Write> {
    serial: Serial<SerialLine<V>, NoEvents, Screen<W>>,
    input: VecDeque<u8>,
}

impl<V: Vm, W: Write> Board<V, W> {
    /// The serial port raises its line of `vm` if that has one.
    pub(crate) fn new(vm: Arc<V>, console: W) -> Self {
        Self {
            serial: Serial::new(SerialLine(vm), Screen::new(console)),
            input: VecDeque::new(),
        }
    }

    /// What IN reads. Where there is no device, all bits are set.
    pub(crate) fn read(&mut self, port: u16, len_bytes: u8) -> u32 {
        let mut value = 0;
        for position in (0..len_bytes.min(4)).rev() {
            value = value << 8 | u32::from(self.read_byte(port.wrapping_add(position.into())));
        }
        value
    }

    /// OUT. A wide one goes to consecutive ports, as on a bus of bytes.
    pub(crate) fn write(
        &mut self,
        port: u16,
        len_bytes: u8,
        value: u32,
    ) -> io::Result<Option<Request>> {
        let mut request = None;
        for (position, byte) in (0..len_bytes).zip(value.to_le_bytes()) {
            let asked = self.write_byte(port.wrapping_add(position.into()), byte)?;
            request = request.or(asked);
        }
        Ok(request)
    }

    /// Types on the console; says how many of the bytes there was room for.
    pub(crate) fn type_bytes(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(INPUT_LIMIT - self.input.len());
        self.input.extend(&bytes[..count]);
        self.feed();
        count
    }

    fn read_byte(&mut self, port: u16) -> u8 {
        let Some(register) = serial_register(port) else {
            return match port {
                SLEEP_STATUS_PORT => 0,
                _ => 0xff,
            };
        };
        let value = self.serial.read(register);
        self.feed();
        value
    }

    fn write_byte(&mut self, port: u16, byte: u8) -> io::Result<Option<Request>> {
        let is_panicked = self.serial.writer().has_panicked();
        let reset = if is_panicked {
            Request::Panic
        } else {
            Request::Reset
        };
        match (port, byte) {
            (EXIT_PORT, code) => return Ok(Some(Request::Exit(code))),
            (POLICY_PORT, number) => return Ok(Some(Request::Policy(number))),
            (SLEEP_CONTROL_PORT, POWER_OFF) => return Ok(Some(Request::PowerOff)),
            (RESET_PORT, RESET) | (KEYBOARD_PORT, KEYBOARD_RESET) => return Ok(Some(reset)),
            _ => {}
        }
        let Some(register) = serial_register(port) else {
            return Ok(None);
        };
        // In loopback mode the guest's own input overflows: its own loss.
        if let Err(Error::IOError(error)) = self.serial.write(register, byte) {
            return Err(error);
        }
        let has_said_all = self.serial.writer().has_said_all();
        Ok(has_said_all.then_some(Request::Panic))
    }

    /// Hands over what was typed, as far as the serial port takes it.
    fn feed(&mut self) {
        let room = self.serial.fifo_capacity().min(self.input.len());
        let bytes: Vec<u8> = self.input.iter().take(room).copied().collect();
        // In loopback mode it takes nothing; what is left is offered again.
        let taken = self.serial.enqueue_raw_bytes(&bytes).unwrap_or(0);
        self.input.drain(..taken);
    }
}

fn serial_register(port: u16) -> Option<u8> {
    match port {
        SERIAL_PORT..=SERIAL_LAST => u8::try_from(port - SERIAL_PORT).ok(),
        _ => None,
    }
}

/// The interrupt of COM1, which is edge-triggered.
struct SerialLine<V>(Arc<V>);

impl<V: Vm> Trigger for SerialLine<V> {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        // A machine without interrupt controllers has nobody to tell.
        let _ = self.0.set_irq_line(SERIAL_GSI, LineLevel::High);
        let _ = self.0.set_irq_line(SERIAL_GSI, LineLevel::Low);
        Ok(())
    }
}
