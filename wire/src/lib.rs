//! The frames, messages, status codes and topic names of tractd, without std or alloc.
#![no_std]
