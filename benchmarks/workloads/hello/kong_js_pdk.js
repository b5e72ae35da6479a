// The hello workload for the JavaScript kong-pdk: reads one header, sets two.
"use strict"

const PID = String(process.pid)

class Plugin {
  constructor(config) {
    this.config = config
  }

  async access(kong) {
    const host = await kong.request.getHeader("host")
    const message = this.config.message
    await kong.response.setHeader("x-hello-from-js", `js says ${message} to ${host}`)
    await kong.response.setHeader("x-js-pid", PID)
  }
}

module.exports = {
  Plugin,
  Schema: [{message: {type: "string", default: "hello"}}],
  Version: "1.0",
  Priority: 0,
}
