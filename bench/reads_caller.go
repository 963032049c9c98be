package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"
)

// caller is one keep-alive connection of a client (RFC 9112). A caller shares the machine with the
// measured renewd and so does little: net/http's client takes more processor time than the answer
// does.
type caller struct {
	conn   net.Conn
	in     *bufio.Reader
	host   string
	secret string
	out    []byte
}

// answerLimit is how long an answer may take: longer than renewd waits for a renewal.
const answerLimit = time.Minute

// dial opens a connection of the nth caller.
func (d *door) dial(n int) (*caller, error) {
	conn, err := net.Dial("tcp", d.http)
	if err != nil {
		return nil, err
	}
	return &caller{
		conn: conn, in: bufio.NewReaderSize(conn, 2048), host: d.http,
		secret: d.secrets[n%len(d.secrets)],
	}, nil
}

func (c *caller) close() {
	if c != nil {
		_ = c.conn.Close()
	}
}

func closeAll(all []*caller) {
	for _, c := range all {
		c.close()
	}
}

var errNoToken = errors.New("no token")

// read reads a user's access token.
func (c *caller) read(user int, query string) error {
	status, err := c.ask(tokenPath(user, query))
	if err == nil && status != 200 {
		err = fmt.Errorf("%w: status %d", errNoToken, status)
	}
	return err
}

// alive asks for /livez, which takes renewd no work.
func (c *caller) alive() error {
	_, err := c.ask("/livez")
	return err
}

// ask makes a request and reads all of its answer.
func (c *caller) ask(path string, header ...string) (status int, err error) {
	if err := c.send(path, header...); err != nil {
		return 0, err
	}
	status, length, err := c.head()
	if err != nil {
		return 0, err
	}
	if length < 0 {
		return 0, fmt.Errorf("%s: an answer of no length", path)
	}
	_, err = io.CopyN(io.Discard, c.in, int64(length))
	return status, err
}

func (c *caller) send(path string, header ...string) error {
	if err := c.conn.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		return err
	}
	c.out = append(c.out[:0], "GET "+path+" HTTP/1.1\r\nHost: "+c.host...)
	c.out = append(c.out, "\r\nAuthorization: Bearer "+c.secret+"\r\n"...)
	for _, h := range header {
		c.out = append(append(c.out, h...), "\r\n"...)
	}
	_, err := c.conn.Write(append(c.out, "\r\n"...))
	return err
}

// head reads an answer up to its body, whose length is -1 if the answer does not tell.
func (c *caller) head() (status, length int, err error) {
	length = -1
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, 0, err
	}
	const code = len("HTTP/1.1 ")
	if len(line) < code+3 {
		return 0, 0, fmt.Errorf("no status in %q", line)
	}
	if status, err = strconv.Atoi(string(line[code : code+3])); err != nil {
		return 0, 0, fmt.Errorf("no status in %q", line)
	}
	for {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return 0, 0, err
		}
		if len(bytes.TrimSpace(line)) == 0 {
			return status, length, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, 0, fmt.Errorf("content length %q", value)
			}
		}
	}
}

// listen opens an event stream and reads its beginning. Later events stay in the kernel's buffer.
func (c *caller) listen() error {
	if err := c.send("/v1/outcomes", "Accept: text/event-stream"); err != nil {
		return err
	}
	status, _, err := c.head()
	if err == nil && status != 200 {
		err = fmt.Errorf("an event stream: status %d", status)
	}
	if err == nil {
		_, err = c.in.ReadSlice('\n')
	}
	return errors.Join(err, c.conn.SetDeadline(time.Time{}))
}

// ownCPU is the processor time used by this process.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
