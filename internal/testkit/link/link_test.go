package link_test

import (
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/renewd/renewd/internal/testkit/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a server that says what it is told, until the test ends.
func echo(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return l.Addr().String()
}

// dial connects over the link, and says and hears one word, which is the error otherwise.
func dial(l *link.Link) (net.Conn, error) {
	conn, err := net.Dial("tcp", l.Addr())
	if err != nil {
		return nil, err
	}
	return conn, say(conn)
}

func say(conn net.Conn) error {
	if _, err := conn.Write([]byte("word")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 4))
	return err
}

func TestARefusingLinkCutsAndComesBack(t *testing.T) {
	l := link.For(t, echo(t))
	conn, err := dial(l)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := l.Set(link.Refusing); err != nil {
		t.Fatal(err)
	}
	if say(conn) == nil {
		t.Error("a connection was not cut")
	}
	if again, err := dial(l); err == nil {
		again.Close()
		t.Error("a new connection was not refused")
	}
	if err := l.Set(link.Passing); err != nil {
		t.Fatal(err)
	}
	again, err := dial(l)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestAHangingLinkHoldsWhatIsSaid(t *testing.T) {
	l := link.For(t, echo(t))
	conn, err := dial(l)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := l.Set(link.Hanging); err != nil {
		t.Fatal(err)
	}
	heard := make(chan error, 1)
	go func() { heard <- say(conn) }()
	select {
	case err := <-heard:
		t.Errorf("heard through a link that hangs: %v", err)
	case <-time.After(50 * time.Millisecond): // long enough for an answer that would come
	}
	if err := l.Set(link.Passing); err != nil {
		t.Fatal(err)
	}
	if err := <-heard; err != nil {
		t.Errorf("what was held is lost: %v", err)
	}
}

func TestHangUpCutsWithoutRefusing(t *testing.T) {
	l := link.For(t, echo(t))
	conn, err := dial(l)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l.HangUp()
	if say(conn) == nil {
		t.Error("a connection was not cut")
	}
	again, err := dial(l)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestOneAnswerIsLost(t *testing.T) {
	l := link.For(t, echo(t))
	l.LoseNextReply()
	if conn, err := dial(l); err == nil {
		conn.Close()
		t.Error("an answer was not lost")
	}
	conn, err := dial(l)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if n := l.Lost(); n != 1 {
		t.Errorf("%d answers lost", n)
	}
}
