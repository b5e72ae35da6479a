// The empty workload for an embedded server of go-pdk: no PDK call.
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
}

func main() {
	server.StartServer(New, "1.0", 0)
}
