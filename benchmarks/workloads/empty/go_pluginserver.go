// The empty workload for go-pluginserver: no PDK call.
package main

import "github.com/Kong/go-pdk"

type Config struct {
	Message string
}

func New() interface{} {
	return &Config{}
}

func (config Config) Access(kong *pdk.PDK) {
}
