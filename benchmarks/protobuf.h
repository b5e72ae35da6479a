/* Protocol Buffers and the frames of ProtoBuf:1, as much of them as one side needs.
 *
 * A frame is a length of four bytes in native byte order and that many bytes.
 */
#ifndef BENCH_PROTOBUF_H
#define BENCH_PROTOBUF_H

#include "msgpack.h" /* struct buf */

enum pb_wire { PB_VARINT = 0, PB_FIXED64 = 1, PB_BYTES = 2, PB_FIXED32 = 5 };

/* ---- writing ---- */

static inline void pb_varint(struct buf *b, uint64_t v) {
    for (; v >= 0x80; v >>= 7)
        buf_byte(b, (unsigned)(v & 0x7f) | 0x80);
    buf_byte(b, (unsigned)v);
}

static inline void pb_int(struct buf *b, unsigned field, int64_t v) {
    pb_varint(b, field << 3 | PB_VARINT);
    pb_varint(b, (uint64_t)v);
}

static inline void pb_bytes(struct buf *b, unsigned field, const void *data, size_t n) {
    pb_varint(b, field << 3 | PB_BYTES);
    pb_varint(b, n);
    buf_put(b, data, n);
}

static inline void pb_str(struct buf *b, unsigned field, const char *s) {
    pb_bytes(b, field, s, strlen(s));
}

/* A message in a field: write it into a buffer of its own and put that here; it is emptied. */
static inline void pb_message(struct buf *b, unsigned field, struct buf *message) {
    pb_bytes(b, field, message->data, message->len);
    message->len = 0;
}

static inline void pb_frame(struct buf *b, const void *data, size_t n) {
    uint32_t length = (uint32_t)n;
    buf_put(b, &length, sizeof length);
    if (n)
        buf_put(b, data, n);
}

/* ---- reading ---- */

struct pb {
    const uint8_t *p, *end;
};

struct pb_field {
    uint32_t number;
    enum pb_wire wire;
    uint64_t value;      /* of PB_VARINT */
    const uint8_t *data; /* of PB_BYTES */
    size_t size;
};

static inline int pb_read_varint(struct pb *m, uint64_t *v) {
    *v = 0;
    for (unsigned shift = 0; m->p < m->end && shift < 64; shift += 7) {
        uint8_t c = *m->p++;
        *v |= (uint64_t)(c & 0x7f) << shift;
        if (c < 0x80)
            return 1;
    }
    return 0;
}

/* The next field: 1 there is one, 0 the message is over, -1 it is malformed. */
static inline int pb_next(struct pb *m, struct pb_field *f) {
    uint64_t tag, size;
    memset(f, 0, sizeof *f);
    if (m->p >= m->end)
        return 0;
    if (!pb_read_varint(m, &tag) || tag >> 32)
        return -1;
    f->number = (uint32_t)(tag >> 3);
    f->wire = (enum pb_wire)(tag & 7);
    switch (f->wire) {
    case PB_VARINT:
        return pb_read_varint(m, &f->value) ? 1 : -1;
    case PB_FIXED64: size = 8; break;
    case PB_FIXED32: size = 4; break;
    case PB_BYTES:
        if (!pb_read_varint(m, &size))
            return -1;
        break;
    default:
        return -1;
    }
    if (size > (uint64_t)(m->end - m->p))
        return -1;
    f->data = m->p;
    f->size = (size_t)size;
    m->p += size;
    return 1;
}

/* Moves past one frame and gives its bytes; 0 when it is not there whole. */
static inline int pb_read_frame(struct pb *m, const uint8_t **data, size_t *size) {
    uint32_t length;
    if ((size_t)(m->end - m->p) < sizeof length)
        return 0;
    memcpy(&length, m->p, sizeof length);
    if ((size_t)(m->end - m->p) - sizeof length < length)
        return 0;
    *data = m->p + sizeof length;
    *size = length;
    m->p += sizeof length + length;
    return 1;
}

/* The numbers of the fields of package kong_plugin_protocol that are used here. */
enum {
    PB_SEQUENCE = 1,                                             /* RpcCall, RpcReturn */
    PB_START_INSTANCE = 33, PB_HANDLE_EVENT = 36,                /* RpcCall */
    PB_START_NAME = 1, PB_START_CONFIG = 2,                      /* CmdStartInstance */
    PB_EVENT_INSTANCE = 1, PB_EVENT_NAME = 2,                    /* CmdHandleEvent */
    PB_INSTANCE_STATUS = 33, PB_STATUS_NAME = 1, PB_STATUS_ID = 2, /* RpcReturn */
    PB_V = 1,                                                    /* String, Int, Bool, … */
    PB_K = 1, PB_KV_VALUE = 2,                                   /* KV */
    PB_VALUE_STRING = 3,                                         /* google.protobuf.Value */
    PB_STRUCT_FIELDS = 1, PB_ENTRY_KEY = 1, PB_ENTRY_VALUE = 2,  /* google.protobuf.Struct */
};

#endif
