/* A native plugin that does what the request's header x-do says: for test_native_plugins. */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include <kongps/plugin.h>

/* Read by the tests from outside. */
KONGPS_EXPORT int probe_instances;
KONGPS_EXPORT int probe_running;
KONGPS_EXPORT int probe_returned;
KONGPS_EXPORT int probe_after_end[4];
KONGPS_EXPORT int probe_from_thread;
KONGPS_EXPORT int probe_late;
int probe_instances, probe_running, probe_returned, probe_after_end[4], probe_from_thread;
int probe_late;

static kongps_kong *old_handle;

static int new_probe(const char *config, size_t size, void **instance, char *error)
{
    char wish[64];
    if (strlen(config) != size) {
        snprintf(error, KONGPS_ERROR_SIZE, "the size is wrong");
        return KONGPS_FAILED;
    }
    if (kongps_config_string(config, "refuse", wish, sizeof wish) >= 0) {
        if (strcmp(wish, "silently") != 0) {
            snprintf(error, KONGPS_ERROR_SIZE, "%s", wish);
        }
        return -7;
    }
    *instance = malloc(1);
    probe_instances++;
    return KONGPS_OK;
}

static void close_probe(void *instance)
{
    free(instance);
    probe_instances--;
}

static void *on_thread(void *kong)
{
    probe_from_thread = kongps_log(kong, "from a thread");
    return NULL;
}

/* Goes down some frames and asks at each; the numbers on the stack must still be there after. */
static int deep(kongps_kong *kong, unsigned seed, int depth, unsigned *sum)
{
    unsigned own[40];
    kongps_value value;
    int i, code;
    for (i = 0; i < 40; i++) {
        own[i] = seed * 2654435761u + (unsigned)(i * depth);
    }
    code = kongps_get_shared(kong, "n", &value);
    if (code != KONGPS_OK) {
        return code;
    }
    if (depth > 0) {
        code = deep(kong, seed, depth - 1, sum);
    }
    for (i = 0; i < 40; i++) {
        if (own[i] != seed * 2654435761u + (unsigned)(i * depth)) {
            return kongps_fail(kong, "the stack has changed");
        }
    }
    if (code == KONGPS_OK) {
        *sum += (unsigned)strtoul(value.as.text, NULL, 10);
    }
    return code;
}

static int act(kongps_kong *kong)
{
    kongps_value value, key, item;
    char wish[32];
    char text[256];
    int code = kongps_get_header(kong, "x-do", &value);
    if (code != KONGPS_OK) {
        return code;
    }
    snprintf(wish, sizeof wish, "%s", value.type == KONGPS_STRING ? value.as.text : "");
    if (strcmp(wish, "exit") == 0) {
        int n;
        code = kongps_exit_json(kong, 403, "{\"message\": \"no\", \"list\": [1, true, null]}");
        for (n = 0; n < 4; n++) {
            probe_after_end[n] = kongps_set_header(kong, "x-after", "end");
        }
        return code;
    }
    if (strcmp(wish, "exit and forget") == 0) {
        kongps_exit(kong, 204, NULL);
        return KONGPS_OK;
    }
    if (strcmp(wish, "fail") == 0) {
        return kongps_fail(kong, "I don't want to");
    }
    if (strcmp(wish, "code") == 0) {
        return 42;
    }
    if (strcmp(wish, "wrong") == 0) { /* a function of another phase: refused before it is sent */
        return kongps_call_0(kong, "kong.response.get_status", NULL);
    }
    if (strcmp(wish, "recover") == 0) {
        value = kongps_json("{broken");
        code = kongps_call(kong, "kong.ctx.shared.set", &value, 1, NULL);
        snprintf(text, sizeof text, "%d %s", code, kongps_error(kong));
        return kongps_set_header(kong, "x-error", text);
    }
    if (strcmp(wish, "values") == 0) {
        kongps_value in[2];
        static const char odd[] = "a\0b\xff";
        in[0] = kongps_string("k");
        in[1] = kongps_text(odd, 4);
        code = kongps_call(kong, "kong.ctx.shared.set", in, 2, NULL);
        if (code == KONGPS_OK) {
            code = kongps_get_shared(kong, "k", &value);
        }
        if (code != KONGPS_OK || value.type != KONGPS_STRING || value.size != 4
            || memcmp(value.as.text, odd, 5) != 0) {
            return kongps_fail(kong, "the text has changed");
        }
        in[1] = kongps_json("{\"a\": [1, 2.5, false, null, \"t\"], \"b\": -9007199254740991}");
        kongps_call(kong, "kong.ctx.shared.set", in, 2, NULL);
        code = kongps_get_shared(kong, "k", &value);
        if (code != KONGPS_OK || value.type != KONGPS_TABLE || value.size != 2) {
            return kongps_fail(kong, "no table");
        }
        kongps_field(kong, &value, "b", &item);
        if (item.type != KONGPS_INTEGER || item.as.integer != INT64_C(-9007199254740991)) {
            return kongps_fail(kong, "no integer");
        }
        if (kongps_field(kong, &value, "c", &item) != KONGPS_OK || item.type != KONGPS_NIL) {
            return kongps_fail(kong, "no nil");
        }
        kongps_field(kong, &value, "a", &item);
        if (kongps_entry(kong, &item, 1, &key, &value) != KONGPS_OK || key.as.integer != 2
            || value.type != KONGPS_NUMBER || value.as.number != 2.5) {
            return kongps_fail(kong, "no number");
        }
        if (kongps_entry(kong, &item, 5, &key, &value) != KONGPS_ERROR
            || kongps_entry(kong, &key, 0, &key, &value) != KONGPS_ERROR) {
            return kongps_fail(kong, "an entry too many");
        }
        kongps_call(kong, "kong.ctx.shared.set", in, 2, NULL);
        in[1] = item; /* a table that Kong gave goes back as it is */
        kongps_call(kong, "kong.ctx.shared.set", in, 2, NULL);
        kongps_get_shared(kong, "k", &value);
        if (kongps_to_json(kong, &value, &item) != KONGPS_OK) {
            return KONGPS_ERROR;
        }
        return kongps_set_header(kong, "x-json", item.as.text);
    }
    if (strcmp(wish, "headers") == 0) {
        uint64_t n;
        value = kongps_integer(50);
        code = kongps_call(kong, "kong.request.get_headers", &value, 1, &value);
        text[0] = 0;
        for (n = 0; code == KONGPS_OK && n < value.size; n++) {
            kongps_entry(kong, &value, n, &key, &item);
            if (key.as.text[0] == 'x') {
                strncat(text, key.as.text, sizeof text - strlen(text) - 1);
                strncat(text, ";", sizeof text - strlen(text) - 1);
            }
        }
        return kongps_set_header(kong, "x-names", text);
    }
    if (strcmp(wish, "thread") == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, on_thread, kong);
        pthread_join(thread, NULL);
        return KONGPS_OK;
    }
    if (strcmp(wish, "keep") == 0) {
        old_handle = kong;
        return KONGPS_OK;
    }
    if (strcmp(wish, "deep") == 0) {
        unsigned sum = 0;
        code = kongps_get_header(kong, "x-seed", &value);
        if (code == KONGPS_OK) {
            unsigned seed = (unsigned)strtoul(value.as.text, NULL, 10);
            code = deep(kong, seed, (int)(seed % 12), &sum);
        }
        if (code != KONGPS_OK) {
            return code;
        }
        snprintf(text, sizeof text, "%u", sum);
        return kongps_set_header(kong, "x-sum", text);
    }
    return KONGPS_OK;
}

static int on_access(void *instance, kongps_kong *kong)
{
    int code;
    if (instance == NULL || kong->phase != KONGPS_ACCESS) {
        return 99;
    }
    probe_running++;
    code = act(kong);
    probe_running--;
    probe_returned++;
    return code;
}

static int on_log(void *instance, kongps_kong *kong)
{
    (void)instance;
    if (old_handle != NULL) {
        kongps_kong *old = old_handle;
        old_handle = NULL;
        probe_late = old == kong ? 1 : kongps_log(old, "too late");
    }
    return kongps_log(kong, "the log phase");
}

KONGPS_EXPORT const kongps_plugin_table kongps_plugin = {
    .api = KONGPS_PLUGIN_API,
    .size = sizeof(kongps_plugin_table),
    .version = "1.2.3",
    .priority = -5,
    .phases = KONGPS_PHASE_BIT(KONGPS_ACCESS) | KONGPS_PHASE_BIT(KONGPS_LOG),
    .schema = "[{\"refuse\": {\"type\": \"string\"}}]",
    .new_instance = new_probe,
    .close_instance = close_probe,
    .access = on_access,
    .log = on_log,
};
