// The log workload for the JavaScript kong-pdk: reads Kong's log record, JSON decoded.
"use strict"

class Plugin {
  constructor(config) {
    this.config = config
  }

  async log(kong) {
    const record = JSON.parse(await kong.log.serialize())
    if (record.response.status !== 200) {
      await kong.log.err("another status")
    }
  }
}

module.exports = {
  Plugin,
  Schema: [{message: {type: "string", default: "hello"}}],
  Version: "1.0",
  Priority: 0,
}
