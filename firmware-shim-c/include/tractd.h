// The device's side of tractd's protocol over a serial line: see docs/firmware.md.
//
// Generated from firmware-shim-c/src by its test `the_header_is_current`; do not edit.

#ifndef TRACTD_H
#define TRACTD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef TRACTD_ALIGN
#define TRACTD_ALIGN(n) __attribute__((aligned(n)))
#endif

// What is to be done.
enum tractd_step
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint8_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // An argument is null, or the call is not the one that was started.
  TRACTD_STEP_INVALID = 0,
  // Write the first `len` bytes of `out` to the line, then poll again.
  TRACTD_STEP_SEND = 1,
  // Nothing before bytes come or `wait_ms` milliseconds have passed.
  TRACTD_STEP_SLEEP = 2,
  // Nothing is under way.
  TRACTD_STEP_IDLE = 3,
  // `reply` holds what the daemon said.
  TRACTD_STEP_DONE = 4,
  // Nothing came in time.
  TRACTD_STEP_TIMED_OUT = 5,
  // The reply has `len` bytes, more than there is room for.
  TRACTD_STEP_TOO_LARGE = 6,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tractd_step tractd_step;
#else
typedef uint8_t tractd_step;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The element type of a tensor.
enum tractd_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint8_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Unsigned, 8 bits.
  TRACTD_DTYPE_U8 = 1,
  // Signed, 8 bits.
  TRACTD_DTYPE_I8 = 2,
  // Unsigned, 16 bits.
  TRACTD_DTYPE_U16 = 3,
  // Signed, 16 bits.
  TRACTD_DTYPE_I16 = 4,
  // Unsigned, 32 bits.
  TRACTD_DTYPE_U32 = 5,
  // Signed, 32 bits.
  TRACTD_DTYPE_I32 = 6,
  // Unsigned, 64 bits.
  TRACTD_DTYPE_U64 = 7,
  // Signed, 64 bits.
  TRACTD_DTYPE_I64 = 8,
  // IEEE 754 binary16.
  TRACTD_DTYPE_F16 = 9,
  // IEEE 754 binary32.
  TRACTD_DTYPE_F32 = 10,
  // IEEE 754 binary64.
  TRACTD_DTYPE_F64 = 11,
  // One byte, 0 or 1.
  TRACTD_DTYPE_BOOL = 12,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tractd_dtype tractd_dtype;
#else
typedef uint8_t tractd_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Statuses a device may want to tell apart; others are numbers of the same table, in docs/wire.md.
enum tractd_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint16_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Answered.
  TRACTD_STATUS_OK = 200,
  // No model of that name, version or label.
  TRACTD_STATUS_MODEL_NOT_FOUND = 404,
  // The deadline passed before the answer was there.
  TRACTD_STATUS_DEADLINE_EXCEEDED = 408,
  // The request, or its reply, is beyond a limit.
  TRACTD_STATUS_TOO_LARGE = 413,
  // The input is not what the model takes.
  TRACTD_STATUS_INVALID_INPUT = 422,
  // Queues are full.
  TRACTD_STATUS_BUSY = 429,
  // The daemon is stopping.
  TRACTD_STATUS_DRAINING = 503,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tractd_status tractd_status;
#else
typedef uint16_t tractd_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A client, in the caller's memory; larger than it needs to be today, so that it can grow. Only the functions below
// may look into it.
typedef struct TRACTD_ALIGN(8) {
  size_t words[40];
} tractd_client;

// A request. It and all it points to must stay as they are until the request has ended.
typedef struct {
  // The model: "digits", "digits@7", "digits@canary".
  const char *model;
  // Name of the input, null or "" where the model has one.
  const char *input;
  // A `tractd_dtype`; 0: `data` is one JPEG or PNG, and `shape` is not looked at.
  uint8_t dtype;
  // Dimensions of the tensor, at most 8.
  uint8_t rank;
  // The dimensions, outermost first.
  const uint32_t *shape;
  // The elements, little-endian and row-major, or the image.
  const uint8_t *data;
  // Bytes of `data`.
  size_t data_len;
  // Milliseconds until the answer is worth nothing; 0 for the daemon's default.
  uint32_t deadline_ms;
  // Whether the output tensors should come with the reply.
  bool want_tensors;
  // Whether the best classes should come with the reply.
  bool want_classes;
} tractd_call;

// A reply. `detail` lies in the client's memory and is valid until more bytes are taken.
typedef struct {
  // A `tractd_status`, or another number of that table.
  uint16_t status;
  // The version that answered; 0 where none did.
  uint64_t version;
  // Microseconds of inference.
  uint32_t infer_us;
  // For people, in UTF-8, not terminated.
  const uint8_t *detail;
  // Bytes of `detail`.
  size_t detail_len;
} tractd_reply;

// What a step is about.
typedef struct {
  // Bytes, with SEND and TOO_LARGE.
  size_t len;
  // Milliseconds, with SLEEP.
  uint32_t wait_ms;
  // With DONE.
  tractd_reply reply;
} tractd_event;

// One class of a classifier's answer.
typedef struct {
  // Its place in the output tensor.
  uint32_t index;
  // Its score.
  float score;
  // Its label in UTF-8, not terminated.
  const uint8_t *label;
  // Bytes of `label`.
  size_t label_len;
} tractd_class;

// One tensor of a reply.
typedef struct {
  // A `tractd_dtype`.
  uint8_t dtype;
  // Dimensions.
  uint8_t rank;
  // The dimensions, outermost first.
  uint32_t shape[8];
  // The elements: little-endian, row-major, not aligned.
  const uint8_t *data;
  // Bytes of `data`.
  size_t data_len;
} tractd_tensor;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Makes a client. `replies` is as large as the largest reply that is wanted, header included; 512 bytes do for three
// classes. `head` takes the start of a request, 96 bytes with names of usual length. Both stay with the client.
// `boot` should be another number after every start. Says false, and makes none, when a pointer is null.
//
// # Safety
// `client`, `replies` and `head` must be valid for writes of their sizes, and not be touched by anybody else.
bool tractd_client_init(tractd_client *client,
                        uint8_t *replies,
                        size_t replies_len,
                        uint8_t *head,
                        size_t head_len,
                        uint32_t timeout_ms,
                        uint32_t resend_ms,
                        uint32_t boot);

// Starts a request; one that is under way is given up. Says false when an argument is null, when no daemon would take
// the request, or when `head` is too small for it.
//
// # Safety
// `client` was initialised; `call` and all it points to are valid.
bool tractd_client_start(tractd_client *client,
                         uint32_t now_ms,
                         const tractd_call *call);

// Takes bytes from the line and says how many; fewer than all when there is something to be polled first.
//
// # Safety
// `client` was initialised; `bytes` is valid for reads of `len` bytes.
size_t tractd_client_on_bytes(tractd_client *client, const uint8_t *bytes, size_t len);

// Says what is to be done now. `call` is the one the request was started with; `out` takes bytes for the line, at
// least 19 and best 257.
//
// # Safety
// `client` was initialised; `call` and all it points to are valid and as they were at the start; `out` is valid for
// writes of `out_len` bytes, `event` of one event.
tractd_step tractd_client_poll(tractd_client *client,
                               uint32_t now_ms,
                               const tractd_call *call,
                               uint8_t *out,
                               size_t out_len,
                               tractd_event *event);

// One of the classes of the reply that was polled last, 0 the best; false when it has fewer. To be asked before more
// bytes are taken.
//
// # Safety
// `client` was initialised; `class` is valid for writes.
bool tractd_client_class(const tractd_client *client,
                         size_t index,
                         tractd_class *class_);

// One of the tensors of the reply that was polled last; false when it has fewer. To be asked before more bytes are
// taken.
//
// # Safety
// `client` was initialised; `tensor` is valid for writes.
bool tractd_client_tensor(const tractd_client *client,
                          size_t index,
                          tractd_tensor *tensor);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TRACTD_H */
