// The body workload for an embedded server of go-pdk: reads the body, hands it on.
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
	body, err := kong.Request.GetRawBody()
	if err != nil {
		kong.Log.Err(err.Error())
		return
	}
	kong.ServiceRequest.SetRawBody(string(body))
}

func main() {
	server.StartServer(New, "1.0", 0)
}
