// Plugin code that goes wrong as its configuration says.
package main

import "github.com/Kong/go-pdk"

type Config struct {
	How     string
	Message string
}

func New() interface{} {
	return &Config{}
}

func (config Config) Access(kong *pdk.PDK) {
	kong.Request.GetHeader("host")
	if config.How == "raise" {
		panic("in the handler")
	}
	if config.How == "exit" {
		kong.Response.Exit(403, "no", nil)
	}
	kong.Response.SetHeader("x-message", config.Message)
}

