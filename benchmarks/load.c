/* A load driver for plugin servers that speak MsgPack:1: the other side of the wire, as Kong is.
 *
 * It opens N connections, starts one instance of a plugin, and then keeps one event in flight per
 * connection: HandleEvent, an answer to each PDK call that the server makes, until the server
 * says "ret" (or makes a call that Kong never answers). Then the next event. One thread, epoll.
 *
 * What it prints is one JSON object; `--help` lists the options. Exit status: 0 fine, 1 errors
 * were seen (they are in the JSON) or nothing could be measured, 2 usage.
 */
#define _GNU_SOURCE
#include "histogram.h"
#include "msgpack.h"
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* ---- options ---- */

static struct {
    const char *socket, *plugin, *config, *event;
    int connections, move;
    double seconds, warmup, wait, timeout;
    long events, pid;
    int headers;
    long body, log_size;
    long marks[16];
    int mark_count;
} opt = {
    .plugin = "hello",
    .config = "{\"__key__\":\"plugins:hello::dea4c45f-3d88-5461-8ebd-05ae5bbbf87a:::"
              "0dc6f45b-8f8d-40d2-a504-473544ee190b\",\"__seq__\":1,"
              "\"service_id\":\"dea4c45f-3d88-5461-8ebd-05ae5bbbf87a\",\"message\":\"hello\"}",
    .event = "access",
    .connections = 16,
    .seconds = 5,
    .warmup = 0.5,
    .wait = 10,
    .timeout = 10,
    .headers = 20,
    .body = 65536,
    .log_size = 2048,
};

static const char HELP[] =
    "usage: load --socket PATH [options]\n"
    "  --socket PATH       the server's unix socket\n"
    "  --plugin NAME       plugin to start one instance of (hello)\n"
    "  --config JSON       its configuration, as Kong's datastore has it\n"
    "  --event NAME        phase of the events (access)\n"
    "  --connections N     connections, and events in flight (16)\n"
    "  --seconds S         how long to measure (5)\n"
    "  --events N          measure N events instead, however long they take\n"
    "  --warmup S          seconds of load before the measurement (0.5)\n"
    "  --move-steps        no request of an event on the connection of the one before it:\n"
    "                      one connection more is opened, the one idle longest is used\n"
    "  --pid PID           report CPU time and memory of this process and all below it\n"
    "  --rss-at N[,N...]   with --pid: memory when so many events are done\n"
    "  --headers N         headers that get_headers gives (20)\n"
    "  --body BYTES        size of the request's body (65536)\n"
    "  --log-size BYTES    size of what kong.log.serialize gives (2048)\n"
    "  --wait S            how long to wait for the socket to be there (10)\n"
    "  --timeout S         give up when nothing was answered for so long (10)\n";

/* ---- time ---- */

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static uint64_t to_ns(double seconds) { return (uint64_t)(seconds * 1e9); }

/* ---- errors: counted by name ---- */

static struct {
    char name[200];
    long count;
} errors[32];
static int error_kinds;
static long error_total;

__attribute__((format(printf, 1, 2))) static void error_add(const char *format, ...) {
    char name[sizeof errors[0].name];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    error_total++;
    for (int i = 0; i < error_kinds; i++)
        if (strcmp(errors[i].name, name) == 0) {
            errors[i].count++;
            return;
        }
    if (error_kinds == (int)(sizeof errors / sizeof *errors)) {
        errors[error_kinds - 1].count++; /* the last row then stands for all further kinds */
        snprintf(errors[error_kinds - 1].name, sizeof name, "further kinds of error");
        return;
    }
    memcpy(errors[error_kinds].name, name, sizeof name);
    errors[error_kinds++].count = 1;
}

/* ---- the PDK as this Kong knows it ---- */

struct function {
    const char *name;
    const char *step;  /* method of the request that carries the result */
    struct buf data;   /* the result, packed; empty: none */
    int terminal;      /* Kong never answers */
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

static struct buf *function_add(const char *name, const char *step) {
    if (function_count == (int)(sizeof functions / sizeof *functions))
        abort();
    struct function *f = &functions[function_count++];
    unsigned i = name_hash(name, strlen(name)) % FUNCTION_SLOTS;
    while (function_table[i])
        i = (i + 1) % FUNCTION_SLOTS;
    function_table[i] = f;
    f->name = name;
    f->step = step;
    return &f->data;
}

static void function_text(const char *name, const char *value) {
    mp_str(function_add(name, "plugin.Step"), value);
}

static void function_int(const char *name, int64_t value) {
    mp_int(function_add(name, "plugin.Step"), value);
}

static void put_multimap(struct buf *b, int count) {
    char name[32], value[48];
    mp_map(b, (unsigned)count);
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, i ? "x-header-%02d" : "host", i);
        snprintf(value, sizeof value, i ? "value number %d of the request" : "bench.example:8000", i);
        mp_str(b, name);
        mp_array(b, 1);
        mp_str(b, value);
    }
}

static void put_entity(struct buf *b, const char *const *pairs) {
    unsigned n = 0;
    while (pairs[2 * n])
        n++;
    mp_map(b, n + 1);
    for (unsigned i = 0; i < 2 * n; i++)
        mp_str(b, pairs[i]);
    mp_str(b, "created_at");
    mp_int(b, 1700000000);
}

static void functions_prepare(void) {
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
        {"kong.ctx.shared.get", "shared value"},
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
    static const char *const consumer[] = {
        "id", "11111111-1111-4111-8111-111111111111", "username", "alice",
        "custom_id", "customer-1", NULL,
    };
    static const char *const credential[] = {
        "id", "22222222-2222-4222-8222-222222222222",
        "consumer_id", "11111111-1111-4111-8111-111111111111", "key", "secret", NULL,
    };
    static const char *const route[] = {
        "id", "33333333-3333-4333-8333-333333333333", "name", "things", "path_handling", "v0", NULL,
    };
    static const char *const service[] = {
        "id", "44444444-4444-4444-8444-444444444444", "name", "upstream",
        "host", "upstream.example", "protocol", "http", NULL,
    };
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
    mp_bool(function_add("kong.ip.is_trusted", "plugin.Step"), 1);

    put_multimap(function_add("kong.request.get_headers", "plugin.StepMultiMap"), opt.headers);
    put_multimap(function_add("kong.response.get_headers", "plugin.StepMultiMap"), opt.headers);
    put_multimap(function_add("kong.service.response.get_headers", "plugin.StepMultiMap"),
                 opt.headers);
    put_multimap(function_add("kong.request.get_query", "plugin.StepMultiMap"), 3);
    put_entity(function_add("kong.client.load_consumer", "plugin.StepConsumer"), consumer);
    put_entity(function_add("kong.client.get_consumer", "plugin.StepConsumer"), consumer);
    put_entity(function_add("kong.client.get_credential", "plugin.StepCredential"), credential);
    put_entity(function_add("kong.router.get_route", "plugin.StepRoute"), route);
    put_entity(function_add("kong.router.get_service", "plugin.StepService"), service);

    char *bytes = malloc((size_t)(opt.body > opt.log_size ? opt.body : opt.log_size) + 64);
    if (!bytes)
        abort();
    for (long i = 0; i < opt.body; i++)
        bytes[i] = (char)(i * 31 + (i >> 8)); /* not text: a body is any bytes */
    mp_bin(function_add("kong.request.get_raw_body", "plugin.Step"), bytes, (size_t)opt.body);
    mp_bin(function_add("kong.service.response.get_raw_body", "plugin.Step"), bytes,
           (size_t)opt.body);
    int head = sprintf(bytes, "{\"request\":{\"method\":\"GET\"},\"filler\":\"");
    memset(bytes + head, 'x', (size_t)(opt.log_size > head + 2 ? opt.log_size - head - 2 : 0));
    strcpy(bytes + (opt.log_size > head + 2 ? opt.log_size - 2 : head), "\"}");
    mp_str(function_add("kong.log.serialize", "plugin.Step"), bytes);
    free(bytes);

    function_add("kong.response.exit", NULL);
    functions[function_count - 1].terminal = 1;
    function_add("kong.response.error", NULL);
    functions[function_count - 1].terminal = 1;
}

/* ---- state ---- */

struct event {
    int64_t id;
    uint64_t started;
    int index; /* the connection it lives on, unless steps move */
};

struct connection {
    int fd; /* -1: closed */
    struct event *event;
    int64_t msgid;
    int starting; /* carries StartInstance */
    int writing;  /* epoll watches for EPOLLOUT too */
    struct buf in, out;
    size_t in_done, out_done;
};

enum phase { STARTING, WARMING, MEASURING, DRAINING, ENDED };

static struct connection *connections;
static struct event *events;
static int connection_count;
static int poller;
static int *idle; /* ring of connections without a request; used when steps move */
static int idle_first, idle_count;

static enum phase phase = STARTING;
static int64_t instance = -1;
static uint64_t window_start, window_end, deadline, latency_since, progress;
static long done_events, failed_events, round_trips, in_flight;
static struct histogram latency;
static struct usage usage_before, usage_start, usage_end, usage_after;
static double driver_start, driver_end;
static struct {
    long events, rss_kb, pss_kb;
} marks_seen[16];
static int marks_seen_count;

static double driver_cpu(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void measure_begin(void) {
    phase = MEASURING;
    done_events = failed_events = round_trips = 0;
    hist_reset(&latency);
    for (int i = 0; i < function_count; i++)
        functions[i].calls = 0;
    if (opt.pid)
        process_usage(opt.pid, 0, &usage_start);
    driver_start = driver_cpu();
    /* Reading /proc took a moment in which no event was served: leave that out. */
    window_start = latency_since = now_ns();
    deadline = window_start + to_ns(opt.seconds);
}

static void measure_end(uint64_t now) {
    phase = DRAINING;
    window_end = now;
    driver_end = driver_cpu();
    if (opt.pid)
        process_usage(opt.pid, 0, &usage_end);
}

/* ---- connections ---- */

static void connection_close(struct connection *c, const char *why) {
    if (c->fd < 0)
        return;
    close(c->fd);
    c->fd = -1;
    if (why)
        error_add("%s%s", why, c->event || c->starting ? " during a call" : "");
    if (c->event) {
        c->event = NULL;
        in_flight--;
        if (phase == MEASURING)
            failed_events++;
    }
    if (c->starting)
        phase = ENDED;
}

static void connection_flush(struct connection *c) {
    while (c->out_done < c->out.len) {
        ssize_t n = send(c->fd, c->out.data + c->out_done, c->out.len - c->out_done, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            if (errno == EAGAIN)
                break;
            connection_close(c, "connection broken");
            return;
        }
        c->out_done += (size_t)n;
    }
    int more = c->out_done < c->out.len;
    if (!more)
        c->out_done = c->out.len = 0;
    if (more != c->writing) {
        struct epoll_event e = {.events = EPOLLIN | (more ? EPOLLOUT : 0u), .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
        c->writing = more;
    }
}

static void request_head(struct connection *c, const char *method) {
    mp_array(&c->out, 4);
    mp_int(&c->out, 0);
    mp_int(&c->out, ++c->msgid);
    mp_str(&c->out, method);
    mp_array(&c->out, 1);
}

/* The connection for the next request of an event; NULL when there is none left. */
static struct connection *connection_for(struct event *e) {
    if (!opt.move) {
        struct connection *c = &connections[e->index];
        return c->fd < 0 ? NULL : c;
    }
    while (idle_count) {
        struct connection *c = &connections[idle[idle_first]];
        idle_first = (idle_first + 1) % connection_count;
        idle_count--;
        if (c->fd >= 0)
            return c;
    }
    return NULL;
}

static void connection_idle(struct connection *c) {
    c->event = NULL;
    if (opt.move) {
        idle[(idle_first + idle_count) % connection_count] = (int)(c - connections);
        idle_count++;
    }
}

static void event_start(struct event *e) {
    struct connection *c = connection_for(e);
    if (!c)
        return;
    request_head(c, "plugin.HandleEvent");
    mp_map(&c->out, 2);
    mp_str(&c->out, "InstanceId");
    mp_int(&c->out, instance);
    mp_str(&c->out, "EventName");
    mp_str(&c->out, opt.event);
    c->event = e;
    in_flight++;
    e->started = now_ns();
    connection_flush(c);
}

static void event_step(struct event *e, int64_t id, const char *method, const struct buf *data) {
    struct connection *c = connection_for(e);
    if (!c) {
        in_flight--;
        return;
    }
    request_head(c, method);
    mp_map(&c->out, data && data->len ? 2 : 1);
    if (data && data->len) {
        mp_str(&c->out, "Data");
        buf_put(&c->out, data->data, data->len);
    }
    mp_str(&c->out, "EventId");
    mp_int(&c->out, id);
    c->event = e;
    connection_flush(c);
}

static void event_end(struct event *e, int failed) {
    uint64_t now = now_ns();
    in_flight--;
    if (phase == MEASURING) {
        if (failed) {
            failed_events++;
        } else {
            done_events++;
            if (e->started >= latency_since)
                hist_add(&latency, now - e->started);
        }
        if (opt.pid && marks_seen_count < opt.mark_count &&
            done_events == opt.marks[marks_seen_count]) {
            struct usage u;
            process_usage(opt.pid, 1, &u);
            marks_seen[marks_seen_count].events = done_events;
            marks_seen[marks_seen_count].rss_kb = u.rss_kb;
            marks_seen[marks_seen_count++].pss_kb = u.pss_kb;
            latency_since = now_ns();
        }
        if (opt.events ? done_events + failed_events >= opt.events : now >= deadline)
            measure_end(now);
    } else if (phase == WARMING && now >= deadline) {
        measure_begin();
    }
    if (phase == WARMING || phase == MEASURING)
        event_start(e);
}

/* ---- answers ---- */

static const char *read_answer(struct connection *c, struct mp *m) {
    uint32_t n, entries;
    int64_t type, msgid, id = -1;
    const char *s;
    size_t len;
    struct mp data = {NULL, NULL};

    if (!mp_read_array(m, &n) || n < 3 || !mp_read_int(m, &type))
        return "malformed message";
    if (type == 2)
        return NULL; /* a notification, such as serverPid */
    if (type != 1 || n != 4 || !mp_read_int(m, &msgid))
        return "malformed answer";
    struct event *e = c->event;
    if ((!e && !c->starting) || msgid != c->msgid)
        return "answer to nothing that was asked";
    if (phase == MEASURING)
        round_trips++;

    if (!mp_read_nil(m)) {
        if (mp_read_str(m, &s, &len)) {
            /* numbers in it, such as an event's id, would make each a kind of its own */
            char text[120];
            size_t k = 0;
            for (size_t i = 0; i < len && k < sizeof text - 1; i++) {
                int digit = s[i] >= '0' && s[i] <= '9';
                if (digit && k && text[k - 1] == 'N')
                    continue;
                text[k++] = digit ? 'N' : s[i];
            }
            text[k] = 0;
            error_add("RPC error: %s", text);
        } else {
            error_add("RPC error that is not text");
        }
        if (c->starting) {
            phase = ENDED;
            return NULL;
        }
        connection_idle(c);
        event_end(e, 1);
        return NULL;
    }

    if (!mp_read_map(m, &entries))
        return "answer without a map";
    for (uint32_t i = 0; i < entries; i++) {
        if (!mp_read_str(m, &s, &len))
            return "malformed answer";
        if (text_is(s, len, c->starting ? "Id" : "EventId")) {
            if (!mp_read_int(m, &id))
                return "an id that is no whole number";
        } else {
            if (!c->starting && text_is(s, len, "Data"))
                data = *m;
            if (mp_skip(m) != MP_OK)
                return "malformed answer";
        }
    }
    if (c->starting) {
        if (id < 0)
            return "StartInstance gave no Id";
        instance = id;
        c->starting = 0;
        connection_idle(c);
        return NULL;
    }
    if (!data.p)
        return "answer without Data";

    if (mp_read_str(&data, &s, &len)) {
        if (!text_is(s, len, "ret"))
            return "Data that is neither \"ret\" nor a call";
        connection_idle(c);
        event_end(e, 0);
        return NULL;
    }
    const char *method = NULL;
    size_t method_len = 0;
    if (!mp_read_map(&data, &entries))
        return "Data that is neither \"ret\" nor a call";
    for (uint32_t i = 0; i < entries; i++) {
        if (!mp_read_str(&data, &s, &len))
            return "malformed call";
        if (text_is(s, len, "Method")) {
            if (!mp_read_str(&data, &method, &method_len))
                return "malformed call";
        } else if (mp_skip(&data) != MP_OK) {
            return "malformed call";
        }
    }
    if (!method || id < 0)
        return "a call without Method or EventId";
    connection_idle(c);
    struct function *f = function_find(method, method_len);
    if (!f) {
        /* Kong logs it and answers without a value */
        error_add("unexpected method %.*s", (int)(method_len > 100 ? 100 : method_len), method);
        event_step(e, id, "plugin.Step", NULL);
        return NULL;
    }
    f->calls++;
    if (f->terminal)
        event_end(e, 0);
    else
        event_step(e, id, f->step, &f->data);
    return NULL;
}

static void connection_read(struct connection *c) {
    buf_reserve(&c->in, 16384);
    ssize_t n = recv(c->fd, c->in.data + c->in.len, c->in.cap - c->in.len, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        connection_close(c, n ? "connection broken" : "connection closed");
        return;
    }
    c->in.len += (size_t)n;
    progress = now_ns();
    while (c->fd >= 0 && c->in_done < c->in.len) {
        struct mp m = {c->in.data + c->in_done, c->in.data + c->in.len};
        struct mp whole = m;
        int r = mp_skip(&whole);
        if (r == MP_MORE)
            break;
        m.end = whole.p;
        const char *problem = r == MP_BAD ? "bytes that are no MessagePack" : read_answer(c, &m);
        if (problem) {
            connection_close(c, problem);
            return;
        }
        c->in_done = (size_t)(whole.p - c->in.data);
    }
    if (c->in_done == c->in.len) {
        c->in_done = c->in.len = 0;
    } else if (c->in_done) {
        memmove(c->in.data, c->in.data + c->in_done, c->in.len - c->in_done);
        c->in.len -= c->in_done;
        c->in_done = 0;
    }
}

/* One round of the loop; false when nothing has come for the timeout. */
static int pump(void) {
    static struct epoll_event ready[512];
    int n = epoll_wait(poller, ready, sizeof ready / sizeof *ready, 50);
    for (int i = 0; i < n; i++) {
        struct connection *c = ready[i].data.ptr;
        if (c->fd >= 0 && ready[i].events & EPOLLOUT)
            connection_flush(c);
        if (c->fd >= 0 && ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            connection_read(c);
    }
    if (now_ns() - progress > to_ns(opt.timeout)) {
        error_add("no answer for %g s", opt.timeout);
        return 0;
    }
    return 1;
}

static int connect_all(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(opt.socket) >= sizeof address.sun_path) {
        error_add("the socket's path is too long");
        return 0;
    }
    strcpy(address.sun_path, opt.socket);
    uint64_t until = now_ns() + to_ns(opt.wait);
    for (int i = 0; i < connection_count; i++) {
        struct connection *c = &connections[i];
        for (;;) {
            c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
            if (c->fd < 0) {
                error_add("cannot open a socket: %s", strerror(errno));
                return 0;
            }
            if (connect(c->fd, (struct sockaddr *)&address, sizeof address) == 0)
                break;
            int why = errno;
            close(c->fd);
            c->fd = -1;
            if (now_ns() > until) {
                error_add("cannot connect: %s", strerror(why));
                return 0;
            }
            usleep(10000);
        }
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
        if (opt.move && i > 0)
            connection_idle(c);
    }
    return 1;
}

static void run(void) {
    if (!connect_all())
        return;
    if (opt.pid && !process_usage(opt.pid, 1, &usage_before)) {
        error_add("no process %ld", opt.pid);
        return;
    }
    progress = now_ns();

    struct connection *c = &connections[0];
    c->starting = 1;
    request_head(c, "plugin.StartInstance");
    mp_map(&c->out, 2);
    mp_str(&c->out, "Name");
    mp_str(&c->out, opt.plugin);
    mp_str(&c->out, "Config");
    mp_str(&c->out, opt.config);
    connection_flush(c);
    while (phase == STARTING && instance < 0)
        if (!pump())
            return;
    if (instance < 0)
        return;

    phase = WARMING;
    deadline = now_ns() + to_ns(opt.warmup);
    if (opt.warmup <= 0)
        measure_begin();
    progress = now_ns();
    for (int i = 0; i < opt.connections; i++) {
        events[i].index = i;
        event_start(&events[i]);
    }
    while (in_flight > 0)
        if (!pump())
            break;
    if (phase == MEASURING || phase == WARMING) { /* all connections were lost, or nothing came */
        int measured = phase == MEASURING;
        measure_end(now_ns());
        if (!measured)
            window_start = window_end;
    }
    if (opt.pid)
        process_usage(opt.pid, 1, &usage_after);
}

/* ---- the report ---- */

static void print_text(const char *s) {
    putchar('"');
    for (; *s; s++) {
        unsigned char ch = (unsigned char)*s;
        if (ch == '"' || ch == '\\')
            printf("\\%c", ch);
        else if (ch < 32 || ch > 126)
            printf("\\u%04x", ch);
        else
            putchar(ch);
    }
    putchar('"');
}

static void report(void) {
    double seconds = (double)(window_end - window_start) / 1e9;
    double driver = driver_end - driver_start;
    static const double percents[] = {50, 90, 99, 99.9};
    static const char *const names[] = {"p50", "p90", "p99", "p99.9"};

    printf("{\"plugin\": ");
    print_text(opt.plugin);
    printf(", \"event\": ");
    print_text(opt.event);
    printf(", \"connections\": %d, \"move_steps\": %s, \"seconds\": %.4f", opt.connections,
           opt.move ? "true" : "false", seconds);
    printf(", \"events\": %ld, \"failed_events\": %ld, \"events_per_second\": %.1f", done_events,
           failed_events, seconds > 0 ? (double)done_events / seconds : 0);
    printf(", \"round_trips\": %ld, \"round_trips_per_second\": %.1f", round_trips,
           seconds > 0 ? (double)round_trips / seconds : 0);
    printf(", \"latency_us\": {");
    for (int i = 0; i < 4; i++)
        printf("\"%s\": %.1f, ", names[i],
               (double)hist_percentile(&latency, percents[i]) / 1e3);
    printf("\"max\": %.1f}", (double)latency.max / 1e3);
    printf(", \"calls\": {");
    for (int i = 0, first = 1; i < function_count; i++)
        if (functions[i].calls) {
            printf("%s\"%s\": %ld", first ? "" : ", ", functions[i].name, functions[i].calls);
            first = 0;
        }
    printf("}, \"driver\": {\"cpu_seconds\": %.3f, \"cpu_share\": %.3f}", driver,
           seconds > 0 ? driver / seconds : 0);
    if (opt.pid) {
        double user = usage_end.user - usage_start.user;
        double system = usage_end.system - usage_start.system;
        printf(", \"server\": {\"pid\": %ld, \"processes\": %d, \"cpu_user_seconds\": %.2f, "
               "\"cpu_system_seconds\": %.2f, \"cpu_us_per_event\": %.2f",
               opt.pid, usage_after.processes, user, system,
               done_events ? (user + system) * 1e6 / (double)done_events : 0);
        printf(", \"rss_kb\": {\"before\": %ld, \"after\": %ld, \"peak\": %ld}",
               usage_before.rss_kb, usage_after.rss_kb, usage_after.peak_kb);
        printf(", \"pss_kb\": {\"before\": %ld, \"after\": %ld}", usage_before.pss_kb,
               usage_after.pss_kb);
        printf(", \"marks\": [");
        for (int i = 0; i < marks_seen_count; i++)
            printf("%s{\"events\": %ld, \"rss_kb\": %ld, \"pss_kb\": %ld}", i ? ", " : "",
                   marks_seen[i].events, marks_seen[i].rss_kb, marks_seen[i].pss_kb);
        printf("]}");
    }
    printf(", \"errors\": {");
    for (int i = 0; i < error_kinds; i++) {
        if (i)
            printf(", ");
        print_text(errors[i].name);
        printf(": %ld", errors[i].count);
    }
    printf("}}\n");
}

/* ---- the command line ---- */

static void usage(const char *problem) {
    fprintf(stderr, "load: %s\n%s", problem, HELP);
    exit(2);
}

static double number(const char *name, const char *text, double least) {
    char *end, problem[120];
    double v = strtod(text, &end);
    if (*text && !*end && v >= least)
        return v;
    snprintf(problem, sizeof problem, "--%s wants a number from %g, not '%.40s'", name, least,
             text);
    usage(problem);
    return 0;
}

int main(int argc, char **argv) {
    enum { SOCKET = 1, PLUGIN, CONFIG, EVENT, CONNECTIONS, SECONDS, EVENTS, WARMUP, MOVE, PID,
           RSS_AT, HEADERS, BODY, LOG_SIZE, WAIT, TIMEOUT, HELPING };
    static const struct option options[] = {
        {"socket", 1, 0, SOCKET}, {"plugin", 1, 0, PLUGIN}, {"config", 1, 0, CONFIG},
        {"event", 1, 0, EVENT}, {"connections", 1, 0, CONNECTIONS}, {"seconds", 1, 0, SECONDS},
        {"events", 1, 0, EVENTS}, {"warmup", 1, 0, WARMUP}, {"move-steps", 0, 0, MOVE},
        {"pid", 1, 0, PID}, {"rss-at", 1, 0, RSS_AT}, {"headers", 1, 0, HEADERS},
        {"body", 1, 0, BODY}, {"log-size", 1, 0, LOG_SIZE}, {"wait", 1, 0, WAIT},
        {"timeout", 1, 0, TIMEOUT}, {"help", 0, 0, HELPING}, {0, 0, 0, 0},
    };
    int o, index = 0;
    while ((o = getopt_long(argc, argv, "", options, &index)) != -1) {
        const char *name = options[index].name;
        switch (o) {
        case SOCKET: opt.socket = optarg; break;
        case PLUGIN: opt.plugin = optarg; break;
        case CONFIG: opt.config = optarg; break;
        case EVENT: opt.event = optarg; break;
        case CONNECTIONS: opt.connections = (int)number(name, optarg, 1); break;
        case SECONDS: opt.seconds = number(name, optarg, 0.001); break;
        case EVENTS: opt.events = (long)number(name, optarg, 1); break;
        case WARMUP: opt.warmup = number(name, optarg, 0); break;
        case MOVE: opt.move = 1; break;
        case PID: opt.pid = (long)number(name, optarg, 1); break;
        case RSS_AT:
            for (char *part = strtok(optarg, ","); part; part = strtok(NULL, ",")) {
                if (opt.mark_count == (int)(sizeof opt.marks / sizeof *opt.marks))
                    usage("--rss-at: too many numbers");
                long mark = (long)number(name, part, 1);
                if (opt.mark_count && mark <= opt.marks[opt.mark_count - 1])
                    usage("--rss-at: the numbers must rise");
                opt.marks[opt.mark_count++] = mark;
            }
            break;
        case HEADERS: opt.headers = (int)number(name, optarg, 0); break;
        case BODY: opt.body = (long)number(name, optarg, 0); break;
        case LOG_SIZE: opt.log_size = (long)number(name, optarg, 64); break;
        case WAIT: opt.wait = number(name, optarg, 0); break;
        case TIMEOUT: opt.timeout = number(name, optarg, 0.1); break;
        case HELPING: fputs(HELP, stdout); return 0;
        default: usage("unknown option or missing value");
        }
    }
    if (optind < argc)
        usage("unexpected argument");
    if (!opt.socket)
        usage("--socket is missing");
    if (opt.mark_count && !opt.pid)
        usage("--rss-at needs --pid");

    functions_prepare();
    connection_count = opt.connections + (opt.move ? 1 : 0);
    connections = calloc((size_t)connection_count, sizeof *connections);
    events = calloc((size_t)opt.connections, sizeof *events);
    idle = calloc((size_t)connection_count, sizeof *idle);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (!connections || !events || !idle || poller < 0) {
        perror("load");
        return 1;
    }
    for (int i = 0; i < connection_count; i++)
        connections[i].fd = -1;

    run();
    if (!error_total && !done_events)
        error_add("no event was completed");
    report();
    return error_total ? 1 : 0;
}
