//! Weights and tables as runs of bytes: element by element they would take most of the time of reading a program.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

type Table = Box<[u8; 256]>;

pub(crate) mod signed {
    use std::borrow::Cow;

    use super::*;

    pub(crate) fn serialize<S: Serializer>(values: &[i8], to: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = values.iter().map(|&value| value as u8).collect();
        to.serialize_bytes(&bytes)
    }

    /// Borrowed: a model's weights would be copied at every load.
    pub(crate) fn deserialize<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Cow<'a, [i8]>, D::Error> {
        let bytes = <&'a [u8]>::deserialize(from)?;
        // SAFETY: the same memory for the same time; i8 has the size and alignment of u8, and takes any bits.
        let values = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<i8>(), bytes.len()) };
        Ok(Cow::Borrowed(values))
    }
}

pub(crate) mod table {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(table: &Table, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&**table)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Table, D::Error> {
        entries(<&[u8]>::deserialize(from)?)
    }
}

pub(crate) mod optional_table {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(table: &Option<Table>, to: S) -> Result<S::Ok, S::Error> {
        struct Bytes<'a>(&'a Table);
        impl Serialize for Bytes<'_> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                table::serialize(self.0, to)
            }
        }
        table.as_ref().map(Bytes).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Table>, D::Error> {
        <Option<&[u8]>>::deserialize(from)?.map(entries).transpose()
    }
}

fn entries<E: Error>(bytes: &[u8]) -> Result<Table, E> {
    let entries: &[u8; 256] = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &"256 entries"))?;
    Ok(Box::new(*entries))
}
