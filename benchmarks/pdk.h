/* The PDK as the driver's Kong knows it: what each function gives, packed for both protocols. */
#ifndef BENCH_PDK_H
#define BENCH_PDK_H

#include "msgpack.h"
#include "protobuf.h"

#include <stdio.h>

struct function {
    const char *name;
    const char *step;    /* MsgPack: method of the request that carries the result */
    struct buf msgpack;  /* the result; empty: none */
    struct buf protobuf; /* the result's message; empty for google.protobuf.Empty and for nil */
    int terminal;        /* Kong never answers */
    long calls;
};

static struct function functions[128];
static int function_count;
#define FUNCTION_SLOTS 512
static struct function *function_table[FUNCTION_SLOTS];

static unsigned name_hash(const char *s, size_t n) {
    unsigned h = 2166136261u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 16777619u;
    return h;
}

static struct function *function_find(const char *s, size_t n) {
    unsigned i = name_hash(s, n) % FUNCTION_SLOTS;
    for (; function_table[i]; i = (i + 1) % FUNCTION_SLOTS)
        if (text_is(s, n, function_table[i]->name))
            return function_table[i];
    return NULL;
}

static struct function *function_add(const char *name, const char *step) {
    if (function_count == (int)(sizeof functions / sizeof *functions))
        abort();
    struct function *f = &functions[function_count++];
    unsigned i = name_hash(name, strlen(name)) % FUNCTION_SLOTS;
    while (function_table[i])
        i = (i + 1) % FUNCTION_SLOTS;
    function_table[i] = f;
    f->name = name;
    f->step = step;
    return f;
}

static void function_text(const char *name, const char *value) {
    struct function *f = function_add(name, "plugin.Step");
    mp_str(&f->msgpack, value);
    pb_str(&f->protobuf, PB_V, value);
}

static void function_int(const char *name, int64_t value) {
    struct function *f = function_add(name, "plugin.Step");
    mp_int(&f->msgpack, value);
    pb_int(&f->protobuf, PB_V, value);
}

static void function_bytes(const char *name, const void *data, size_t size) {
    struct function *f = function_add(name, "plugin.Step");
    mp_bin(&f->msgpack, data, size);
    pb_bytes(&f->protobuf, 1, data, size); /* RawBodyResult.content, ByteString.v */
}

/* Headers or query arguments: arrays over MsgPack, plain strings in a Struct over ProtoBuf. */
static void function_multimap(const char *name, int count) {
    struct function *f = function_add(name, "plugin.StepMultiMap");
    struct buf inner = {0}, entry = {0};
    char key[32], value[48];
    mp_map(&f->msgpack, (unsigned)count);
    for (int i = 0; i < count; i++) {
        snprintf(key, sizeof key, i ? "x-header-%02d" : "host", i);
        snprintf(value, sizeof value, i ? "value number %d of the request" : "bench.example:8000",
                 i);
        mp_str(&f->msgpack, key);
        mp_array(&f->msgpack, 1);
        mp_str(&f->msgpack, value);
        pb_str(&inner, PB_VALUE_STRING, value);
        pb_str(&entry, PB_ENTRY_KEY, key);
        pb_message(&entry, PB_ENTRY_VALUE, &inner);
        pb_message(&f->protobuf, PB_STRUCT_FIELDS, &entry);
    }
    free(inner.data);
    free(entry.data);
}

struct entity_field {
    const char *name;
    unsigned number; /* in the ProtoBuf message */
    const char *text;
};

static void function_entity(const char *name, const char *step, const struct entity_field *fields) {
    struct function *f = function_add(name, step);
    unsigned n = 0;
    while (fields[n].name)
        n++;
    mp_map(&f->msgpack, n);
    for (unsigned i = 0; i < n; i++) {
        mp_str(&f->msgpack, fields[i].name);
        mp_str(&f->msgpack, fields[i].text);
        pb_str(&f->protobuf, fields[i].number, fields[i].text);
    }
}

/* A log record as Kong serializes it, of `size` bytes (but not less than about 400). */
static struct buf log_record(size_t size) {
    static const char HEAD[] =
        "{\"client_ip\":\"192.0.2.7\",\"started_at\":1700000000123,"
        "\"latencies\":{\"kong\":1,\"proxy\":12,\"request\":13},"
        "\"service\":{\"id\":\"44444444-4444-4444-8444-444444444444\",\"name\":\"upstream\","
        "\"host\":\"upstream.example\",\"port\":80,\"protocol\":\"http\",\"enabled\":true},"
        "\"response\":{\"status\":200,\"size\":512},"
        "\"request\":{\"method\":\"GET\",\"uri\":\"/things/42\",\"size\":1024,"
        "\"headers\":{\"host\":\"bench.example:8000\"";
    static const char TAIL[] = "}}}";
    struct buf b = {0};
    char header[96];
    buf_put(&b, HEAD, sizeof HEAD - 1);
    for (int i = 1;; i++) {
        size_t n = (size_t)snprintf(header, sizeof header,
                                    ",\"x-header-%d\":\"value number %d of the request\"", i, i);
        if (b.len + n + sizeof TAIL + 8 > size)
            break;
        buf_put(&b, header, n);
    }
    if (b.len + sizeof TAIL + 8 < size) {
        buf_put(&b, ",\"x\":\"", 6);
        while (b.len + sizeof TAIL < size)
            buf_byte(&b, 'x');
        buf_byte(&b, '"');
    }
    buf_put(&b, TAIL, sizeof TAIL); /* with the zero that ends it */
    return b;
}

static void functions_prepare(int headers, size_t body, size_t log_size) {
    static const char *const text[][2] = {
        {"kong.request.get_header", "bench.example:8000"},
        {"kong.request.get_host", "bench.example"},
        {"kong.request.get_method", "GET"},
        {"kong.request.get_path", "/things/42"},
        {"kong.request.get_path_with_query", "/things/42?a=1"},
        {"kong.request.get_raw_query", "a=1"},
        {"kong.request.get_query_arg", "1"},
        {"kong.request.get_scheme", "http"},
        {"kong.request.get_forwarded_scheme", "http"},
        {"kong.request.get_forwarded_host", "bench.example"},
        {"kong.request.get_forwarded_path", "/things/42"},
        {"kong.response.get_header", "text/plain"},
        {"kong.response.get_source", "service"},
        {"kong.service.response.get_header", "text/plain"},
        {"kong.client.get_ip", "192.0.2.7"},
        {"kong.client.get_forwarded_ip", "192.0.2.7"},
        {"kong.node.get_id", "8b36a7d4-5c53-4dd2-a1c6-8b6a3b3f9d11"},
        {"kong.nginx.get_var", "200"},
    };
    static const char *const none[] = {
        "kong.response.set_header", "kong.response.add_header", "kong.response.clear_header",
        "kong.response.set_headers", "kong.response.set_status", "kong.service.set_upstream",
        "kong.service.set_target", "kong.service.request.enable_buffering",
        "kong.service.request.set_scheme", "kong.service.request.set_path",
        "kong.service.request.set_raw_query", "kong.service.request.set_method",
        "kong.service.request.set_query", "kong.service.request.set_header",
        "kong.service.request.add_header", "kong.service.request.clear_header",
        "kong.service.request.set_headers", "kong.service.request.set_raw_body",
        "kong.service.request.set_body", "kong.client.authenticate", "kong.ctx.shared.set",
        "kong.nginx.set_ctx", "kong.log", "kong.log.alert", "kong.log.crit", "kong.log.err",
        "kong.log.warn", "kong.log.notice", "kong.log.info", "kong.log.debug",
        "kong.log.set_serialize_value",
    };
    static const struct entity_field consumer[] = {
        {"id", 1, "11111111-1111-4111-8111-111111111111"}, {"username", 3, "alice"},
        {"custom_id", 4, "customer-1"}, {NULL, 0, NULL},
    };
    static const struct entity_field credential[] = {
        {"id", 1, "22222222-2222-4222-8222-222222222222"},
        {"consumer_id", 2, "11111111-1111-4111-8111-111111111111"}, {NULL, 0, NULL},
    };
    static const struct entity_field route[] = {
        {"id", 1, "33333333-3333-4333-8333-333333333333"}, {"name", 4, "things"}, {NULL, 0, NULL},
    };
    static const struct entity_field service[] = {
        {"id", 1, "44444444-4444-4444-8444-444444444444"}, {"name", 4, "upstream"},
        {"protocol", 6, "http"}, {"host", 7, "upstream.example"}, {NULL, 0, NULL},
    };
    struct function *f;
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        function_text(text[i][0], text[i][1]);
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        function_add(none[i], "plugin.Step");

    function_int("kong.request.get_port", 8000);
    function_int("kong.request.get_forwarded_port", 8000);
    function_int("kong.request.get_start_time", 1700000000123);
    function_int("kong.response.get_status", 200);
    function_int("kong.service.response.get_status", 200);
    function_int("kong.client.get_port", 40000);
    function_int("kong.client.get_forwarded_port", 40000);
    f = function_add("kong.ip.is_trusted", "plugin.Step");
    mp_bool(&f->msgpack, 1);
    pb_int(&f->protobuf, PB_V, 1);
    f = function_add("kong.ctx.shared.get", "plugin.Step");
    mp_str(&f->msgpack, "shared value");
    pb_str(&f->protobuf, PB_VALUE_STRING, "shared value");

    function_multimap("kong.request.get_headers", headers);
    function_multimap("kong.response.get_headers", headers);
    function_multimap("kong.service.response.get_headers", headers);
    function_multimap("kong.request.get_query", 3);
    function_entity("kong.client.load_consumer", "plugin.StepConsumer", consumer);
    function_entity("kong.client.get_consumer", "plugin.StepConsumer", consumer);
    function_entity("kong.client.get_credential", "plugin.StepCredential", credential);
    function_entity("kong.router.get_route", "plugin.StepRoute", route);
    function_entity("kong.router.get_service", "plugin.StepService", service);

    char *bytes = malloc(body + 1);
    if (!bytes)
        abort();
    for (size_t i = 0; i < body; i++)
        bytes[i] = (char)(' ' + (i * 31 + (i >> 8)) % 95); /* text: go-pdk can send no other */
    function_bytes("kong.request.get_raw_body", bytes, body);
    function_bytes("kong.service.response.get_raw_body", bytes, body);
    free(bytes);
    struct buf record = log_record(log_size);
    function_text("kong.log.serialize", (const char *)record.data);
    free(record.data);

    function_add("kong.response.exit", NULL)->terminal = 1;
    function_add("kong.response.error", NULL)->terminal = 1;
}

#endif
