/* MessagePack, as much of it as one side of MsgPack:1 needs.
 *
 * Reading works on a complete or incomplete buffer: mp_skip() tells how long the value at a
 * position is, and the other readers are then used on bytes that are known to be there. They
 * still check their bounds, since what is read comes from another process.
 */
#ifndef BENCH_MSGPACK_H
#define BENCH_MSGPACK_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---- writing: a buffer that grows ---- */

struct buf {
    uint8_t *data;
    size_t len, cap;
};

static inline void buf_reserve(struct buf *b, size_t more) {
    if (b->len + more <= b->cap)
        return;
    size_t cap = b->cap ? b->cap : 256;
    while (cap < b->len + more)
        cap *= 2;
    b->data = realloc(b->data, cap);
    if (!b->data)
        abort();
    b->cap = cap;
}

static inline void buf_put(struct buf *b, const void *data, size_t len) {
    buf_reserve(b, len);
    memcpy(b->data + b->len, data, len);
    b->len += len;
}

static inline void buf_byte(struct buf *b, unsigned value) {
    buf_reserve(b, 1);
    b->data[b->len++] = (uint8_t)value;
}

static inline void buf_be(struct buf *b, uint64_t value, int bytes) {
    buf_reserve(b, (size_t)bytes);
    for (int i = bytes - 1; i >= 0; i--)
        b->data[b->len++] = (uint8_t)(value >> (8 * i));
}

/* Integers in the smallest type that holds them, as Kong sends them. */
static inline void mp_int(struct buf *b, int64_t v) {
    if (v >= 0) {
        if (v < 0x80) buf_byte(b, (unsigned)v);
        else if (v <= 0xff) { buf_byte(b, 0xcc); buf_be(b, (uint64_t)v, 1); }
        else if (v <= 0xffff) { buf_byte(b, 0xcd); buf_be(b, (uint64_t)v, 2); }
        else if (v <= 0xffffffffLL) { buf_byte(b, 0xce); buf_be(b, (uint64_t)v, 4); }
        else { buf_byte(b, 0xcf); buf_be(b, (uint64_t)v, 8); }
    } else {
        if (v >= -32) buf_byte(b, (unsigned)(v & 0xff));
        else if (v >= INT8_MIN) { buf_byte(b, 0xd0); buf_be(b, (uint64_t)v, 1); }
        else if (v >= INT16_MIN) { buf_byte(b, 0xd1); buf_be(b, (uint64_t)v, 2); }
        else if (v >= INT32_MIN) { buf_byte(b, 0xd2); buf_be(b, (uint64_t)v, 4); }
        else { buf_byte(b, 0xd3); buf_be(b, (uint64_t)v, 8); }
    }
}

/* Text without the str 8 type, which Kong's packer does not know (see the recordings). */
static inline void mp_strn(struct buf *b, const char *s, size_t n) {
    if (n < 32) buf_byte(b, 0xa0 | (unsigned)n);
    else if (n <= 0xffff) { buf_byte(b, 0xda); buf_be(b, n, 2); }
    else { buf_byte(b, 0xdb); buf_be(b, n, 4); }
    buf_put(b, s, n);
}

static inline void mp_str(struct buf *b, const char *s) { mp_strn(b, s, strlen(s)); }

static inline void mp_bin(struct buf *b, const void *data, size_t n) {
    if (n <= 0xff) { buf_byte(b, 0xc4); buf_be(b, n, 1); }
    else if (n <= 0xffff) { buf_byte(b, 0xc5); buf_be(b, n, 2); }
    else { buf_byte(b, 0xc6); buf_be(b, n, 4); }
    buf_put(b, data, n);
}

static inline void mp_map(struct buf *b, unsigned n) {
    if (n < 16) buf_byte(b, 0x80 | n);
    else { buf_byte(b, 0xde); buf_be(b, n, 2); }
}

static inline void mp_array(struct buf *b, unsigned n) {
    if (n < 16) buf_byte(b, 0x90 | n);
    else { buf_byte(b, 0xdc); buf_be(b, n, 2); }
}

static inline void mp_nil(struct buf *b) { buf_byte(b, 0xc0); }
static inline void mp_bool(struct buf *b, int v) { buf_byte(b, v ? 0xc3 : 0xc2); }

/* ---- reading ---- */

struct mp {
    const uint8_t *p, *end;
};

enum mp_result { MP_OK = 1, MP_MORE = 0, MP_BAD = -1 };

static inline uint64_t mp_load(const uint8_t *p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++)
        v = v << 8 | p[i];
    return v;
}

/* One head byte: the bytes after it that belong to the value, and the values nested in it. */
static inline int mp_head(const uint8_t *p, size_t have, uint64_t *body, uint64_t *nested) {
    uint8_t c = p[0];
    uint64_t n;
    *nested = 0;
    *body = 0;
    if (c < 0x80 || c >= 0xe0) return MP_OK;
    if (c < 0x90) { *nested = 2 * (uint64_t)(c & 15); return MP_OK; }
    if (c < 0xa0) { *nested = c & 15; return MP_OK; }
    if (c < 0xc0) { *body = c & 31; return MP_OK; }
    switch (c) {
    case 0xc0: case 0xc2: case 0xc3: return MP_OK;
    case 0xcc: case 0xd0: *body = 1; return MP_OK;
    case 0xcd: case 0xd1: *body = 2; return MP_OK;
    case 0xca: case 0xce: case 0xd2: *body = 4; return MP_OK;
    case 0xcb: case 0xcf: case 0xd3: *body = 8; return MP_OK;
    case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8:
        *body = 1 + (1ull << (c - 0xd4)); return MP_OK;
    case 0xc1: return MP_BAD;
    default: break;
    }
    /* the rest carries a length of 1, 2 or 4 bytes */
    int size;
    switch (c) {
    case 0xc4: case 0xc7: case 0xd9: size = 1; break;
    case 0xc5: case 0xc8: case 0xda: case 0xdc: case 0xde: size = 2; break;
    default: size = 4; break; /* c6 c9 db dd df */
    }
    if (have < 1 + (size_t)size) return MP_MORE;
    n = mp_load(p + 1, size);
    *body = (uint64_t)size;
    switch (c) {
    case 0xdc: case 0xdd: *nested = n; break;
    case 0xde: case 0xdf: *nested = 2 * n; break;
    case 0xc7: case 0xc8: case 0xc9: *body += n + 1; break;
    default: *body += n; break;
    }
    return MP_OK;
}

/* Moves past one whole value. MP_MORE: it goes on after the end; nothing is moved then. */
static inline int mp_skip(struct mp *m) {
    const uint8_t *p = m->p;
    uint64_t left = 1, body, nested;
    while (left) {
        if (p >= m->end) return MP_MORE;
        int r = mp_head(p, (size_t)(m->end - p), &body, &nested);
        if (r != MP_OK) return r;
        if (body > (uint64_t)(m->end - p) - 1) return MP_MORE;
        p += 1 + body;
        left += nested - 1;
    }
    m->p = p;
    return MP_OK;
}

static inline int mp_read_array(struct mp *m, uint32_t *n) {
    if (m->p >= m->end) return 0;
    uint8_t c = *m->p;
    size_t have = (size_t)(m->end - m->p);
    if ((c & 0xf0) == 0x90) { *n = c & 15; m->p += 1; return 1; }
    if (c == 0xdc && have >= 3) { *n = (uint32_t)mp_load(m->p + 1, 2); m->p += 3; return 1; }
    if (c == 0xdd && have >= 5) { *n = (uint32_t)mp_load(m->p + 1, 4); m->p += 5; return 1; }
    return 0;
}

static inline int mp_read_map(struct mp *m, uint32_t *n) {
    if (m->p >= m->end) return 0;
    uint8_t c = *m->p;
    size_t have = (size_t)(m->end - m->p);
    if ((c & 0xf0) == 0x80) { *n = c & 15; m->p += 1; return 1; }
    if (c == 0xde && have >= 3) { *n = (uint32_t)mp_load(m->p + 1, 2); m->p += 3; return 1; }
    if (c == 0xdf && have >= 5) { *n = (uint32_t)mp_load(m->p + 1, 4); m->p += 5; return 1; }
    return 0;
}

/* A whole number in any integer type, or a double that holds one. */
static inline int mp_read_int(struct mp *m, int64_t *v) {
    if (m->p >= m->end) return 0;
    uint8_t c = *m->p;
    const uint8_t *p = m->p + 1;
    size_t have = (size_t)(m->end - p);
    int size = 0;
    if (c < 0x80) *v = c;
    else if (c >= 0xe0) *v = (int8_t)c;
    else {
        switch (c) {
        case 0xcc: case 0xd0: size = 1; break;
        case 0xcd: case 0xd1: size = 2; break;
        case 0xce: case 0xd2: case 0xca: size = 4; break;
        case 0xcf: case 0xd3: case 0xcb: size = 8; break;
        default: return 0;
        }
        if (have < (size_t)size) return 0;
        uint64_t raw = mp_load(p, size);
        if (c == 0xca) {
            uint32_t bits = (uint32_t)raw; float f;
            memcpy(&f, &bits, 4);
            if (!(f > -1e15f && f < 1e15f)) return 0;
            *v = (int64_t)f;
        } else if (c == 0xcb) {
            double d;
            memcpy(&d, &raw, 8);
            if (!(d > -9e15 && d < 9e15)) return 0;
            *v = (int64_t)d;
        } else if (c == 0xd0) *v = (int8_t)raw;
        else if (c == 0xd1) *v = (int16_t)raw;
        else if (c == 0xd2) *v = (int32_t)raw;
        else *v = (int64_t)raw;
    }
    m->p = p + size;
    return 1;
}

/* Text or binary: a view into the buffer. */
static inline int mp_read_str(struct mp *m, const char **s, size_t *n) {
    if (m->p >= m->end) return 0;
    uint8_t c = *m->p;
    int size;
    const uint8_t *p = m->p + 1;
    if ((c & 0xe0) == 0xa0) { size = 0; *n = c & 31; }
    else if (c == 0xd9 || c == 0xc4) size = 1;
    else if (c == 0xda || c == 0xc5) size = 2;
    else if (c == 0xdb || c == 0xc6) size = 4;
    else return 0;
    if (size) {
        if ((size_t)(m->end - p) < (size_t)size) return 0;
        *n = mp_load(p, size);
        p += size;
    }
    if ((size_t)(m->end - p) < *n) return 0;
    *s = (const char *)p;
    m->p = p + *n;
    return 1;
}

static inline int mp_read_nil(struct mp *m) {
    if (m->p < m->end && *m->p == 0xc0) { m->p++; return 1; }
    return 0;
}

static inline int text_is(const char *s, size_t n, const char *literal) {
    return n == strlen(literal) && memcmp(s, literal, n) == 0;
}

#endif
