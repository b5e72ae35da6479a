// The compute workload for the JavaScript kong-pdk: about 0.2 ms of Python, one header set.
"use strict"

const ROUNDS = 2500

class Plugin {
  constructor(config) {
    this.config = config
  }

  async access(kong) {
    let total = 1
    for (let number = 0; number < ROUNDS; number++) {
      total = (total * 31 + number) % 1000003
    }
    await kong.response.setHeader("x-sum", String(total))
  }
}

module.exports = {
  Plugin,
  Schema: [{message: {type: "string", default: "hello"}}],
  Version: "1.0",
  Priority: 0,
}
