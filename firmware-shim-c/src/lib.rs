//! The C ABI of the device's side of the wire: a client for a serial line, in the caller's memory.
//!
//! The header `include/tractd.h` is made from this file. `firmware/c-lib` makes a static library of it, without std,
//! alloc or a panic that could be reached. Several inputs at once, and MQTT topics, are for Rust only.
//!
//! Every function takes null for what it is: a pointer that may not be null is checked, and `TRACTD_STEP_INVALID` or 0
//! says so. That pointers point to what they say, for as long as they say, C cannot prove and the caller must see to.
#![no_std]
#![allow(non_camel_case_types, reason = "the names are C's")]

use core::{ffi::c_char, mem::MaybeUninit, slice};

use tractd_firmware_shim::{
    Call, Client, DType, Input, Patience, Priority, ReplyView, Serial, Step, Tensor, Want,
    wire::{RANK_MAX, SELECTOR_LEN_MAX, TENSOR_NAME_LEN_MAX},
};

type State = Client<'static, Serial<'static>>;

/// A client, in the caller's memory; larger than it needs to be today, so that it can grow. Only the functions below
/// may look into it.
#[repr(C, align(8))]
pub struct tractd_client {
    words: [usize; 40],
}

const _: () = {
    assert!(size_of::<State>() <= size_of::<tractd_client>());
    assert!(align_of::<State>() <= align_of::<tractd_client>());
};

/// The element type of a tensor.
#[repr(u8)]
#[derive(Clone, Copy)]
pub enum tractd_dtype {
    /// Unsigned, 8 bits.
    U8 = 1,
    /// Signed, 8 bits.
    I8 = 2,
    /// Unsigned, 16 bits.
    U16 = 3,
    /// Signed, 16 bits.
    I16 = 4,
    /// Unsigned, 32 bits.
    U32 = 5,
    /// Signed, 32 bits.
    I32 = 6,
    /// Unsigned, 64 bits.
    U64 = 7,
    /// Signed, 64 bits.
    I64 = 8,
    /// IEEE 754 binary16.
    F16 = 9,
    /// IEEE 754 binary32.
    F32 = 10,
    /// IEEE 754 binary64.
    F64 = 11,
    /// One byte, 0 or 1.
    Bool = 12,
}

/// Statuses a device may want to tell apart; others are numbers of the same table, in docs/wire.md.
#[repr(u16)]
#[derive(Clone, Copy)]
pub enum tractd_status {
    /// Answered.
    Ok = 200,
    /// No model of that name, version or label.
    ModelNotFound = 404,
    /// The deadline passed before the answer was there.
    DeadlineExceeded = 408,
    /// The request, or its reply, is beyond a limit.
    TooLarge = 413,
    /// The input is not what the model takes.
    InvalidInput = 422,
    /// Queues are full.
    Busy = 429,
    /// The daemon is stopping.
    Draining = 503,
}

/// A request. It and all it points to must stay as they are until the request has ended.
#[repr(C)]
pub struct tractd_call {
    /// The model: "digits", "digits@7", "digits@canary".
    pub model: *const c_char,
    /// Name of the input, null or "" where the model has one.
    pub input: *const c_char,
    /// A `tractd_dtype`; 0: `data` is one JPEG or PNG, and `shape` is not looked at.
    pub dtype: u8,
    /// Dimensions of the tensor, at most 8.
    pub rank: u8,
    /// The dimensions, outermost first.
    pub shape: *const u32,
    /// The elements, little-endian and row-major, or the image.
    pub data: *const u8,
    /// Bytes of `data`.
    pub data_len: usize,
    /// Milliseconds until the answer is worth nothing; 0 for the daemon's default.
    pub deadline_ms: u32,
    /// Whether the output tensors should come with the reply.
    pub want_tensors: bool,
    /// Whether the best classes should come with the reply.
    pub want_classes: bool,
}

/// What is to be done.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tractd_step {
    /// An argument is null, or the call is not the one that was started.
    Invalid = 0,
    /// Write the first `len` bytes of `out` to the line, then poll again.
    Send = 1,
    /// Nothing before bytes come or `wait_ms` milliseconds have passed.
    Sleep = 2,
    /// Nothing is under way.
    Idle = 3,
    /// `reply` holds what the daemon said.
    Done = 4,
    /// Nothing came in time.
    TimedOut = 5,
    /// The reply has `len` bytes, more than there is room for.
    TooLarge = 6,
}

/// A reply. `detail` lies in the client's memory and is valid until more bytes are taken.
#[repr(C)]
pub struct tractd_reply {
    /// A `tractd_status`, or another number of that table.
    pub status: u16,
    /// The version that answered; 0 where none did.
    pub version: u64,
    /// Microseconds of inference.
    pub infer_us: u32,
    /// For people, in UTF-8, not terminated.
    pub detail: *const u8,
    /// Bytes of `detail`.
    pub detail_len: usize,
}

/// What a step is about.
#[repr(C)]
pub struct tractd_event {
    /// Bytes, with SEND and TOO_LARGE.
    pub len: usize,
    /// Milliseconds, with SLEEP.
    pub wait_ms: u32,
    /// With DONE.
    pub reply: tractd_reply,
}

/// One class of a classifier's answer.
#[repr(C)]
pub struct tractd_class {
    /// Its place in the output tensor.
    pub index: u32,
    /// Its score.
    pub score: f32,
    /// Its label in UTF-8, not terminated.
    pub label: *const u8,
    /// Bytes of `label`.
    pub label_len: usize,
}

/// One tensor of a reply.
#[repr(C)]
pub struct tractd_tensor {
    /// A `tractd_dtype`.
    pub dtype: u8,
    /// Dimensions.
    pub rank: u8,
    /// The dimensions, outermost first.
    pub shape: [u32; 8],
    /// The elements: little-endian, row-major, not aligned.
    pub data: *const u8,
    /// Bytes of `data`.
    pub data_len: usize,
}

const _: () = assert!(RANK_MAX == 8);

/// Makes a client. `replies` is as large as the largest reply that is wanted, header included; 512 bytes do for three
/// classes. `head` takes the start of a request, 96 bytes with names of usual length. Both stay with the client.
/// `boot` should be another number after every start. Says false, and makes none, when a pointer is null.
///
/// # Safety
/// `client`, `replies` and `head` must be valid for writes of their sizes, and not be touched by anybody else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tractd_client_init(
    client: *mut tractd_client,
    replies: *mut u8,
    replies_len: usize,
    head: *mut u8,
    head_len: usize,
    timeout_ms: u32,
    resend_ms: u32,
    boot: u32,
) -> bool {
    if client.is_null() || replies.is_null() || head.is_null() {
        return false;
    }
    // SAFETY: not null, and by contract valid and ours alone for as long as the client is used.
    let (replies, head) = unsafe {
        (slice::from_raw_parts_mut(replies, replies_len), slice::from_raw_parts_mut(head, head_len))
    };
    let patience = Patience { timeout_ms, resend_ms };
    // SAFETY: large and aligned enough for a client, as asserted above; what was in it needs no drop.
    let place = unsafe { &mut *client.cast::<MaybeUninit<State>>() };
    place.write(Client::new(Serial::new(replies, boot), head, patience, boot));
    true
}

/// Starts a request; one that is under way is given up. Says false when an argument is null, when no daemon would take
/// the request, or when `head` is too small for it.
///
/// # Safety
/// `client` was initialised; `call` and all it points to are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tractd_client_start(
    client: *mut tractd_client,
    now_ms: u32,
    call: *const tractd_call,
) -> bool {
    // SAFETY: by contract.
    match unsafe { (state(client), read_call(call)) } {
        (Some(client), Some(call)) => client.start(now_ms, &call).is_ok(),
        _ => false,
    }
}

/// Takes bytes from the line and says how many; fewer than all when there is something to be polled first.
///
/// # Safety
/// `client` was initialised; `bytes` is valid for reads of `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tractd_client_on_bytes(
    client: *mut tractd_client,
    bytes: *const u8,
    len: usize,
) -> usize {
    // SAFETY: by contract.
    match unsafe { (state(client), read_bytes(bytes, len)) } {
        (Some(client), Some(bytes)) => client.on_bytes(bytes),
        _ => 0,
    }
}

/// Says what is to be done now. `call` is the one the request was started with; `out` takes bytes for the line, at
/// least 19 and best 257.
///
/// # Safety
/// `client` was initialised; `call` and all it points to are valid and as they were at the start; `out` is valid for
/// writes of `out_len` bytes, `event` of one event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tractd_client_poll(
    client: *mut tractd_client,
    now_ms: u32,
    call: *const tractd_call,
    out: *mut u8,
    out_len: usize,
    event: *mut tractd_event,
) -> tractd_step {
    if out.is_null() || event.is_null() {
        return tractd_step::Invalid;
    }
    // SAFETY: by contract.
    let (Some(client), Some(call)) = (unsafe { (state(client), read_call(call)) }) else {
        return tractd_step::Invalid;
    };
    // SAFETY: not null, and valid by contract.
    let (out, event) = unsafe { (slice::from_raw_parts_mut(out, out_len), &mut *event) };
    tell(client.resume(&call).poll(now_ms, out), event)
}

/// One of the classes of the reply that was polled last, 0 the best; false when it has fewer. To be asked before more
/// bytes are taken.
///
/// # Safety
/// `client` was initialised; `class` is valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tractd_client_class(
    client: *const tractd_client,
    index: usize,
    class: *mut tractd_class,
) -> bool {
    // SAFETY: by contract.
    let found = unsafe { reply(client) }.and_then(|reply| reply.classes().nth(index));
    let (Some(found), false) = (found, class.is_null()) else { return false };
    let (label, label_len) = (found.label.as_ptr(), found.label.len());
    // SAFETY: not null, and valid by contract.
    unsafe { class.write(tractd_class { index: found.index, score: found.score, label, label_len }) };
    true
}

/// One of the tensors of the reply that was polled last; false when it has fewer. To be asked before more bytes are
/// taken.
///
/// # Safety
/// `client` was initialised; `tensor` is valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tractd_client_tensor(
    client: *const tractd_client,
    index: usize,
    tensor: *mut tractd_tensor,
) -> bool {
    // SAFETY: by contract.
    let found = unsafe { reply(client) }.and_then(|reply| reply.tensors().nth(index));
    let (Some(found), false) = (found, tensor.is_null()) else { return false };
    let mut shape = [0; RANK_MAX];
    let rank = shape.iter_mut().zip(found.shape.iter()).map(|(to, dim)| *to = dim).count() as u8;
    let (data, data_len) = (found.data.as_ptr(), found.data.len());
    // SAFETY: not null, and valid by contract.
    unsafe { tensor.write(tractd_tensor { dtype: found.dtype.number(), rank, shape, data, data_len }) };
    true
}

fn tell(step: Step<'_>, event: &mut tractd_event) -> tractd_step {
    match step {
        Step::Send(bytes) => {
            event.len = bytes.len();
            tractd_step::Send
        }
        Step::Sleep(Some(wait_ms)) => {
            event.wait_ms = wait_ms;
            tractd_step::Sleep
        }
        Step::Done(reply) => {
            event.reply = tractd_reply {
                status: reply.status.code(),
                version: reply.version,
                infer_us: reply.infer_us,
                detail: reply.detail.as_ptr(),
                detail_len: reply.detail.len(),
            };
            tractd_step::Done
        }
        Step::TimedOut => tractd_step::TimedOut,
        Step::TooLarge(len) => {
            event.len = usize::try_from(len).unwrap_or(usize::MAX);
            tractd_step::TooLarge
        }
        // A serial line finds itself again and is never broken.
        Step::Sleep(None) | Step::Broken => tractd_step::Idle,
    }
}

/// # Safety
/// A client that is not null was initialised, and nobody else uses it for as long as this lives.
unsafe fn state<'c>(client: *mut tractd_client) -> Option<&'c mut State> {
    // SAFETY: by contract.
    unsafe { client.cast::<State>().as_mut() }
}

/// # Safety
/// A client that is not null was initialised.
unsafe fn reply<'c>(client: *const tractd_client) -> Option<ReplyView<'c>> {
    // SAFETY: by contract.
    unsafe { client.cast::<State>().as_ref() }.and_then(Client::reply)
}

/// # Safety
/// A call that is not null is valid, and all it points to.
unsafe fn read_call<'a>(call: *const tractd_call) -> Option<Call<'a>> {
    // SAFETY: by contract.
    let call = unsafe { call.as_ref() }?;
    // SAFETY: by contract.
    let (model, name, data) = unsafe {
        (
            read_text(call.model, SELECTOR_LEN_MAX)?,
            read_text(call.input, TENSOR_NAME_LEN_MAX)?,
            read_bytes(call.data, call.data_len)?,
        )
    };
    let input = if call.dtype == 0 {
        Input::Media(data)
    } else {
        let shape = if call.rank == 0 || call.shape.is_null() {
            &[]
        } else {
            // SAFETY: not null, and valid by contract.
            unsafe { slice::from_raw_parts(call.shape, call.rank.into()) }
        };
        Input::Tensor(Tensor { name, dtype: DType::from_number(call.dtype)?, shape, data })
    };
    let want = Want { tensors: call.want_tensors, classes: call.want_classes };
    Some(Call { model, input, deadline_ms: call.deadline_ms, priority: Priority::Normal, want })
}

/// Text that ends with a zero, or after `len_max` bytes and one more, by which it is seen to be too long.
///
/// # Safety
/// What is not null is valid up to its zero.
unsafe fn read_text<'a>(text: *const c_char, len_max: usize) -> Option<&'a str> {
    if text.is_null() {
        return Some("");
    }
    let bytes = text.cast::<u8>();
    // SAFETY: no byte behind the zero is read.
    let len = (0..=len_max).take_while(|&at| unsafe { *bytes.add(at) } != 0).count();
    // SAFETY: these bytes were just read.
    core::str::from_utf8(unsafe { slice::from_raw_parts(bytes, len) }).ok()
}

/// # Safety
/// What is not null is valid for reads of `len` bytes.
unsafe fn read_bytes<'a>(bytes: *const u8, len: usize) -> Option<&'a [u8]> {
    if bytes.is_null() {
        return (len == 0).then_some(&[]);
    }
    // SAFETY: not null, and valid by contract.
    Some(unsafe { slice::from_raw_parts(bytes, len) })
}
