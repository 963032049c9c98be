package idp

import (
	"bytes"
	"encoding/base64"
	"mime"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/renewd/renewd/internal/secret"
)

// maxDetail is the longest grant.Fault.Detail, in bytes.
const maxDetail = 200

// detail is an answer's description of its error (RFC 6749 section 5.2), fit for a terminal. A
// provider may quote the request: shown, the token, and the client's secrets are cut out.
func (p *Provider) detail(r reply, shown secret.Value) string {
	if r.cut {
		return ""
	}
	description, uri := described(r)
	out := p.censored(description, shown)
	if uri = p.censored(uri, shown); uri != "" {
		out = strings.TrimSpace(out + " (" + uri + ")")
	}
	for len(out) > maxDetail {
		_, size := utf8.DecodeLastRuneInString(out)
		out = out[:len(out)-size]
	}
	return out
}

func described(r reply) (description, uri string) {
	media, _, _ := mime.ParseMediaType(r.header.Get("Content-Type"))
	if media == "application/x-www-form-urlencoded" &&
		!bytes.HasPrefix(bytes.TrimSpace(r.body), []byte("{")) {
		v, _ := url.ParseQuery(string(r.body))
		return v.Get("error_description"), v.Get("error_uri")
	}
	all, _, err := members(bytes.TrimPrefix(r.body, []byte("\xef\xbb\xbf")))
	if err != nil {
		return "", ""
	}
	return text(all.get("error_description")), text(all.get("error_uri"))
}

// oneLine is s without characters a terminal would act on, its white space made single spaces.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsPrint(r):
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, ""))
	return strings.Join(strings.Fields(s), " ")
}

const (
	shortest = 8  // length, in bytes, from which a part of a secret counts as the secret
	longest  = 40 // length from which a word counts as a token, even another user's: a UUID has 36
)

// censored is s on one line, without any word that is a secret, holds a secret, is a part of a
// secret or could be a secret.
func (p *Provider) censored(s string, shown secret.Value) string {
	s = oneLine(s)
	secrets := p.secrets(shown)
	for _, secret := range secrets {
		s = strings.ReplaceAll(s, secret, "\x00") // NUL, which s does not have
	}
	var out strings.Builder
	word := func(w string) {
		if core := strings.Trim(w, ".…"); hides(core, secrets) {
			w = strings.Replace(w, core, "[redacted]", 1)
		}
		out.WriteString(w)
	}
	from := 0
	for i, r := range s {
		if strings.ContainsRune(` '"=:;,<>()[]{}&?`, r) {
			word(s[from:i])
			out.WriteRune(r)
			from = i + utf8.RuneLen(r)
		}
	}
	word(s[from:])
	return out.String()
}

// hides reports whether a word must not be seen. A secret in the word is a NUL by now.
func hides(word string, secrets []string) bool {
	part := func(secret string) bool {
		return len(word) >= shortest &&
			strings.Contains(secret, word)
	}
	long := func(s string) bool { return len(s) >= longest }
	return strings.Contains(word, "\x00") || slices.ContainsFunc(secrets, part) ||
		slices.ContainsFunc(strings.Split(word, "/"), long)
}

// secrets are the texts in which an answer may quote the secrets of a request.
func (p *Provider) secrets(shown secret.Value) (out []string) {
	add := func(texts ...string) {
		for _, text := range texts {
			if text = oneLine(text); text != "" {
				out = append(out, text)
			}
		}
	}
	add(shown.Reveal(), url.QueryEscape(shown.Reveal()))
	for _, secret := range []secret.Value{p.config.ClientSecret, p.config.NextSecret} {
		if client := secret.Reveal(); client != "" {
			pair := url.QueryEscape(p.config.ClientID) + ":" + url.QueryEscape(client)
			add(base64.StdEncoding.EncodeToString([]byte(pair)), url.QueryEscape(client), client)
		}
	}
	for _, value := range p.config.Headers {
		if len(value.Reveal()) >= shortest {
			add(value.Reveal())
		}
	}
	return out
}
