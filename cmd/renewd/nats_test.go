package main

import (
	"io"
	"strings"
	"testing"
	"time"
)

func TestTokensFile(t *testing.T) {
	t.Parallel()
	tokens, err := readTokens(write(t, "t.json",
		`{"access_token":"a","refresh_token":"r","expires_in":1800,"token_type":"Bearer"}`), nil)
	if err != nil || tokens.AccessToken != "a" || tokens.RefreshToken != "r" ||
		tokens.ExpiresIn != 30*time.Minute {
		t.Errorf("got %v, %v", tokens, err)
	}
	tokens, err = readTokens("-", io.LimitReader(strings.NewReader(`{"access_token":"b"} `), 100))
	if err != nil || tokens.AccessToken != "b" {
		t.Errorf("got %v, %v", tokens, err)
	}
	for name, text := range map[string]string{
		"no JSON":    "hunter2",
		"no token":   `{"token":"hunter2"}`,
		"wrong type": `{"access_token":["hunter2"]}`,
	} {
		_, err := readTokens(write(t, "t.json", text), nil)
		if err == nil || strings.Contains(err.Error(), "hunter2") ||
			!strings.Contains(err.Error(), "access_token") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
