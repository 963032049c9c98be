package natsconn

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/renewd/renewd/internal/settings"
)

// cliContext is a context of the nats CLI, as far as renewd follows the context.
type cliContext struct {
	URL         string `json:"url"`
	Token       string `json:"token"`
	User        string `json:"user"`
	Password    string `json:"password"`
	Creds       string `json:"creds"`
	NKey        string `json:"nkey"`
	Cert        string `json:"cert"`
	Key         string `json:"key"`
	CA          string `json:"ca"`
	InboxPrefix string `json:"inbox_prefix"`
	TLSFirst    bool   `json:"tls_first"`

	// Settings renewd would have to follow and does not.
	Domain    string `json:"jetstream_domain"`
	APIPrefix string `json:"jetstream_api_prefix"`
	NSC       string `json:"nsc"`
	Proxy     string `json:"socks_proxy"`
	UserJWT   string `json:"user_jwt"`
}

// readContext reads the context with this name from the nats CLI's folder, or from a file if name
// is a path.
func readContext(name string, environ []string) (cliContext, error) {
	path := name
	if !strings.ContainsRune(name, os.PathSeparator) && !strings.HasSuffix(name, ".json") {
		env := settings.Environ(environ)
		home := env.Get("XDG_CONFIG_HOME")
		if home == "" {
			home = filepath.Join(env.Get("HOME"), ".config")
		}
		path = filepath.Join(home, "nats", "context", name+".json")
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return cliContext{}, fmt.Errorf("%w: see which there are: nats context ls", err)
	}
	if err != nil {
		return cliContext{}, err
	}
	var x cliContext
	if err := json.Unmarshal(data, &x); err != nil {
		return cliContext{}, fmt.Errorf("%s: no JSON object as the nats CLI writes it", path)
	}
	for field, value := range map[string]string{
		"jetstream_domain":     x.Domain,
		"jetstream_api_prefix": x.APIPrefix,
		"nsc":                  x.NSC,
		"socks_proxy":          x.Proxy,
		"user_jwt":             x.UserJWT,
	} {
		if value != "" {
			return cliContext{}, fmt.Errorf("%s: %s: renewd does not support it: use another "+
				"context", path, field)
		}
	}
	if x.URL == "" {
		x.URL = DefaultURL
	}
	return x, settings.CheckNATSURL(x.URL)
}
