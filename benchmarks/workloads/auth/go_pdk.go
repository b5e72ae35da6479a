// The auth workload for an embedded server of go-pdk: looks a consumer up, ends the request.
package main

import (
	"github.com/Kong/go-pdk"
	"github.com/Kong/go-pdk/server"
)

type Config struct {
	Message string
}

func New() interface{} {
	return &Config{}
}

func (config Config) Access(kong *pdk.PDK) {
	consumer, err := kong.Client.LoadConsumer("alice", true)
	if err != nil {
		kong.Log.Err(err.Error())
		return
	}
	kong.Response.Exit(403, []byte("no entry for "+consumer.Username), nil)
}

func main() {
	server.StartServer(New, "1.0", 0)
}
