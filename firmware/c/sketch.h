/* What the sketch of docs/firmware.md takes from its platform, so that it can be compiled here: names and types only. */
#include <stddef.h>
#include <stdint.h>

struct HardwareSerial {
  void begin(unsigned long baud);
  int available(void);
  int read(void);
  size_t write(const uint8_t *bytes, size_t len);
};

extern HardwareSerial Serial1;
uint32_t millis(void);
uint32_t esp_random(void);
