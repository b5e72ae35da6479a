// Sets a response header: a native plugin in C++. Build it with:
//     kongps build hello_cpp.cpp -o PLUGINS_DIRECTORY

#include <cstdio>
#include <exception>
#include <string>

#include <unistd.h>

#include <kongps/plugin.h>

namespace {

struct Hello {
    std::string message;

    explicit Hello(const char *config)
    {
        char text[256];
        message = kongps_config_string(config, "message", text, sizeof text) < 0 ? "hello" : text;
    }

    int access(kongps_kong *kong) const
    {
        kongps_value host;
        int code = kongps_get_header(kong, "host", &host);
        if (code != KONGPS_OK) {
            return code;
        }
        const std::string name = host.type == KONGPS_STRING ? host.as.text : "nobody";
        const std::string greeting = "C++ says " + message + " to " + name;
        code = kongps_set_header(kong, "x-hello-from-cpp", greeting.c_str());
        if (code != KONGPS_OK) {
            return code;
        }
        return kongps_set_header(kong, "x-cpp-pid", std::to_string(getpid()).c_str());
    }
};

// No exception may leave a function that the server calls.
int new_hello(const char *config, size_t, void **instance, char *error)
{
    try {
        *instance = new Hello(config);
        return KONGPS_OK;
    } catch (const std::exception &caught) {
        std::snprintf(error, KONGPS_ERROR_SIZE, "%s", caught.what());
        return KONGPS_FAILED;
    }
}

void close_hello(void *instance)
{
    delete static_cast<Hello *>(instance);
}

int on_access(void *instance, kongps_kong *kong)
{
    try {
        return static_cast<const Hello *>(instance)->access(kong);
    } catch (const std::exception &caught) {
        return kongps_fail(kong, caught.what());
    }
}

} // namespace

KONGPS_EXPORT const kongps_plugin_table kongps_plugin = {
    KONGPS_PLUGIN_API,
    sizeof(kongps_plugin_table),
    "1.0.0",
    10,
    KONGPS_PHASE_BIT(KONGPS_ACCESS),
    R"([{"message": {"type": "string", "default": "hello"}}])",
    new_hello,
    close_hello,
    nullptr, // certificate
    nullptr, // rewrite
    on_access,
    nullptr, // response
    nullptr, // preread
    nullptr, // log
};
