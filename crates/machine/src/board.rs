//! What the guest finds at its ports: a serial console, a port that ends it, and one that asks for a policy.

use std::io::{self, Write};

use vm_superio::serial::{Error, NoEvents};
use vm_superio::{Serial, Trigger};

/// COM1 (16550A), eight ports. It raises no interrupt.
pub const SERIAL_PORT: u16 = 0x3f8;
/// A byte written here ends the guest with that code.
pub const EXIT_PORT: u16 = 0xf4;
/// A byte written here asks the host for the policy of that number.
pub const POLICY_PORT: u16 = 0x4d53;

const SERIAL_LAST: u16 = SERIAL_PORT + 7;

/// What a write to a port asks of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// End the guest.
    Exit(u8),
    /// Put the policy of this number into force.
    Policy(u8),
}

/// The devices.
pub(crate) struct Board<W: Write> {
    serial: Serial<NoInterrupt, NoEvents, W>,
}

impl<W: Write> Board<W> {
    pub(crate) fn new(console: W) -> Self {
        Self {
            serial: Serial::new(NoInterrupt, console),
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

    fn read_byte(&mut self, port: u16) -> u8 {
        match serial_register(port) {
            Some(register) => self.serial.read(register),
            None => 0xff,
        }
    }

    fn write_byte(&mut self, port: u16, byte: u8) -> io::Result<Option<Request>> {
        match port {
            EXIT_PORT => return Ok(Some(Request::Exit(byte))),
            POLICY_PORT => return Ok(Some(Request::Policy(byte))),
            _ => {}
        }
        let Some(register) = serial_register(port) else {
            return Ok(None);
        };
        match self.serial.write(register, byte) {
            Err(Error::IOError(error)) => Err(error),
            // In loopback mode the guest's own input overflows: its own loss.
            Ok(()) | Err(_) => Ok(None),
        }
    }
}

fn serial_register(port: u16) -> Option<u8> {
    match port {
        SERIAL_PORT..=SERIAL_LAST => u8::try_from(port - SERIAL_PORT).ok(),
        _ => None,
    }
}

/// There is no interrupt controller to tell.
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_the_serial_port_comes_out() {
        let mut board = Board::new(Vec::new());
        for byte in *b"ok\n" {
            assert_eq!(board.write(SERIAL_PORT, 1, byte.into()).unwrap(), None);
        }
        assert_eq!(board.serial.writer(), b"ok\n");
    }

    #[test]
    fn transmitter_is_always_ready() {
        let mut board = Board::new(Vec::new());
        assert_eq!(board.read(SERIAL_PORT + 5, 1) & 0x20, 0x20);
    }

    #[test]
    fn port_without_a_device_reads_ones_and_takes_anything() {
        let mut board = Board::new(Vec::new());
        assert_eq!(board.read(0x80, 4), u32::MAX);
        assert_eq!(board.read(0xffff, 2), 0xffff);
        assert_eq!(board.write(0x80, 4, 0).unwrap(), None);
    }

    #[test]
    fn requests_carry_their_byte() {
        let mut board = Board::new(Vec::new());
        assert_eq!(
            board.write(EXIT_PORT, 1, 3).unwrap(),
            Some(Request::Exit(3))
        );
        assert_eq!(
            board.write(POLICY_PORT, 1, 1).unwrap(),
            Some(Request::Policy(1))
        );
    }
}
