/* Sets a response header: a native plugin in C. Build it with:
 *     kongps build hello.c -o PLUGINS_DIRECTORY
 */

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <kongps/plugin.h>

typedef struct hello {
    char message[256];
    char pid[16];
} hello;

static int new_hello(const char *config, size_t size, void **instance, char *error)
{
    hello *self = calloc(1, sizeof *self);
    (void)size;
    if (self == NULL) {
        snprintf(error, KONGPS_ERROR_SIZE, "out of memory");
        return KONGPS_FAILED;
    }
    if (kongps_config_string(config, "message", self->message, sizeof self->message) < 0) {
        snprintf(error, KONGPS_ERROR_SIZE, "config.message: expected text of up to %zu bytes",
                 sizeof self->message - 1);
        free(self);
        return KONGPS_FAILED;
    }
    snprintf(self->pid, sizeof self->pid, "%ld", (long)getpid());
    *instance = self;
    return KONGPS_OK;
}

static int on_access(void *instance, kongps_kong *kong)
{
    const hello *self = instance;
    kongps_value host;
    char greeting[1024];
    int code = kongps_get_header(kong, "host", &host);
    if (code != KONGPS_OK) {
        return code;
    }
    snprintf(greeting, sizeof greeting, "C says %s to %s", self->message,
             host.type == KONGPS_STRING ? host.as.text : "nobody");
    code = kongps_set_header(kong, "x-hello-from-c", greeting);
    return code != KONGPS_OK ? code : kongps_set_header(kong, "x-c-pid", self->pid);
}

KONGPS_EXPORT const kongps_plugin_table kongps_plugin = {
    .api = KONGPS_PLUGIN_API,
    .size = sizeof(kongps_plugin_table),
    .version = "1.0.0",
    .priority = 10,
    .phases = KONGPS_PHASE_BIT(KONGPS_ACCESS),
    .schema = "[{\"message\": {\"type\": \"string\", \"default\": \"hello\"}}]",
    .new_instance = new_hello,
    .close_instance = free,
    .access = on_access,
};
