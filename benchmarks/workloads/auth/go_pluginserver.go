// The auth workload for go-pluginserver: looks a consumer up, ends the request.
package main

import "github.com/Kong/go-pdk"

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
	kong.Response.Exit(403, "no entry for "+consumer.Username, nil)
}
