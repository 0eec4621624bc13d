//! The frozen structs, spelt out by what they serialise: field names, types, order. The text is never edited; a
//! message that has to change becomes a `…V2` with a text of its own.

extern crate std;

use std::{format, string::String, vec::Vec};

use serde::ser::{
    Error as _, Impossible, Serialize, SerializeSeq, SerializeStruct, SerializeTuple, Serializer,
};

use super::*;

const TENSOR: &str = "[TensorV1{name:str,dtype:u8,shape:[u32]}]";

#[test]
fn version_1_is_frozen() {
    let request: RequestV1<'_, TensorsV1<'_>> =
        read(&[1, b'm', 0, 1, 0, 3, 0, 0, 1, 0, 1, 1, 2]).expect("one tensor of shape [2]");
    assert_eq!(
        schema(&request),
        format!(
            "RequestV1{{model:str,deadline_ms:u32,priority:u8,content:u8,want:u8,stream:u32,sequence:u32,\
             tensors:{TENSOR}}}"
        )
    );
    let mut reply: Vec<u8> = [0; 42].into();
    reply.extend([1, 0, 1, 1, 2, 1, 0, 0, 0, 0, 0, 0]);
    let reply: ReplyV1<'_, TensorsV1<'_>, ClassesV1<'_>> = read(&reply).expect("one tensor and one class");
    assert_eq!(
        schema(&reply),
        format!(
            "ReplyV1{{status:u16,model:str,version:u64,digest:(u8;32),signed:bool,queue_us:u32,pre_us:u32,\
             infer_us:u32,post_us:u32,retry_after_ms:u32,detail:str,tensors:{TENSOR},\
             classes:[ClassV1{{index:u32,score:f32,label:str}}]}}"
        )
    );
    assert_eq!(schema(&QueryV1 { what: 1 }), "QueryV1{what:u8}");
    assert_eq!(schema(&AnswerV1 { status: 1, detail: "" }), "AnswerV1{status:u16,detail:str}");
}

fn schema(value: &impl Serialize) -> String {
    value.serialize(Schema).expect("made of what version 1 uses")
}

/// Serialises to the type of what it is given.
struct Schema;

/// A sequence, tuple or struct, so far.
struct Parts {
    text: String,
    parts: Vec<String>,
}

type Text = Result<String, std::fmt::Error>;

macro_rules! scalars {
    ($($method:ident $type:ty),*) => { $(
        fn $method(self, _: $type) -> Text { Ok(stringify!($type).trim_start_matches('&').into()) }
    )* };
}

/// Enums, options and maps have no place in the frozen structs.
macro_rules! refused {
    ($($method:ident($($type:ty),*) -> $ok:ty;)*) => { $(
        fn $method(self, $(_: $type),*) -> Result<$ok, std::fmt::Error> {
            Err(std::fmt::Error::custom(stringify!($method)))
        }
    )* };
}

impl Serializer for Schema {
    type Ok = String;
    type Error = std::fmt::Error;
    type SerializeSeq = Parts;
    type SerializeTuple = Parts;
    type SerializeStruct = Parts;
    type SerializeTupleStruct = Impossible<String, std::fmt::Error>;
    type SerializeTupleVariant = Impossible<String, std::fmt::Error>;
    type SerializeMap = Impossible<String, std::fmt::Error>;
    type SerializeStructVariant = Impossible<String, std::fmt::Error>;

    scalars!(
        serialize_bool bool, serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64,
        serialize_f32 f32, serialize_str &str, serialize_i8 i8, serialize_i16 i16, serialize_i32 i32,
        serialize_i64 i64, serialize_f64 f64, serialize_char char, serialize_bytes &[u8]
    );

    refused! {
        serialize_none() -> String;
        serialize_unit() -> String;
        serialize_unit_struct(&'static str) -> String;
        serialize_unit_variant(&'static str, u32, &'static str) -> String;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, _: &T) -> Text {
        self.serialize_str("")
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Text {
        Err(std::fmt::Error)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, _: &T) -> Text {
        Err(std::fmt::Error)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Text {
        Err(std::fmt::Error)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Parts, std::fmt::Error> {
        Ok(Parts { text: String::new(), parts: Vec::new() })
    }

    fn serialize_tuple(self, _: usize) -> Result<Parts, std::fmt::Error> {
        self.serialize_seq(None)
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Parts, std::fmt::Error> {
        Ok(Parts { text: name.into(), parts: Vec::new() })
    }
}

impl SerializeSeq for Parts {
    type Ok = String;
    type Error = std::fmt::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Self::Error> {
        self.parts.push(value.serialize(Schema)?);
        Ok(())
    }

    fn end(self) -> Text {
        Ok(format!("[{}]", self.parts.join(",")))
    }
}

impl SerializeTuple for Parts {
    type Ok = String;
    type Error = std::fmt::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Self::Error> {
        SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Text {
        Ok(format!("({};{})", self.parts[0], self.parts.len()))
    }
}

impl SerializeStruct for Parts {
    type Ok = String;
    type Error = std::fmt::Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), Self::Error> {
        self.parts.push(format!("{key}:{}", value.serialize(Schema)?));
        Ok(())
    }

    fn end(self) -> Text {
        Ok(format!("{}{{{}}}", self.text, self.parts.join(",")))
    }
}
