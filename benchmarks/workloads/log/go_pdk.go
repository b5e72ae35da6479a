// The log workload for an embedded server of go-pdk: reads Kong's log record, JSON decoded.
package main

import (
	"encoding/json"

	"github.com/Kong/go-pdk"
	"github.com/Kong/go-pdk/server"
)

type Config struct {
	Message string
}

func New() interface{} {
	return &Config{}
}

func (config Config) Log(kong *pdk.PDK) {
	text, err := kong.Log.Serialize()
	if err != nil {
		kong.Log.Err(err.Error())
		return
	}
	var record map[string]interface{}
	if err := json.Unmarshal([]byte(text), &record); err != nil {
		kong.Log.Err(err.Error())
		return
	}
	response, _ := record["response"].(map[string]interface{})
	if response["status"] != 200.0 {
		kong.Log.Err("another status")
	}
}

func main() {
	server.StartServer(New, "1.0", 0)
}
