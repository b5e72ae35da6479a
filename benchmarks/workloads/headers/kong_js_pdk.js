// The headers workload for the JavaScript kong-pdk: reads all headers, sets five.
"use strict"

class Plugin {
  constructor(config) {
    this.config = config
  }

  async access(kong) {
    const headers = await kong.request.getHeaders()
    for (let number = 1; number <= 5; number++) {
      await kong.response.setHeader(`x-copy-${number}`, headers[`x-header-0${number}`][0])
    }
  }
}

module.exports = {
  Plugin,
  Schema: [{message: {type: "string", default: "hello"}}],
  Version: "1.0",
  Priority: 0,
}
