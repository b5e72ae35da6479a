// The hello workload for go-pluginserver: reads one header, sets two.
package main

import (
	"os"
	"strconv"

	"github.com/Kong/go-pdk"
)

var pid = strconv.Itoa(os.Getpid())

type Config struct {
	Message string
}

func New() interface{} {
	return &Config{}
}

func (config Config) Access(kong *pdk.PDK) {
	host, err := kong.Request.GetHeader("host")
	if err != nil {
		kong.Log.Err(err.Error())
		return
	}
	kong.Response.SetHeader("x-hello-from-go", "go says "+config.Message+" to "+host)
	kong.Response.SetHeader("x-go-pid", pid)
}
