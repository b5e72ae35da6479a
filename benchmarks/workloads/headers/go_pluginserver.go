// The headers workload for go-pluginserver: reads all headers, sets five.
package main

import (
	"strconv"

	"github.com/Kong/go-pdk"
)

type Config struct {
	Message string
}

func New() interface{} {
	return &Config{}
}

func (config Config) Access(kong *pdk.PDK) {
	headers, err := kong.Request.GetHeaders(100)
	if err != nil {
		kong.Log.Err(err.Error())
		return
	}
	for number := 1; number <= 5; number++ {
		n := strconv.Itoa(number)
		kong.Response.SetHeader("x-copy-"+n, headers["x-header-0"+n][0])
	}
}
