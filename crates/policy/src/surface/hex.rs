//! Numbers as texts in hexadecimal, the way they stand in a document.

use serde::de::{Deserialize, Deserializer, Error};

/// `0x` and digits.
fn parse<'de, D: Deserializer<'de>>(deserializer: D, max: u64) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.strip_prefix("0x").filter(|digits| {
        !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    });
    digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .filter(|&number| number <= max)
        .ok_or_else(|| {
            D::Error::custom(format_args!(
                "expected a number of hexadecimal digits with 0x, at most {max:#x}"
            ))
        })
}

/// An MSR index.
pub(super) mod index {
    use msrgate_core::MsrIndex;
    use serde::de::{Deserializer, Error};
    use serde::ser::Serializer;

    pub(in super::super) fn serialize<S: Serializer>(
        index: &MsrIndex,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(index)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<MsrIndex, D::Error> {
        let index = super::parse(deserializer, u32::MAX.into())?;
        u32::try_from(index).map(MsrIndex).map_err(D::Error::custom)
    }
}

/// What an MSR holds, if that is known.
pub(super) mod value {
    use serde::de::Deserializer;
    use serde::ser::Serializer;

    pub(in super::super) fn serialize<S: Serializer>(
        value: &Option<u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(&format_args!("{value:#x}")),
            None => serializer.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u64>, D::Error> {
        super::parse(deserializer, u64::MAX).map(Some)
    }
}
