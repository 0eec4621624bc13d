/* Asks tractd about a picture: the whole native protocol from C, with nothing but POSIX.
 *
 *     cc -O2 -o ask clients/c/ask.c
 *     ./ask digits models/digits/samples/7-0017.png
 *
 * Prints the best class, its score and what answered. See docs/wire.md; for a microcontroller see firmware-shim. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { HEADER = 20, HEAD_MAX = 4096, PICTURE_MAX = 64 << 20 };

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void write_all(int fd, const uint8_t *bytes, size_t len) {
    while (len > 0) {
        ssize_t n = write(fd, bytes, len);
        if (n <= 0) die("write");
        bytes += n, len -= (size_t)n;
    }
}

static void read_all(int fd, uint8_t *bytes, size_t len) {
    while (len > 0) {
        ssize_t n = read(fd, bytes, len);
        if (n <= 0) die("read");
        bytes += n, len -= (size_t)n;
    }
}

/* A cursor over a head. Every read checks the end; a damaged reply ends the program, not the memory. */
struct head {
    const uint8_t *at, *end;
};

static const uint8_t *take(struct head *head, size_t len) {
    if ((size_t)(head->end - head->at) < len) {
        fputs("the reply is cut short\n", stderr);
        exit(1);
    }
    const uint8_t *taken = head->at;
    head->at += len;
    return taken;
}

static uint64_t varint(struct head *head) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        uint8_t byte = *take(head, 1);
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return value;
    }
    fputs("a number in the reply is too long\n", stderr);
    exit(1);
}

struct text {
    const uint8_t *bytes;
    int len;
};

static struct text text(struct head *head) {
    uint64_t len = varint(head);
    if (len > HEAD_MAX) len = HEAD_MAX + 1; /* more than there is: take() says so */
    return (struct text){take(head, (size_t)len), (int)len};
}

static int dial(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    const char *path = getenv("TRACTD_SOCKET");
    if (path == NULL) path = "/run/tractd/tractd.sock";
    if (strlen(path) >= sizeof at.sun_path) {
        fputs("the socket's path is too long\n", stderr);
        exit(1);
    }
    strcpy(at.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof at) < 0) die(path);
    return fd;
}

static uint8_t *slurp(const char *path, size_t *len) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) die(path);
    uint8_t *bytes = malloc(PICTURE_MAX);
    if (bytes == NULL) die("malloc");
    *len = fread(bytes, 1, PICTURE_MAX, file);
    if (ferror(file) || !feof(file)) die(path);
    fclose(file);
    return bytes;
}

static void put_u16(uint8_t *at, unsigned value) { at[0] = value & 255, at[1] = value >> 8; }

static void put_u32(uint8_t *at, uint32_t value) { put_u16(at, value & 65535), put_u16(at + 2, value >> 16); }

static uint32_t get_u32(const uint8_t *at) {
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

int main(int argc, char **argv) {
    if (argc != 3 || strlen(argv[1]) > 127) {
        fputs("usage: ask MODEL PICTURE\n", stderr);
        return 2;
    }
    size_t picture_len, name_len = strlen(argv[1]);
    uint8_t *picture = slurp(argv[2], &picture_len);

    /* Header and head of a request: kind 1, then the model and nine bytes that stay the same. */
    uint8_t frame[HEADER + 160] = {'t', 'd', 1, 1};
    uint8_t *head = frame + HEADER;
    *head++ = (uint8_t)name_len;
    memcpy(head, argv[1], name_len), head += name_len;
    *head++ = 0; /* deadline_ms: the daemon's */
    *head++ = 1; /* priority: normal */
    *head++ = 1; /* content: media */
    *head++ = 2; /* want: classes */
    *head++ = 0; /* stream */
    *head++ = 0; /* sequence */
    *head++ = 0; /* tensors: none */
    put_u16(frame + 4, (unsigned)(head - frame - HEADER));
    put_u32(frame + 8, (uint32_t)picture_len);
    put_u32(frame + 12, 1); /* id */

    int fd = dial();
    write_all(fd, frame, (size_t)(head - frame));
    write_all(fd, picture, picture_len);

    uint8_t answer[HEADER + HEAD_MAX];
    read_all(fd, answer, HEADER);
    size_t head_len = answer[4] | (size_t)answer[5] << 8;
    if (memcmp(answer, "td\1\2", 4) != 0 || head_len > HEAD_MAX || get_u32(answer + 8) != 0) {
        fputs("not a reply to this request\n", stderr);
        return 1;
    }
    read_all(fd, answer + HEADER, head_len);

    struct head reply = {answer + HEADER, answer + HEADER + head_len};
    uint64_t status = varint(&reply);
    struct text model = text(&reply);
    uint64_t version = varint(&reply);
    const uint8_t *digest = take(&reply, 32);
    take(&reply, 1); /* signed */
    uint64_t us = 0;
    for (int stage = 0; stage < 4; stage++) us += varint(&reply);
    uint64_t retry_after_ms = varint(&reply);
    struct text detail = text(&reply);
    if (status != 200) {
        fprintf(stderr, "refused: %.*s (%u", detail.len, (const char *)detail.bytes, (unsigned)status);
        if (retry_after_ms > 0) fprintf(stderr, ", try again in %u ms", (unsigned)retry_after_ms);
        fputs(")\n", stderr);
        return 1;
    }
    varint(&reply); /* tensors: none were wanted */
    if (varint(&reply) == 0) {
        fputs("the model gives no classes\n", stderr);
        return 1;
    }
    uint64_t index = varint(&reply);
    uint32_t bits = get_u32(take(&reply, 4));
    float score;
    memcpy(&score, &bits, sizeof score);
    struct text label = text(&reply);
    printf("%.*s (class %u), %.1f %%, by %.*s %u (%02x%02x%02x...) in %u us\n", label.len, (const char *)label.bytes,
           (unsigned)index, score * 100, model.len, (const char *)model.bytes, (unsigned)version, digest[0], digest[1],
           digest[2], (unsigned)us);
    free(picture);
    close(fd);
    return 0;
}
