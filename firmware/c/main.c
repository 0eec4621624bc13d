// The digits once more, in C: ten pictures in flash, one request for each, over the UART of the mps2-an386.
// It fails on a wrong digit and on silence. See scripts/test-firmware and docs/firmware.md.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tractd.h"

// The board: a tick of a millisecond, and a UART without a FIFO (ARM DDI 0479, CMSDK APB UART).

#define CLOCK_HZ 25000000u
#define REGISTER(address) (*(volatile uint32_t *)(address))
#define SYST_CSR REGISTER(0xe000e010u)
#define SYST_RVR REGISTER(0xe000e014u)
#define SYST_CVR REGISTER(0xe000e018u)
#define UART_DATA REGISTER(0x40004000u)
#define UART_STATE REGISTER(0x40004004u)
#define UART_CTRL REGISTER(0x40004008u)
#define UART_BAUDDIV REGISTER(0x40004010u)
#define SENDING 1u
#define RECEIVED 2u

static volatile uint32_t ticks_ms;

void SysTick_Handler(void) { ticks_ms++; }

static void board_start(void) {
  SYST_RVR = CLOCK_HZ / 1000 - 1;
  SYST_CVR = 0;
  SYST_CSR = 7;
  UART_BAUDDIV = CLOCK_HZ / 115200;
  UART_CTRL = 3;
}

static void uart_write(const uint8_t *bytes, size_t len) {
  for (size_t i = 0; i < len; i++) {
    while (UART_STATE & SENDING) {
    }
    UART_DATA = bytes[i];
  }
}

// Semihosting: the emulator's console and exit status.

static int semihost(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

static void print(const char *text) { semihost(0x04, text); }

static void leave(bool well) {
  semihost(0x18, (const void *)(well ? 0x20026u : 0x20023u));
  for (;;) {
  }
}

// The pictures, as they lie in models/digits/samples.

#define PICTURE(name)                                                       \
  __asm__(".section .rodata\n.balign 4\npicture_" #name ":\n"               \
          ".incbin \"" SAMPLES "/" FILE_##name ".png\"\n"                   \
          "picture_" #name "_end:\n.previous\n");                           \
  extern const uint8_t picture_##name[], picture_##name##_end[]

#define FILE_0 "0-0202"
#define FILE_1 "1-0047"
#define FILE_2 "2-0002"
#define FILE_3 "3-0045"
#define FILE_4 "4-0004"
#define FILE_5 "5-0135"
#define FILE_6 "6-0006"
#define FILE_7 "7-0017"
#define FILE_8 "8-0018"
#define FILE_9 "9-0009"
PICTURE(0);
PICTURE(1);
PICTURE(2);
PICTURE(3);
PICTURE(4);
PICTURE(5);
PICTURE(6);
PICTURE(7);
PICTURE(8);
PICTURE(9);

static const uint8_t *const pictures[10][2] = {
    {picture_0, picture_0_end}, {picture_1, picture_1_end}, {picture_2, picture_2_end}, {picture_3, picture_3_end},
    {picture_4, picture_4_end}, {picture_5, picture_5_end}, {picture_6, picture_6_end}, {picture_7, picture_7_end},
    {picture_8, picture_8_end}, {picture_9, picture_9_end},
};

static tractd_client client;
static uint8_t replies[512], head[96], out[257];

// The best class, or -1 when there is no answer or a refusal.
static int classify(const uint8_t *picture, size_t len) {
  const tractd_call call = {.model = "digits", .data = picture, .data_len = len, .want_classes = true};
  if (!tractd_client_start(&client, ticks_ms, &call)) {
    return -1;
  }
  for (;;) {
    tractd_event event;
    tractd_class best;
    switch (tractd_client_poll(&client, ticks_ms, &call, out, sizeof out, &event)) {
      case TRACTD_STEP_SEND:
        uart_write(out, event.len);
        break;
      case TRACTD_STEP_SLEEP:  // a real device would sleep until its UART's interrupt
        if (UART_STATE & RECEIVED) {
          const uint8_t byte = (uint8_t)UART_DATA;
          tractd_client_on_bytes(&client, &byte, 1);
        }
        break;
      case TRACTD_STEP_DONE:
        return event.reply.status == TRACTD_STATUS_OK && tractd_client_class(&client, 0, &best) ? (int)best.index : -1;
      default:
        return -1;
    }
  }
}

int main(void) {
  board_start();
  if (!tractd_client_init(&client, replies, sizeof replies, head, sizeof head, 10000, 500, 1)) {
    leave(false);
  }
  for (int shown = 0; shown < 10; shown++) {
    const uint8_t *const *picture = pictures[shown];
    const int digit = classify(picture[0], (size_t)(picture[1] - picture[0]));
    char line[] = "?: ?\n";
    line[0] = (char)('0' + shown);
    line[3] = digit < 0 ? '-' : (char)('0' + digit);
    print(line);
    if (digit != shown) {
      print(digit < 0 ? "no answer\n" : "wrong\n");
      leave(false);
    }
  }
  print("10 digits, 0 wrong\n");
  leave(true);
}

// The start: initialised memory from flash, zeroed memory, main.

extern uint32_t data_start[], data_end[], data_load[], bss_start[], bss_end[], stack_top[];

void Reset_Handler(void) {
  for (uint32_t *to = data_start, *from = data_load; to < data_end;) {
    *to++ = *from++;
  }
  for (uint32_t *to = bss_start; to < bss_end;) {
    *to++ = 0;
  }
  main();
  leave(false);
}

static void Fault_Handler(void) {
  print("fault\n");
  leave(false);
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))stack_top,
    Reset_Handler,
    Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler,
    0, 0, 0, 0,
    Fault_Handler, Fault_Handler, 0, Fault_Handler,
    SysTick_Handler,
};
