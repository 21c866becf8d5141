//! The kernel inside a bzImage, unpacked on the host: an interpreter would take a second for what takes the host some
//! hundredths.

use std::io::Read;

use lz4_flex::frame::FrameDecoder;
use lzma_rust2::XzReader;
use zstd::stream::read::Decoder as ZstdDecoder;

use super::LinuxError;

/// How kernels are packed, by how the packed begins (`Documentation/arch/x86/boot.rst`, payload_offset). Others (bzip2,
/// LZMA, LZO) unpack themselves in the guest.
const METHODS: [(&[u8], Method); 4] = [
    (b"\x02\x21\x4c\x18", Method::Lz4),
    (b"\x28\xb5\x2f\xfd", Method::Zstd),
    (b"\xfd7zXZ\0", Method::Xz),
    (b"\x1f\x8b", Method::Gzip),
];

/// `zstd -22 --ultra` asks for 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;
const XZ_MEMORY_KIB: u32 = 256 << 10;

#[derive(Clone, Copy, Debug)]
enum Method {
    Lz4,
    Zstd,
    Xz,
    Gzip,
}

/// Unpacks `payload`, to `limit` bytes at the most. `None`: it is packed in a way that is not known here.
pub(super) fn unpack(payload: &[u8], limit: u64) -> Result<Option<Vec<u8>>, LinuxError> {
    let Some((_, method)) = METHODS.iter().find(|(magic, _)| payload.starts_with(magic)) else {
        return Ok(None);
    };
    // The length of what is unpacked is behind it; only LZ4's blocks would go on there.
    let length = payload.len().saturating_sub(4);
    let packed = &payload[..length];
    let unpacked = match method {
        Method::Lz4 => read(FrameDecoder::new(packed), limit),
        Method::Zstd => zstd_decoder(packed).and_then(|decoder| read(decoder, limit)),
        Method::Xz => read(
            XzReader::new_mem_limit(payload, false, XZ_MEMORY_KIB),
            limit,
        ),
        Method::Gzip => read(flate2::read::GzDecoder::new(payload), limit),
    };
    unpacked.ok_or(LinuxError::Payload).map(Some)
}

fn zstd_decoder(packed: &[u8]) -> Option<impl Read> {
    let mut decoder = ZstdDecoder::with_buffer(packed).ok()?;
    decoder.window_log_max(ZSTD_WINDOW_LOG).ok()?;
    Some(decoder.single_frame())
}

/// All of it; `None` if it is damaged or longer than it may be.
fn read(mut decoder: impl Read, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    decoder
        .by_ref()
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    (bytes.len() as u64 <= limit).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8878: one segment of 3 bytes, in one raw block; and the length behind it.
    const FRAME: &[u8] = b"\x28\xb5\x2f\xfd\x20\x03\x19\0\0abc\x03\0\0\0";

    #[test]
    fn zstd_is_unpacked_to_its_limit() {
        assert_eq!(
            unpack(FRAME, 3).ok().flatten().as_deref(),
            Some(&b"abc"[..])
        );
        assert!(matches!(unpack(FRAME, 2), Err(LinuxError::Payload)));
    }

    #[test]
    fn damaged_zstd_is_refused() {
        // Cut off, no frame at all, and a window of 256 MiB.
        let short = &FRAME[..FRAME.len() - 5];
        let wide = b"\x28\xb5\x2f\xfd\0\x90\x19\0\0abc\x03\0\0\0";
        for payload in [short, &b"\x28\xb5\x2f\xfd\xff\xff\xff\xff\xff"[..], wide] {
            assert!(matches!(unpack(payload, 99), Err(LinuxError::Payload)));
        }
    }
}
