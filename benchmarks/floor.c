/* The floor: answers the events of a workload with bytes prepared beforehand. It runs no plugin and
 * keeps no more than how far each event has come, so what a driver measures against it is what
 * sockets and system calls cost. One thread, epoll.
 *
 * Over ProtoBuf it asks for as much in one write as the workload allows: only a function whose
 * result a plugin would look at is waited for.
 *
 * usage: floor SOCKET [msgpack|protobuf] [WORKLOAD]     (ends on SIGTERM)
 */
#define _GNU_SOURCE
#include "msgpack.h"
#include "protobuf.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MOST_CALLS 8
#define BODY 65536

/* What the plugin of each workload asks of Kong. */
enum arguments { NONE, TEXT, INTEGER, PAIR, CONSUMER, EXIT, BYTES };
struct call {
    const char *method;
    enum arguments kind;
    const char *first, *second;
    int wanted; /* the plugin goes on with the result */
};
static const struct workload {
    const char *name;
    struct call calls[MOST_CALLS];
} workloads[] = {
    {"empty", {{0}}},
    {"hello", {
        {"kong.request.get_header", TEXT, "host", NULL, 1},
        {"kong.response.set_header", PAIR, "x-hello-from-floor",
         "floor says hello to bench.example:8000", 0},
        {"kong.response.set_header", PAIR, "x-floor-pid", "12345", 0},
    }},
    {"headers", {
        {"kong.request.get_headers", INTEGER, NULL, NULL, 1},
        {"kong.response.set_header", PAIR, "x-copy-1", "value number 1 of the request", 0},
        {"kong.response.set_header", PAIR, "x-copy-2", "value number 2 of the request", 0},
        {"kong.response.set_header", PAIR, "x-copy-3", "value number 3 of the request", 0},
        {"kong.response.set_header", PAIR, "x-copy-4", "value number 4 of the request", 0},
        {"kong.response.set_header", PAIR, "x-copy-5", "value number 5 of the request", 0},
    }},
    {"auth", {
        {"kong.client.load_consumer", CONSUMER, "alice", NULL, 1},
        {"kong.response.exit", EXIT, "{\"message\":\"no entry for alice\"}", NULL, 1},
    }},
    {"log", {{"kong.log.serialize", NONE, NULL, NULL, 1}}},
    {"body", {
        {"kong.request.get_raw_body", NONE, NULL, NULL, 1},
        {"kong.service.request.set_raw_body", BYTES, NULL, NULL, 0},
    }},
    {"compute", {{"kong.response.set_header", PAIR, "x-sum", "1234567", 0}}},
};

static const struct workload *workload;
static int protobuf, call_count;
static struct buf calls[MOST_CALLS]; /* MsgPack: the map in Data; ProtoBuf: two frames */
static int wanted[MOST_CALLS];

static void prepare_msgpack(struct buf *b, const struct call *call, const char *body) {
    mp_map(b, 2);
    mp_str(b, "Method");
    mp_str(b, call->method);
    mp_str(b, "Args");
    switch (call->kind) {
    case NONE: mp_array(b, 0); break;
    case TEXT: mp_array(b, 1); mp_str(b, call->first); break;
    case INTEGER: mp_array(b, 1); mp_int(b, 100); break;
    case PAIR: mp_array(b, 2); mp_str(b, call->first); mp_str(b, call->second); break;
    case CONSUMER: mp_array(b, 2); mp_str(b, call->first); mp_bool(b, 1); break;
    case EXIT: mp_array(b, 2); mp_int(b, 403); mp_str(b, call->first); break;
    case BYTES: mp_array(b, 1); mp_bin(b, body, BODY); break;
    }
}

static void prepare_protobuf(struct buf *b, const struct call *call, const char *body) {
    struct buf message = {0}, value = {0};
    switch (call->kind) {
    case NONE: break;
    case TEXT: pb_str(&message, PB_V, call->first); break;
    case INTEGER: pb_int(&message, PB_V, 100); break;
    case PAIR:
        pb_str(&value, PB_VALUE_STRING, call->second);
        pb_str(&message, PB_K, call->first);
        pb_message(&message, PB_KV_VALUE, &value);
        break;
    case CONSUMER: pb_str(&message, 1, call->first); pb_int(&message, 2, 1); break;
    case EXIT: pb_int(&message, 1, 403); pb_str(&message, 2, call->first); break;
    case BYTES: pb_bytes(&message, PB_V, body, BODY); break;
    }
    pb_frame(b, call->method, strlen(call->method));
    pb_frame(b, message.data, message.len);
    free(message.data);
    free(value.data);
}

static void prepare(void) {
    char *body = calloc(1, BODY);
    if (!body)
        abort();
    for (; call_count < MOST_CALLS && workload->calls[call_count].method; call_count++) {
        const struct call *call = &workload->calls[call_count];
        wanted[call_count] = call->wanted;
        if (protobuf)
            prepare_protobuf(&calls[call_count], call, body);
        else
            prepare_msgpack(&calls[call_count], call, body);
    }
    free(body);
}

struct connection {
    int fd, writing;
    struct buf in, out;
    size_t sent;
    /* ProtoBuf: the event that the connection belongs to */
    int next_call, unanswered, in_event;
    int64_t sequence;
};

/* ---- MsgPack:1 ---- */

/* How many answers an event has had, by the low bits of its id; more events than this are never
 * in flight at once. */
#define EVENTS 65536u
static uint8_t progress[EVENTS];
static int64_t next_event, next_instance;

/* Reads one request and appends its answer; 0 when it is not what Kong would send. */
static int answer_msgpack(struct connection *c, struct mp m) {
    uint32_t n, entries;
    int64_t type, sequence, id = -1;
    const char *method, *key;
    size_t method_len, len;
    if (!mp_read_array(&m, &n) || n != 4 || !mp_read_int(&m, &type) ||
        !mp_read_int(&m, &sequence) || !mp_read_str(&m, &method, &method_len) ||
        !mp_read_array(&m, &n) || n != 1)
        return 0;
    mp_array(&c->out, 4);
    mp_int(&c->out, 1);
    mp_int(&c->out, sequence);
    if (text_is(method, method_len, "plugin.StartInstance")) {
        mp_nil(&c->out);
        mp_map(&c->out, 1);
        mp_str(&c->out, "Id");
        mp_int(&c->out, next_instance++);
        return 1;
    }
    if (text_is(method, method_len, "plugin.HandleEvent")) {
        id = next_event++;
        progress[id % EVENTS] = 0;
    } else if (method_len >= 11 && memcmp(method, "plugin.Step", 11) == 0) {
        if (!mp_read_map(&m, &entries))
            return 0;
        for (uint32_t i = 0; i < entries; i++) {
            if (!mp_read_str(&m, &key, &len))
                return 0;
            if (text_is(key, len, "EventId") ? !mp_read_int(&m, &id) : mp_skip(&m) != MP_OK)
                return 0;
        }
        if (id < 0)
            return 0;
    } else {
        mp_str(&c->out, "the floor knows no such method");
        mp_nil(&c->out);
        return 1;
    }
    int step = progress[id % EVENTS]++;
    mp_nil(&c->out);
    mp_map(&c->out, 2);
    mp_str(&c->out, "EventId");
    mp_int(&c->out, id);
    mp_str(&c->out, "Data");
    if (step < call_count)
        buf_put(&c->out, calls[step].data, calls[step].len);
    else
        mp_str(&c->out, "ret");
    return 1;
}

/* ---- ProtoBuf:1 ---- */

static void answer_return(struct connection *c, int instance) {
    struct buf message = {0}, status = {0};
    pb_int(&message, PB_SEQUENCE, c->sequence);
    if (instance) {
        pb_int(&status, PB_STATUS_ID, ++next_instance);
        pb_message(&message, PB_INSTANCE_STATUS, &status);
    }
    pb_frame(&c->out, message.data, message.len);
    free(message.data);
    free(status.data);
}

/* Asks for everything up to the next result that is wanted; at the end, says that all is done. */
static void ask(struct connection *c) {
    while (c->next_call < call_count) {
        int call = c->next_call++;
        buf_put(&c->out, calls[call].data, calls[call].len);
        c->unanswered++;
        if (wanted[call])
            return;
    }
    pb_frame(&c->out, NULL, 0);
    answer_return(c, 0);
    c->in_event = 0;
}

static int answer_protobuf(struct connection *c, const uint8_t *data, size_t size) {
    struct pb m = {data, data + size};
    struct pb_field f;
    uint32_t command = 0;
    if (c->unanswered) {
        if (--c->unanswered == 0 && c->in_event)
            ask(c);
        return 1;
    }
    while (pb_next(&m, &f) > 0) {
        if (f.number == PB_SEQUENCE)
            c->sequence = (int64_t)f.value;
        else
            command = f.number;
    }
    if (command == PB_START_INSTANCE) {
        answer_return(c, 1);
        return 1;
    }
    if (command != PB_HANDLE_EVENT)
        return 0;
    c->in_event = 1;
    c->next_call = 0;
    ask(c);
    return 1;
}

/* ---- connections ---- */

static int poller;

static int flush(struct connection *c) {
    while (c->sent < c->out.len) {
        ssize_t n = send(c->fd, c->out.data + c->sent, c->out.len - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN)
            return 0;
        if (n < 0)
            break;
        c->sent += (size_t)n;
    }
    int more = c->sent < c->out.len;
    if (!more)
        c->sent = c->out.len = 0;
    if (more != c->writing) {
        struct epoll_event e = {.events = EPOLLIN | (more ? EPOLLOUT : 0u), .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
        c->writing = more;
    }
    return 1;
}

static int serve(struct connection *c) {
    buf_reserve(&c->in, 16384);
    ssize_t got = recv(c->fd, c->in.data + c->in.len, c->in.cap - c->in.len, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return flush(c);
    if (got <= 0)
        return 0;
    c->in.len += (size_t)got;
    size_t done = 0;
    while (done < c->in.len) {
        const uint8_t *at = c->in.data + done, *end = c->in.data + c->in.len, *data;
        size_t size;
        if (protobuf) {
            struct pb m = {at, end};
            if (!pb_read_frame(&m, &data, &size))
                break;
            done = (size_t)(m.p - c->in.data);
            if (!answer_protobuf(c, data, size))
                return 0;
            continue;
        }
        struct mp m = {at, end}, whole = m;
        int r = mp_skip(&whole);
        if (r == MP_MORE)
            break;
        m.end = whole.p;
        if (r == MP_BAD || !answer_msgpack(c, m))
            return 0;
        done = (size_t)(whole.p - c->in.data);
    }
    memmove(c->in.data, c->in.data + done, c->in.len - done);
    c->in.len -= done;
    return flush(c);
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *name = argc > 3 ? argv[3] : "hello";
    protobuf = argc > 2 && strcmp(argv[2], "protobuf") == 0;
    for (size_t i = 0; i < sizeof workloads / sizeof *workloads; i++)
        if (strcmp(workloads[i].name, name) == 0)
            workload = &workloads[i];
    if (argc < 2 || argc > 4 || strlen(argv[1]) >= sizeof address.sun_path || !workload ||
        (argc > 2 && !protobuf && strcmp(argv[2], "msgpack"))) {
        fprintf(stderr, "usage: floor SOCKET [msgpack|protobuf] [WORKLOAD]\n");
        return 2;
    }
    strcpy(address.sun_path, argv[1]);
    unlink(argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, ready[512];
    if (listener < 0 || poller < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) ||
        listen(listener, 4096) || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e)) {
        perror("floor");
        return 1;
    }
    prepare();
    for (;;) {
        int n = epoll_wait(poller, ready, sizeof ready / sizeof *ready, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = ready[i].data.ptr;
            if (c) {
                if (!serve(c)) {
                    close(c->fd);
                    free(c->in.data);
                    free(c->out.data);
                    free(c);
                }
                continue;
            }
            int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
            if (fd < 0)
                continue;
            c = calloc(1, sizeof *c);
            if (!c)
                abort();
            c->fd = fd;
            e.events = EPOLLIN;
            e.data.ptr = c;
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
        }
    }
}
