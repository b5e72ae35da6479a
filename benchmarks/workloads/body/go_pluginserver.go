// The body workload for go-pluginserver: reads the body, hands it on.
package main

import "github.com/Kong/go-pdk"

type Config struct {
	Message string
}

func New() interface{} {
	return &Config{}
}

func (config Config) Access(kong *pdk.PDK) {
	body, err := kong.Request.GetRawBody()
	if err != nil {
		kong.Log.Err(err.Error())
		return
	}
	kong.ServiceRequest.SetRawBody(body)
}
