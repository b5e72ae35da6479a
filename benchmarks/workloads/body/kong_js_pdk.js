// The body workload for the JavaScript kong-pdk: reads the body, hands it on.
"use strict"

class Plugin {
  constructor(config) {
    this.config = config
  }

  async access(kong) {
    await kong.service.request.setRawBody(await kong.request.getRawBody())
  }
}

module.exports = {
  Plugin,
  Schema: [{message: {type: "string", default: "hello"}}],
  Version: "1.0",
  Priority: 0,
}
