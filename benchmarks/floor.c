/* The floor: answers the events of the hello example over MsgPack:1 with bytes prepared
 * beforehand. It runs no plugin and keeps no more than how far each event has come, so what a
 * driver measures against it is what sockets and system calls cost. One thread, epoll.
 *
 * usage: floor SOCKET     (ends on SIGTERM)
 */
#define _GNU_SOURCE
#include "msgpack.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct connection {
    int fd;
    struct buf in, out;
};

/* How many answers an event has had, by the low bits of its id; more events than this are never
 * in flight at once. */
#define EVENTS 65536u
static uint8_t progress[EVENTS];
static int64_t next_event;

static struct buf calls[3];

static void prepare(void) {
    static const char *const args[3][3] = {
        {"kong.request.get_header", "host", NULL},
        {"kong.response.set_header", "x-hello-from-floor", "floor says hello to bench.example:8000"},
        {"kong.response.set_header", "x-floor-pid", "12345"},
    };
    for (int i = 0; i < 3; i++) {
        unsigned n = args[i][2] ? 2 : 1;
        mp_map(&calls[i], 2);
        mp_str(&calls[i], "Method");
        mp_str(&calls[i], args[i][0]);
        mp_str(&calls[i], "Args");
        mp_array(&calls[i], n);
        for (unsigned k = 1; k <= n; k++)
            mp_str(&calls[i], args[i][k]);
    }
}

/* Reads one request and appends its answer; 0 when it is not what Kong would send. */
static int answer(struct connection *c, struct mp m) {
    uint32_t n, entries;
    int64_t type, msgid, id = -1;
    const char *method, *key;
    size_t method_len, len;
    if (!mp_read_array(&m, &n) || n != 4 || !mp_read_int(&m, &type) || !mp_read_int(&m, &msgid) ||
        !mp_read_str(&m, &method, &method_len) || !mp_read_array(&m, &n) || n != 1)
        return 0;
    mp_array(&c->out, 4);
    mp_int(&c->out, 1);
    mp_int(&c->out, msgid);
    if (text_is(method, method_len, "plugin.StartInstance")) {
        mp_nil(&c->out);
        mp_map(&c->out, 1);
        mp_str(&c->out, "Id");
        mp_int(&c->out, 0);
        return 1;
    }
    if (text_is(method, method_len, "plugin.HandleEvent")) {
        id = next_event++;
        progress[id % EVENTS] = 0;
    } else if (text_is(method, method_len, "plugin.Step")) {
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
    unsigned step = progress[id % EVENTS]++;
    mp_nil(&c->out);
    mp_map(&c->out, 2);
    mp_str(&c->out, "EventId");
    mp_int(&c->out, id);
    mp_str(&c->out, "Data");
    if (step < 3)
        buf_put(&c->out, calls[step].data, calls[step].len);
    else
        mp_str(&c->out, "ret");
    return 1;
}

static int serve(struct connection *c) {
    buf_reserve(&c->in, 16384);
    ssize_t got = recv(c->fd, c->in.data + c->in.len, c->in.cap - c->in.len, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 1;
    if (got <= 0)
        return 0;
    c->in.len += (size_t)got;
    size_t done = 0;
    while (done < c->in.len) {
        struct mp m = {c->in.data + done, c->in.data + c->in.len}, whole = m;
        int r = mp_skip(&whole);
        if (r == MP_MORE)
            break;
        m.end = whole.p;
        if (r == MP_BAD || !answer(c, m))
            return 0;
        done = (size_t)(whole.p - c->in.data);
    }
    memmove(c->in.data, c->in.data + done, c->in.len - done);
    c->in.len -= done;
    /* Answers are small and the driver reads them: a full socket buffer means a broken driver. */
    if (c->out.len && send(c->fd, c->out.data, c->out.len, MSG_NOSIGNAL) != (ssize_t)c->out.len)
        return 0;
    c->out.len = 0;
    return 1;
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: floor SOCKET\n");
        return 2;
    }
    strcpy(address.sun_path, argv[1]);
    unlink(argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int poller = epoll_create1(EPOLL_CLOEXEC);
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
            e.data.ptr = c;
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
        }
    }
}
