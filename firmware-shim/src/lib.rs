//! The device's side of the wire: encodes requests, decodes replies, without std or alloc.
#![no_std]
