// The compute workload for go-pluginserver: about 0.2 ms of Python, one header set.
package main

import (
	"strconv"

	"github.com/Kong/go-pdk"
)

const rounds = 2500

type Config struct {
	Message string
}

func New() interface{} {
	return &Config{}
}

func (config Config) Access(kong *pdk.PDK) {
	total := 1
	for number := 0; number < rounds; number++ {
		total = (total*31 + number) % 1000003
	}
	kong.Response.SetHeader("x-sum", strconv.Itoa(total))
}
