// The auth workload for the JavaScript kong-pdk: looks a consumer up, ends the request.
"use strict"

class Plugin {
  constructor(config) {
    this.config = config
  }

  async access(kong) {
    const consumer = await kong.client.loadConsumer("alice", true)
    await kong.response.exit(403, `no entry for ${consumer.username}`)
  }
}

module.exports = {
  Plugin,
  Schema: [{message: {type: "string", default: "hello"}}],
  Version: "1.0",
  Priority: 0,
}
