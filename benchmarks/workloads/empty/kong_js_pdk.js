// The empty workload for the JavaScript kong-pdk: no PDK call.
"use strict"

class Plugin {
  constructor(config) {
    this.config = config
  }

  async access(kong) {
  }
}

module.exports = {
  Plugin,
  Schema: [{message: {type: "string", default: "hello"}}],
  Version: "1.0",
  Priority: 0,
}
