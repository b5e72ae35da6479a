/* A load driver for plugin servers: the other side of the wire, as Kong is.
 *
 * It opens N connections, starts one instance of a plugin, and then keeps one event in flight per
 * connection: the event, an answer to each PDK call that the server makes, until the server says
 * that the handler has returned (or makes a call that Kong never answers). Then the next event.
 * One thread, epoll.
 *
 * MsgPack:1: each step is a request of its own, sent at once. ProtoBuf:1: the connection belongs to
 * its event until that is over; calls that come in one piece are answered one by one, in their
 * order; a frame's length and its bytes are sent one after the other; after a call that Kong never
 * answers the connection is closed and another one opened. All that is what Kong does.
 *
 * What it prints is one JSON object; `--help` lists the options. Exit status: 0 fine, 1 errors
 * were seen (they are in the JSON) or nothing could be measured, 2 usage.
 */
#define _GNU_SOURCE
#include "histogram.h"
#include "msgpack.h"
#include "pdk.h"
#include "process.h"
#include "protobuf.h"

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
    int protobuf;
    int connections, move, hold;
    int instances;
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
    .instances = 1,
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
    "  --protocol NAME     msgpack or protobuf (msgpack)\n"
    "  --plugin NAME       plugin to start instances of (hello)\n"
    "  --config JSON       its configuration, as Kong's datastore has it\n"
    "  --instances N       how many to start, each with a __seq__ of its own; events go to them\n"
    "                      in turn (1)\n"
    "  --event NAME        phase of the events (access)\n"
    "  --connections N     connections, and events in flight (16)\n"
    "  --seconds S         how long to measure (5)\n"
    "  --events N          measure N events instead, however long they take\n"
    "  --warmup S          seconds of load before the measurement (0.5)\n"
    "  --move-steps        no request of an event on the connection of the one before it:\n"
    "                      one connection more is opened, the one idle longest is used;\n"
    "                      over ProtoBuf an event's steps cannot move\n"
    "  --hold              answer nothing once events have begun: when each connection's event\n"
    "                      has made its first PDK call, read the memory, and end\n"
    "  --pid PID           report CPU time and memory of this process and all below it\n"
    "  --rss-at N[,N...]   with --pid: memory when so many events are done\n"
    "  --headers N         headers that get_headers gives (20)\n"
    "  --body BYTES        size of the request's body (65536)\n"
    "  --log-size BYTES    size of what kong.log.serialize gives (2048)\n"
    "  --answers           print what each PDK function gives, for both protocols, and end\n"
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

/* ---- state ---- */

struct event {
    int64_t id;
    uint64_t started;
    int index; /* the connection it lives on, unless steps move */
};

/* What the next frame is, over ProtoBuf. */
enum expected { METHOD, ARGUMENTS, RETURN };

struct connection {
    int fd; /* -1: closed */
    struct event *event;
    int64_t sequence;
    int starting; /* carries StartInstance */
    int writing;  /* epoll watches for EPOLLOUT too */
    enum expected expected;
    struct function *asked; /* over ProtoBuf, while ARGUMENTS are expected; NULL: not known */
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
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static struct buf scratch, scratch_inner;

static enum phase phase = STARTING;
static int64_t *instances;
static int instance_count, next_instance;
static uint64_t window_start, window_end, deadline, latency_since, progress, first_event;
static uint64_t bytes_received;
static long done_events, failed_events, round_trips, in_flight, held;
static struct histogram latency;
static struct usage usage_before, usage_instances, usage_start, usage_end, usage_after;
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
    bytes_received = 0;
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

/* Opens a connection; 0 with errno set when that fails. */
static int connection_open(struct connection *c) {
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        return 0;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        int why = errno;
        close(c->fd);
        c->fd = -1;
        errno = why;
        return 0;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
    c->writing = 0;
    c->in.len = c->in_done = c->out.len = c->out_done = 0;
    return 1;
}

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
    if (c->fd < 0)
        return;
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

/* ---- what is sent ---- */

static void send_request_head(struct connection *c, const char *method) {
    mp_array(&c->out, 4);
    mp_int(&c->out, 0);
    mp_int(&c->out, ++c->sequence);
    mp_str(&c->out, method);
    mp_array(&c->out, 1);
}

/* As Kong does: the length in one send, the bytes in another, nothing for no bytes. */
static void send_frame(struct connection *c, const struct buf *message) {
    uint32_t length = (uint32_t)message->len;
    buf_put(&c->out, &length, sizeof length);
    connection_flush(c);
    if (length) {
        buf_put(&c->out, message->data, length);
        connection_flush(c);
    }
}

static void send_call(struct connection *c, unsigned field, struct buf *command,
                      enum expected expected) {
    scratch.len = 0;
    pb_int(&scratch, PB_SEQUENCE, ++c->sequence);
    pb_message(&scratch, field, command);
    c->expected = expected;
    send_frame(c, &scratch);
}

static void send_start_instance(struct connection *c, const char *config) {
    c->starting = 1;
    if (opt.protobuf) {
        pb_str(&scratch_inner, PB_START_NAME, opt.plugin);
        pb_str(&scratch_inner, PB_START_CONFIG, config);
        send_call(c, PB_START_INSTANCE, &scratch_inner, RETURN);
        return;
    }
    send_request_head(c, "plugin.StartInstance");
    mp_map(&c->out, 2);
    mp_str(&c->out, "Name");
    mp_str(&c->out, opt.plugin);
    mp_str(&c->out, "Config");
    mp_str(&c->out, config);
    connection_flush(c);
}

static void event_start(struct event *e) {
    struct connection *c = connection_for(e);
    if (!c)
        return;
    int64_t instance = instances[next_instance];
    next_instance = (next_instance + 1) % instance_count;
    c->event = e;
    in_flight++;
    e->started = now_ns();
    if (opt.protobuf) {
        pb_int(&scratch_inner, PB_EVENT_INSTANCE, instance);
        pb_str(&scratch_inner, PB_EVENT_NAME, opt.event);
        send_call(c, PB_HANDLE_EVENT, &scratch_inner, METHOD);
        return;
    }
    send_request_head(c, "plugin.HandleEvent");
    mp_map(&c->out, 2);
    mp_str(&c->out, "InstanceId");
    mp_int(&c->out, instance);
    mp_str(&c->out, "EventName");
    mp_str(&c->out, opt.event);
    connection_flush(c);
}

static void event_step(struct event *e, int64_t id, const char *method, const struct buf *data) {
    struct connection *c = connection_for(e);
    if (!c) {
        in_flight--;
        return;
    }
    send_request_head(c, method);
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
    if (!first_event && !failed)
        first_event = now;
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
}

/* ends one event and begins the next one on its connection */
static void event_next(struct event *e, int failed) {
    event_end(e, failed);
    if (phase == WARMING || phase == MEASURING)
        event_start(e);
}

/* ---- MsgPack:1: answers ---- */

/* A server's text with numbers, such as an event's id, replaced: each would be a kind of error. */
static void error_add_text(const char *s, size_t len) {
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
}

static const char *read_answer(struct connection *c, struct mp *m) {
    uint32_t n, entries;
    int64_t type, sequence, id = -1;
    const char *s;
    size_t len;
    struct mp data = {NULL, NULL};

    if (!mp_read_array(m, &n) || n < 3 || !mp_read_int(m, &type))
        return "malformed message";
    if (type == 2)
        return NULL; /* a notification, such as serverPid */
    if (type != 1 || n != 4 || !mp_read_int(m, &sequence))
        return "malformed answer";
    struct event *e = c->event;
    if ((!e && !c->starting) || sequence != c->sequence)
        return "answer to nothing that was asked";
    if (phase == MEASURING)
        round_trips++;

    if (!mp_read_nil(m)) {
        if (mp_read_str(m, &s, &len))
            error_add_text(s, len);
        else
            error_add("RPC error that is not text");
        if (c->starting) {
            phase = ENDED;
            return NULL;
        }
        connection_idle(c);
        event_next(e, 1);
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
        instances[instance_count++] = id;
        c->starting = 0;
        return NULL;
    }
    if (!data.p)
        return "answer without Data";

    if (mp_read_str(&data, &s, &len)) {
        if (!text_is(s, len, "ret"))
            return "Data that is neither \"ret\" nor a call";
        connection_idle(c);
        event_next(e, 0);
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
    if (opt.hold) {
        held++;
        return NULL;
    }
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
        event_next(e, 0);
    else
        event_step(e, id, f->step, &f->msgpack);
    return NULL;
}

/* ---- ProtoBuf:1: frames ---- */

/* Reads an RpcReturn; `instance` is set to the id of an instance that was started. */
static int read_return(struct connection *c, const uint8_t *data, size_t size, int64_t *instance) {
    struct pb m = {data, data + size};
    struct pb_field f, inner;
    int64_t sequence = 0;
    int more;
    while ((more = pb_next(&m, &f)) > 0) {
        if (f.number == PB_SEQUENCE && f.wire == PB_VARINT) {
            sequence = (int64_t)f.value;
        } else if (f.number == PB_INSTANCE_STATUS && f.wire == PB_BYTES) {
            struct pb status = {f.data, f.data + f.size};
            *instance = 0; /* proto3 leaves a zero out */
            while ((more = pb_next(&status, &inner)) > 0)
                if (inner.number == PB_STATUS_ID && inner.wire == PB_VARINT)
                    *instance = (int64_t)inner.value;
            if (more < 0)
                return 0;
        }
    }
    return more == 0 && sequence == c->sequence;
}

static const char *read_frame(struct connection *c, const uint8_t *data, size_t size) {
    struct event *e = c->event;
    int64_t instance = -1;
    if (!e && !c->starting)
        return "a frame that nothing asked for";
    switch (c->expected) {
    case METHOD:
        if (!size) {
            c->expected = RETURN;
            return NULL;
        }
        c->expected = ARGUMENTS;
        c->asked = function_find((const char *)data, size);
        if (!c->asked)
            error_add("unexpected method %.*s", (int)(size > 100 ? 100 : size),
                      (const char *)data);
        return NULL;
    case ARGUMENTS:
        if (opt.hold) {
            held++;
            return NULL;
        }
        if (phase == MEASURING)
            round_trips++;
        c->expected = METHOD;
        if (c->asked && !c->asked->terminal) {
            c->asked->calls++;
            send_frame(c, &c->asked->protobuf);
            return NULL;
        }
        /* Kong closes the connection, and opens another one for the next event */
        if (c->asked)
            c->asked->calls++;
        connection_idle(c);
        connection_close(c, NULL);
        event_end(e, !c->asked);
        if (phase == WARMING || phase == MEASURING) {
            if (connection_open(c))
                event_start(e);
            else
                error_add("cannot connect: %s", strerror(errno));
        }
        return NULL;
    case RETURN:
        if (!read_return(c, data, size, &instance))
            return "an answer that is no RpcReturn to what was asked";
        if (phase == MEASURING)
            round_trips++;
        if (c->starting) {
            if (instance < 0)
                return "StartInstance gave no instance";
            instances[instance_count++] = instance;
            c->starting = 0;
            return NULL;
        }
        connection_idle(c);
        event_next(e, 0);
        return NULL;
    }
    return NULL;
}

/* ---- the loop ---- */

/* Takes one message from the bytes of a connection; 0 when there is none whole. */
static int take_message(struct connection *c, const char **problem) {
    const uint8_t *at = c->in.data + c->in_done, *end = c->in.data + c->in.len;
    const uint8_t *data;
    size_t size;
    if (opt.protobuf) {
        struct pb m = {at, end};
        if (!pb_read_frame(&m, &data, &size))
            return 0;
        c->in_done = (size_t)(m.p - c->in.data);
        *problem = read_frame(c, data, size);
        return 1;
    }
    struct mp m = {at, end}, whole = m;
    int r = mp_skip(&whole);
    if (r == MP_MORE)
        return 0;
    m.end = whole.p;
    c->in_done = (size_t)(whole.p - c->in.data);
    *problem = r == MP_BAD ? "bytes that are no MessagePack" : read_answer(c, &m);
    return 1;
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
    bytes_received += (uint64_t)n;
    progress = now_ns();
    const char *problem = NULL;
    while (c->fd >= 0 && c->in_done < c->in.len && take_message(c, &problem))
        if (problem) {
            connection_close(c, problem);
            return;
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
    if (strlen(opt.socket) >= sizeof address.sun_path) {
        error_add("the socket's path is too long");
        return 0;
    }
    strcpy(address.sun_path, opt.socket);
    uint64_t until = now_ns() + to_ns(opt.wait);
    for (int i = 0; i < connection_count; i++) {
        while (!connection_open(&connections[i])) {
            if (now_ns() > until) {
                error_add("cannot connect: %s", strerror(errno));
                return 0;
            }
            usleep(500);
        }
        if (opt.move)
            connection_idle(&connections[i]);
    }
    return 1;
}

/* Starts the instances one after the other, on the first connection. */
static int start_instances(void) {
    static const char KEY[] = "\"__seq__\":";
    const char *seq = strstr(opt.config, KEY);
    char *config = malloc(strlen(opt.config) + 32);
    if (!config)
        abort();
    for (int i = 0; i < opt.instances; i++) {
        strcpy(config, opt.config);
        if (seq) {
            size_t head = (size_t)(seq - opt.config) + sizeof KEY - 1;
            const char *rest = opt.config + head;
            while (*rest >= '0' && *rest <= '9')
                rest++;
            sprintf(config + head, "%d%s", i + 1, rest);
        }
        send_start_instance(&connections[0], config);
        while (phase == STARTING && instance_count == i)
            if (!pump()) {
                free(config);
                return 0;
            }
        if (phase != STARTING)
            break;
    }
    free(config);
    return instance_count == opt.instances;
}

static void run(void) {
    if (!connect_all())
        return;
    if (opt.pid && !process_usage(opt.pid, 1, &usage_before)) {
        error_add("no process %ld", opt.pid);
        return;
    }
    progress = now_ns();
    if (!start_instances())
        return;
    if (opt.pid)
        process_usage(opt.pid, 1, &usage_instances);

    phase = WARMING;
    deadline = now_ns() + to_ns(opt.warmup);
    if (opt.warmup <= 0)
        measure_begin();
    progress = now_ns();
    for (int i = 0; i < opt.connections; i++) {
        events[i].index = i;
        event_start(&events[i]);
    }
    while (in_flight > 0) {
        if (!pump())
            break;
        if (opt.hold && held >= in_flight)
            break;
    }
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
    printf(", \"protocol\": \"%s\"", opt.protobuf ? "ProtoBuf:1" : "MsgPack:1");
    printf(", \"connections\": %d, \"move_steps\": %s, \"seconds\": %.4f", opt.connections,
           opt.move ? "true" : "false", seconds);
    printf(", \"instances\": %d, \"held_events\": %ld, \"first_event_at\": %.6f", instance_count,
           held, (double)first_event / 1e9);
    printf(", \"bytes_per_event\": %.1f",
           done_events ? (double)bytes_received / (double)done_events : 0);
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
        printf(", \"rss_kb\": {\"before\": %ld, \"instances\": %ld, \"after\": %ld, \"peak\": %ld}",
               usage_before.rss_kb, usage_instances.rss_kb, usage_after.rss_kb,
               usage_after.peak_kb);
        printf(", \"pss_kb\": {\"before\": %ld, \"instances\": %ld, \"after\": %ld}",
               usage_before.pss_kb, usage_instances.pss_kb, usage_after.pss_kb);
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

static void print_hex(const struct buf *b) {
    putchar('"');
    for (size_t i = 0; i < b->len; i++)
        printf("%02x", b->data[i]);
    putchar('"');
}

/* {"kong.…": {"step": method or null (Kong never answers), "msgpack": hex, "protobuf": hex}} */
static void print_answers(void) {
    for (int i = 0; i < function_count; i++) {
        printf("%s\"%s\": {\"step\": ", i ? ",\n " : "{", functions[i].name);
        if (functions[i].step)
            print_text(functions[i].step);
        else
            fputs("null", stdout);
        fputs(", \"msgpack\": ", stdout);
        print_hex(&functions[i].msgpack);
        fputs(", \"protobuf\": ", stdout);
        print_hex(&functions[i].protobuf);
        putchar('}');
    }
    fputs("}\n", stdout);
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
    enum { SOCKET = 1, PROTOCOL, INSTANCES, HOLD, PLUGIN, CONFIG, EVENT, CONNECTIONS, SECONDS, EVENTS, WARMUP, MOVE, PID,
           RSS_AT, HEADERS, BODY, LOG_SIZE, WAIT, TIMEOUT, ANSWERS, HELPING };
    int answers_only = 0;
    static const struct option options[] = {
        {"socket", 1, 0, SOCKET}, {"protocol", 1, 0, PROTOCOL}, {"instances", 1, 0, INSTANCES},
        {"hold", 0, 0, HOLD}, {"plugin", 1, 0, PLUGIN}, {"config", 1, 0, CONFIG},
        {"event", 1, 0, EVENT}, {"connections", 1, 0, CONNECTIONS}, {"seconds", 1, 0, SECONDS},
        {"events", 1, 0, EVENTS}, {"warmup", 1, 0, WARMUP}, {"move-steps", 0, 0, MOVE},
        {"pid", 1, 0, PID}, {"rss-at", 1, 0, RSS_AT}, {"headers", 1, 0, HEADERS},
        {"body", 1, 0, BODY}, {"log-size", 1, 0, LOG_SIZE}, {"wait", 1, 0, WAIT},
        {"timeout", 1, 0, TIMEOUT}, {"answers", 0, 0, ANSWERS},
        {"help", 0, 0, HELPING}, {0, 0, 0, 0},
    };
    int o, index = 0;
    while ((o = getopt_long(argc, argv, "", options, &index)) != -1) {
        const char *name = options[index].name;
        switch (o) {
        case SOCKET: opt.socket = optarg; break;
        case PROTOCOL:
            opt.protobuf = strcmp(optarg, "protobuf") == 0;
            if (!opt.protobuf && strcmp(optarg, "msgpack"))
                usage("--protocol wants msgpack or protobuf");
            break;
        case INSTANCES: opt.instances = (int)number(name, optarg, 1); break;
        case HOLD: opt.hold = 1; break;
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
        case LOG_SIZE: opt.log_size = (long)number(name, optarg, 512); break;
        case WAIT: opt.wait = number(name, optarg, 0); break;
        case TIMEOUT: opt.timeout = number(name, optarg, 0.1); break;
        case ANSWERS: answers_only = 1; break;
        case HELPING: fputs(HELP, stdout); return 0;
        default: usage("unknown option or missing value");
        }
    }
    if (optind < argc)
        usage("unexpected argument");
    if (!opt.socket && !answers_only)
        usage("--socket is missing");
    if (opt.mark_count && !opt.pid)
        usage("--rss-at needs --pid");
    if (opt.move && opt.protobuf)
        usage("--move-steps is of MsgPack only: over ProtoBuf the connection is the event's");

    functions_prepare(opt.headers, (size_t)opt.body, (size_t)opt.log_size);
    if (answers_only) {
        print_answers();
        return 0;
    }
    connection_count = opt.connections + (opt.move ? 1 : 0);
    connections = calloc((size_t)connection_count, sizeof *connections);
    events = calloc((size_t)opt.connections, sizeof *events);
    idle = calloc((size_t)connection_count, sizeof *idle);
    instances = calloc((size_t)opt.instances, sizeof *instances);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (!connections || !events || !idle || !instances || poller < 0) {
        perror("load");
        return 1;
    }
    for (int i = 0; i < connection_count; i++)
        connections[i].fd = -1;

    run();
    if (!error_total && !done_events && !opt.hold)
        error_add("no event was completed");
    report();
    return error_total ? 1 : 0;
}
