//! Every instruction that legacy encodings have, found by decoding all of them: prefix, REX.W, opcode and ModRM.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    clippy::cast_possible_truncation,
    reason = "each test uses a part of it"
)]

use std::collections::BTreeMap;

use iced_x86::{Code, Decoder, DecoderOptions, EncodingKind};

const PREFIXES: [&[u8]; 5] = [&[], &[0x66], &[0xf2], &[0xf3], &[0x67]];
const MAPS: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
/// Examples that are kept of each.
const EXAMPLES: usize = 24;

/// The instructions of code of this width, each with the beginnings of some encodings: what comes behind is free.
pub fn all(bits: u32) -> BTreeMap<Code, Vec<Vec<u8>>> {
    let rex: &[Option<u8>] = if bits == 64 {
        &[None, Some(0x48)]
    } else {
        &[None]
    };
    let mut found = BTreeMap::<Code, Vec<Vec<u8>>>::new();
    for prefix in PREFIXES {
        for map in MAPS {
            for rex in rex {
                for opcode in 0..=255_u8 {
                    let head: Vec<u8> = [prefix, rex.as_slice(), map, &[opcode]].concat();
                    add_examples(bits, &head, &mut found);
                }
            }
        }
    }
    found
}

fn add_examples(bits: u32, head: &[u8], found: &mut BTreeMap<Code, Vec<Vec<u8>>>) {
    for modrm in 0..=255_u8 {
        let bytes = [head, &[modrm], &[0; 12]].concat();
        let mut decoder = Decoder::with_ip(bits, &bytes, 0x10_0000, DecoderOptions::NONE);
        let code = decoder.decode().code();
        if code == Code::INVALID || code.encoding() != EncodingKind::Legacy {
            continue;
        }
        let examples = found.entry(code).or_default();
        // Some of each form, spread over the ModRM bytes.
        if examples.len() < EXAMPLES {
            examples.push([head, &[modrm]].concat());
        } else {
            let place = usize::from(modrm).wrapping_mul(0x9d) / 3 % (4 * EXAMPLES);
            if let Some(example) = examples.get_mut(place) {
                *example = [head, &[modrm]].concat();
            }
        }
    }
}
