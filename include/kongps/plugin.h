/* A Kong plugin in C, C++, Rust, or any language that can build a shared library with this
 * interface.
 *
 * The library exports one symbol, `kongps_plugin`: a table that describes the plugin and holds its
 * functions:
 *
 *     #include <kongps/plugin.h>
 *
 *     static int access_phase(void *instance, kongps_kong *kong)
 *     {
 *         (void)instance;
 *         return kongps_set_header(kong, "x-hello", "from C");
 *     }
 *
 *     KONGPS_EXPORT const kongps_plugin_table kongps_plugin = {
 *         .api = KONGPS_PLUGIN_API,
 *         .size = sizeof(kongps_plugin_table),
 *         .version = "1.0.0",
 *         .priority = 10,
 *         .phases = KONGPS_PHASE_BIT(KONGPS_ACCESS),
 *         .schema = "[]",
 *         .access = access_phase,
 *     };
 *
 * `kongps build hello.c` compiles this to hello.so; the file's name is the plugin's name.
 *
 * When functions are called. `new_instance` is called once for each configuration, and a handler
 * for each request in its phase. `close_instance` is called once, when the configuration is gone
 * and no new events will come.
 *
 * Errors. A function returns KONGPS_OK or one of the negative codes below. If a handler returns
 * anything else than KONGPS_OK, it has failed: the request ends with a 500, and the log has the
 * reason that was passed to `kongps_fail`, or the error of the failed PDK call. The exception is
 * KONGPS_ENDED, which a PDK call returns when the event is over, because the handler has ended it
 * (kongps_exit) or Kong has abandoned it. The handler then frees what it holds and returns
 * KONGPS_ENDED; every further call returns KONGPS_ENDED too.
 *
 * Memory. What the server passes to the plugin (configuration, results, error texts) belongs to
 * the server. A configuration is valid until `new_instance` returns, results and texts until the
 * handler returns. Copy what you need longer. What the plugin passes to the server belongs to the
 * plugin, and must be valid only during the call. Neither side frees memory of the other. The
 * table and everything that it points to must remain valid as long as the library is loaded, which
 * is until the process ends.
 *
 * Threads. All functions of a plugin are called on one thread, the server's. A `kongps_kong` is
 * valid on that thread, until its handler returns; on another thread, calls return KONGPS_ERROR.
 * While a handler waits for the result of a PDK call, other handlers run, also of the same
 * instance, and may change the instance. Between PDK calls nothing else runs, so a handler that
 * computes or blocks for long holds up all others.
 *
 * The stack. Handlers share one stack: while a handler waits in a PDK call, its part of the stack
 * is copied elsewhere. So no other handler and no other thread may use a pointer into it; allocate
 * what several handlers share, or make it static. For the same reason, no longjmp and no C++
 * exception may cross a PDK call or leave a handler.
 *
 * A plugin is part of the server's process: if it crashes, the server crashes with all plugins.
 */
#ifndef KONGPS_PLUGIN_H
#define KONGPS_PLUGIN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "phases.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. A library with a different version is not loaded. */
#define KONGPS_PLUGIN_API 1

#define KONGPS_OK 0
#define KONGPS_ERROR (-1) /* the PDK call failed; kongps_error() says why */
#define KONGPS_ENDED (-2) /* the event is over; return at once */
#define KONGPS_FAILED (-3) /* the handler failed; kongps_fail() returns it */

/* Size of the buffer for the error text of `new_instance`, with the 0 at its end. */
#define KONGPS_ERROR_SIZE 512

#if defined(__GNUC__)
#define KONGPS_VISIBLE __attribute__((visibility("default")))
#else
#define KONGPS_VISIBLE
#endif

#ifdef __cplusplus
#define KONGPS_EXPORT extern "C" KONGPS_VISIBLE
#else
#define KONGPS_EXPORT KONGPS_VISIBLE
#endif

/* `phases` in the table is the bitwise or of these. */
#define KONGPS_PHASE_BIT(phase) (UINT32_C(1) << (phase))

enum kongps_type {
    KONGPS_NIL = 0,
    KONGPS_BOOLEAN = 1,
    KONGPS_INTEGER = 2,
    KONGPS_NUMBER = 3,
    KONGPS_STRING = 4, /* `size` bytes of any value, followed by a 0 */
    KONGPS_TABLE = 5,  /* a list or a map with `size` entries; only from results */
    KONGPS_JSON = 6,   /* only in arguments: JSON text of a table or any other value */
    KONGPS_BYTES = 7   /* only in arguments: like a string, for bodies that are not text */
};

typedef struct kongps_value {
    int32_t type; /* enum kongps_type */
    int32_t reserved;
    uint64_t size; /* of a string: bytes; of a table: entries */
    union {
        int64_t boolean; /* 0 or 1 */
        int64_t integer;
        double number;
        const char *text;
        uint64_t table;
    } as;
} kongps_value;

typedef struct kongps_kong kongps_kong;

/* The server's functions; the helpers below call them. */
typedef struct kongps_api {
    uint32_t api;
    uint32_t size;
    /* Asks Kong to call a PDK function, such as "kong.request.get_header", and waits for its
     * result. `result` may be NULL. */
    int (*call)(kongps_kong *kong, const char *function, const kongps_value *arguments,
                size_t count, kongps_value *result);
    /* Gets an entry of a table by its position, from 0. The key of a list's entry is its index in
     * Lua, from 1. Returns KONGPS_ERROR if there is no such entry. */
    int (*entry)(kongps_kong *kong, const kongps_value *table, uint64_t place, kongps_value *key,
                 kongps_value *value);
    /* Gets the value of a key in a map; nil if there is none. */
    int (*field)(kongps_kong *kong, const kongps_value *table, const char *key,
                 kongps_value *value);
    /* Converts any value to JSON text, a string. */
    int (*json)(kongps_kong *kong, const kongps_value *value, kongps_value *text);
    /* Returns the reason why the last call returned KONGPS_ERROR. */
    const char *(*error)(kongps_kong *kong);
    /* Sets the reason for the handler's failure; returns KONGPS_FAILED. */
    int (*fail)(kongps_kong *kong, const char *reason);
} kongps_api;

/* One event; handlers pass it to every PDK call. */
struct kongps_kong {
    const kongps_api *api;
    void *server; /* for the server's own use */
    int32_t phase; /* enum kongps_phase */
    int32_t reserved;
};

typedef int (*kongps_handler)(void *instance, kongps_kong *kong);

typedef struct kongps_plugin_table {
    uint32_t api;  /* KONGPS_PLUGIN_API; always the first member */
    uint32_t size; /* sizeof(kongps_plugin_table) */
    const char *version; /* up to three numbers, such as "1.0.0" */
    int32_t priority;    /* Kong runs plugins with a higher priority first */
    uint32_t phases;     /* the phases with a handler: KONGPS_PHASE_BIT of each */
    /* JSON: the list of the configuration's fields, [{"message": {"type": "string"}}, ...], or a
     * whole schema, {"name": ..., "fields": [...]}. */
    const char *schema;
    /* Makes an instance for a configuration: JSON text of `size` bytes, followed by a 0, with the
     * fields of the schema and some of Kong's own. If it returns anything else than KONGPS_OK,
     * there is no instance; write the reason to `error`, which has KONGPS_ERROR_SIZE bytes. May be
     * NULL; instances are then NULL. */
    int (*new_instance)(const char *config, size_t size, void **instance, char *error);
    void (*close_instance)(void *instance); /* may be NULL */
    kongps_handler certificate;
    kongps_handler rewrite;
    kongps_handler access;
    kongps_handler response;
    kongps_handler preread;
    kongps_handler log;
} kongps_plugin_table;

#ifdef __cplusplus
} /* extern "C" */
#endif

/* --- values ------------------------------------------------------------------------------- */

static inline kongps_value kongps_nil(void)
{
    kongps_value value;
    memset(&value, 0, sizeof value);
    return value;
}

static inline kongps_value kongps_boolean(int truth)
{
    kongps_value value = kongps_nil();
    value.type = KONGPS_BOOLEAN;
    value.as.boolean = truth != 0;
    return value;
}

static inline kongps_value kongps_integer(int64_t integer)
{
    kongps_value value = kongps_nil();
    value.type = KONGPS_INTEGER;
    value.as.integer = integer;
    return value;
}

static inline kongps_value kongps_number(double number)
{
    kongps_value value = kongps_nil();
    value.type = KONGPS_NUMBER;
    value.as.number = number;
    return value;
}

/* A string of `size` bytes. */
static inline kongps_value kongps_text(const char *text, size_t size)
{
    kongps_value value = kongps_nil();
    value.type = KONGPS_STRING;
    value.size = size;
    value.as.text = text;
    return value;
}

/* A string that ends with a 0; NULL is nil. */
static inline kongps_value kongps_string(const char *text)
{
    return text == NULL ? kongps_nil() : kongps_text(text, strlen(text));
}

static inline kongps_value kongps_bytes(const void *data, size_t size)
{
    kongps_value value = kongps_text((const char *)data, size);
    value.type = KONGPS_BYTES;
    return value;
}

/* A table, written as JSON. */
static inline kongps_value kongps_json(const char *text)
{
    kongps_value value = kongps_string(text);
    value.type = KONGPS_JSON;
    return value;
}

/* --- calls -------------------------------------------------------------------------------- */

static inline int kongps_call(kongps_kong *kong, const char *function,
                              const kongps_value *arguments, size_t count, kongps_value *result)
{
    return kong->api->call(kong, function, arguments, count, result);
}

static inline int kongps_entry(kongps_kong *kong, const kongps_value *table, uint64_t place,
                               kongps_value *key, kongps_value *value)
{
    return kong->api->entry(kong, table, place, key, value);
}

static inline int kongps_field(kongps_kong *kong, const kongps_value *table, const char *key,
                               kongps_value *value)
{
    return kong->api->field(kong, table, key, value);
}

static inline int kongps_to_json(kongps_kong *kong, const kongps_value *value, kongps_value *text)
{
    return kong->api->json(kong, value, text);
}

static inline const char *kongps_error(kongps_kong *kong)
{
    return kong->api->error(kong);
}

static inline int kongps_fail(kongps_kong *kong, const char *reason)
{
    return kong->api->fail(kong, reason);
}

/* Calls of a function with no argument, one string or two strings. */
static inline int kongps_call_0(kongps_kong *kong, const char *function, kongps_value *result)
{
    return kongps_call(kong, function, NULL, 0, result);
}

static inline int kongps_call_1(kongps_kong *kong, const char *function, const char *text,
                                kongps_value *result)
{
    kongps_value argument = kongps_string(text);
    return kongps_call(kong, function, &argument, 1, result);
}

static inline int kongps_call_2(kongps_kong *kong, const char *function, const char *first,
                                const char *second, kongps_value *result)
{
    kongps_value arguments[2];
    arguments[0] = kongps_string(first);
    arguments[1] = kongps_string(second);
    return kongps_call(kong, function, arguments, 2, result);
}

/* The client's request. Phases: rewrite, access, response; headers also in log. */
static inline int kongps_get_method(kongps_kong *kong, kongps_value *method)
{
    return kongps_call_0(kong, "kong.request.get_method", method);
}

static inline int kongps_get_path(kongps_kong *kong, kongps_value *path)
{
    return kongps_call_0(kong, "kong.request.get_path", path);
}

static inline int kongps_get_header(kongps_kong *kong, const char *name, kongps_value *header)
{
    return kongps_call_1(kong, "kong.request.get_header", name, header);
}

static inline int kongps_get_query_arg(kongps_kong *kong, const char *name, kongps_value *argument)
{
    return kongps_call_1(kong, "kong.request.get_query_arg", name, argument);
}

static inline int kongps_get_raw_body(kongps_kong *kong, kongps_value *body)
{
    return kongps_call_0(kong, "kong.request.get_raw_body", body);
}

/* The response to the client. Phases: rewrite, access, response. */
static inline int kongps_set_header(kongps_kong *kong, const char *name, const char *value)
{
    return kongps_call_2(kong, "kong.response.set_header", name, value, NULL);
}

static inline int kongps_clear_header(kongps_kong *kong, const char *name)
{
    return kongps_call_1(kong, "kong.response.clear_header", name, NULL);
}

/* The request to the service. Phases: rewrite, access. */
static inline int kongps_set_service_header(kongps_kong *kong, const char *name, const char *value)
{
    return kongps_call_2(kong, "kong.service.request.set_header", name, value, NULL);
}

/* Values that the plugins of a request share. Any phase. */
static inline int kongps_get_shared(kongps_kong *kong, const char *key, kongps_value *value)
{
    return kongps_call_1(kong, "kong.ctx.shared.get", key, value);
}

static inline int kongps_set_shared(kongps_kong *kong, const char *key, const char *value)
{
    return kongps_call_2(kong, "kong.ctx.shared.set", key, value, NULL);
}

/* Kong's error log. Any phase. */
static inline int kongps_log(kongps_kong *kong, const char *text)
{
    return kongps_call_1(kong, "kong.log.notice", text, NULL);
}

static inline int kongps_log_error(kongps_kong *kong, const char *text)
{
    return kongps_call_1(kong, "kong.log.err", text, NULL);
}

/* Ends the request with a status and a body. Returns KONGPS_ENDED, which the handler must return.
 * Phases: rewrite, access, response, preread. */
static inline int kongps_exit_value(kongps_kong *kong, int status, kongps_value body)
{
    kongps_value arguments[2];
    arguments[0] = kongps_integer(status);
    arguments[1] = body;
    return kongps_call(kong, "kong.response.exit", arguments, 2, NULL);
}

static inline int kongps_exit(kongps_kong *kong, int status, const char *body)
{
    return kongps_exit_value(kong, status, kongps_string(body));
}

/* The body is JSON text, such as {"message": "no key"}. */
static inline int kongps_exit_json(kongps_kong *kong, int status, const char *json)
{
    return kongps_exit_value(kong, status, kongps_json(json));
}

/* --- reading the configuration ------------------------------------------------------------ */

/* Returns the end of the JSON value that starts at `at`. The text must be valid JSON, as the
 * server's is. */
static inline const char *kongps_json_skip(const char *at)
{
    int depth = 0;
    do {
        if (*at == '"') {
            for (at++; *at != '"' && *at != 0; at++) {
                if (*at == '\\' && at[1] != 0) {
                    at++;
                }
            }
            at += *at == '"';
        } else if (*at == '{' || *at == '[') {
            depth++;
            at++;
        } else if (*at == '}' || *at == ']') {
            depth--;
            at++;
        } else if (depth > 0) {
            at += *at != 0;
        } else {
            at += strcspn(at, ",]} \t\r\n");
        }
    } while (depth > 0 && *at != 0);
    return at;
}

/* Returns where the value of a key in a JSON object starts; NULL if it is missing or null. */
static inline const char *kongps_config_find(const char *config, const char *key)
{
    static const char space[] = ", \t\r\n";
    size_t size = strlen(key);
    const char *at = config + strspn(config, space);
    if (*at != '{') {
        return NULL;
    }
    at++;
    for (;;) {
        const char *name;
        const char *end;
        at += strspn(at, space);
        if (*at != '"') {
            return NULL;
        }
        name = at + 1;
        end = kongps_json_skip(at);
        at = end + strspn(end, ": \t\r\n");
        if ((size_t)(end - 1 - name) == size && memcmp(name, key, size) == 0) {
            return strncmp(at, "null", 4) == 0 ? NULL : at;
        }
        at = kongps_json_skip(at);
    }
}

static inline int kongps_hex_digits(const char *at, unsigned *code)
{
    int digit;
    *code = 0;
    for (digit = 0; digit < 4; digit++) {
        char c = at[digit];
        unsigned low;
        if (c >= '0' && c <= '9') {
            low = (unsigned)(c - '0');
        } else if ((c | 32) >= 'a' && (c | 32) <= 'f') {
            low = (unsigned)((c | 32) - 'a') + 10;
        } else {
            return 0;
        }
        *code = *code * 16 + low;
    }
    return 1;
}

/* Copies a string of the configuration, followed by a 0, to `out`, which has `size` bytes. Returns
 * its length, or -1 if there is no such string or it does not fit. */
static inline long kongps_config_string(const char *config, const char *key, char *out, size_t size)
{
    const char *at = kongps_config_find(config, key);
    size_t length = 0;
    if (at == NULL || *at != '"' || size == 0) {
        return -1;
    }
    for (at++; *at != '"' && *at != 0; at++) {
        char utf8[4];
        size_t count = 1;
        utf8[0] = *at;
        if (*at == '\\') {
            unsigned code;
            unsigned low;
            at++;
            switch (*at) {
            case 'b': utf8[0] = '\b'; break;
            case 'f': utf8[0] = '\f'; break;
            case 'n': utf8[0] = '\n'; break;
            case 'r': utf8[0] = '\r'; break;
            case 't': utf8[0] = '\t'; break;
            case 'u':
                if (!kongps_hex_digits(at + 1, &code)) {
                    return -1;
                }
                at += 4;
                if (code >= 0xD800 && code < 0xDC00 && at[1] == '\\' && at[2] == 'u'
                    && kongps_hex_digits(at + 3, &low) && low >= 0xDC00 && low < 0xE000) {
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                    at += 6;
                }
                if (code < 0x80) {
                    utf8[0] = (char)code;
                } else if (code < 0x800) {
                    utf8[0] = (char)(0xC0 | (code >> 6));
                    utf8[1] = (char)(0x80 | (code & 0x3F));
                    count = 2;
                } else if (code < 0x10000) {
                    utf8[0] = (char)(0xE0 | (code >> 12));
                    utf8[1] = (char)(0x80 | ((code >> 6) & 0x3F));
                    utf8[2] = (char)(0x80 | (code & 0x3F));
                    count = 3;
                } else {
                    utf8[0] = (char)(0xF0 | (code >> 18));
                    utf8[1] = (char)(0x80 | ((code >> 12) & 0x3F));
                    utf8[2] = (char)(0x80 | ((code >> 6) & 0x3F));
                    utf8[3] = (char)(0x80 | (code & 0x3F));
                    count = 4;
                }
                break;
            default: utf8[0] = *at; break;
            }
        }
        if (length + count >= size) {
            return -1;
        }
        memcpy(out + length, utf8, count);
        length += count;
    }
    out[length] = 0;
    return (long)length;
}

/* An integer of the configuration, or `otherwise`. */
static inline int64_t kongps_config_integer(const char *config, const char *key, int64_t otherwise)
{
    const char *at = kongps_config_find(config, key);
    int negative;
    uint64_t number = 0;
    if (at == NULL) {
        return otherwise;
    }
    negative = *at == '-';
    at += negative;
    if (*at < '0' || *at > '9') {
        return otherwise;
    }
    for (; *at >= '0' && *at <= '9'; at++) {
        number = number * 10 + (uint64_t)(*at - '0');
    }
    return negative ? -(int64_t)number : (int64_t)number;
}

/* A boolean of the configuration, or `otherwise`. */
static inline int kongps_config_boolean(const char *config, const char *key, int otherwise)
{
    const char *at = kongps_config_find(config, key);
    if (at == NULL || (strncmp(at, "true", 4) != 0 && strncmp(at, "false", 5) != 0)) {
        return otherwise;
    }
    return *at == 't';
}

#endif /* KONGPS_PLUGIN_H */
