package sql

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/appdb"
	"github.com/renewd/renewd/internal/sink"
)

const (
	batchLimit = appdb.Limit
	// deliveryLimit is how long one user's row may take with the wait for its batch.
	deliveryLimit = 50 * time.Second
)

// faultOf is an error of a database for the sink.
func faultOf(d appdb.Dialect, err error) error {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*sink.Fault](err); ok {
		return f
	}
	f, ok := errors.AsType[*appdb.Fault](appdb.FaultOf(d, err))
	if !ok {
		return err
	}
	why := f.Err
	if f.Missing {
		why = fmt.Errorf("%w: see renewd sinks plan", why)
	}
	switch {
	case errors.Is(why, appdb.ErrTooLong):
		return why
	case f.Cause == appdb.Row:
		return &sink.Fault{Blame: sink.Refused, Err: why}
	case f.Cause == appdb.Unclear:
		return &sink.Fault{Blame: sink.Unclear, Err: why}
	}
	return &sink.Fault{Blame: sink.Unreachable, Err: why}
}

// argument is a value in the form for a column of this kind. skip: the column takes no null, and
// there is no substitute.
func argument(c appdb.Column, value any) (arg any, skip bool) {
	switch v := value.(type) {
	case nil:
		if c.Nullable {
			return nil, false
		}
		return "", !strings.Contains(c.Kind, "char") && !strings.Contains(c.Kind, "text")
	case bool:
		if strings.Contains(c.Kind, "bool") {
			return strconv.FormatBool(v), false
		}
		return map[bool]string{false: "0", true: "1"}[v], false
	case int64:
		return strconv.FormatInt(v, 10), false
	case time.Time:
		if c.Whole() {
			return strconv.FormatInt(v.Unix(), 10), false
		}
		form := time.DateTime
		if strings.Contains(c.Kind, "with time zone") && !strings.Contains(c.Kind, "without") {
			form += "+00"
		}
		return v.UTC().Format(form), false
	case json.RawMessage:
		return string(v), false
	}
	return value, false
}
