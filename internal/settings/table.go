package settings

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/secret"
)

// setting is one row of the settings table, read from a field and its tags.
type setting struct {
	key    string // in the settings file
	env    string // in the environment; empty: in the file alone
	def    string
	field  string // struct and field, as in meanings
	show   string
	oneof  []string
	lo, hi string
	index  int // of the field
	secret bool
	nested bool // a list or a mapping, which the file may write as several values
}

// table lists the settings of a struct: Settings, Provider or a struct in them. Without an
// envPrefix the environment sets no field without the tag env.
func table(of reflect.Type, envPrefix string) []setting {
	var rows []setting
	for i := range of.NumField() {
		f := of.Field(i)
		key := f.Tag.Get("key")
		if key == "" {
			continue
		}
		row := setting{
			key:    key,
			env:    f.Tag.Get("env"),
			def:    f.Tag.Get("default"),
			field:  of.Name() + "." + f.Name,
			show:   f.Tag.Get("show"),
			lo:     f.Tag.Get("min"),
			hi:     f.Tag.Get("max"),
			index:  i,
			secret: f.Type == reflect.TypeFor[secret.Value](),
		}
		switch {
		case row.env == "-":
			row.env, row.nested = "", true
		case f.Type == reflect.TypeFor[Command]():
			row.env, row.nested = cmp.Or(row.env, envPrefix+strings.ToUpper(key)), true
		case row.env == "" && envPrefix != "":
			row.env = envPrefix + strings.ToUpper(key)
		}
		if v, ok := f.Tag.Lookup("oneof"); ok {
			row.oneof = strings.Split(v, ",")
		}
		rows = append(rows, row)
	}
	return rows
}

func mainTable() []setting { return table(reflect.TypeFor[Settings](), "RENEWD_") }

func providerTable() []setting { return table(reflect.TypeFor[Provider](), "RENEWD_PROVIDER_") }

func policyTable() []setting { return table(reflect.TypeFor[Policy](), "RENEWD_POLICY_") }

func ruleTable() []setting { return table(reflect.TypeFor[Rule](), "") }

func senderTable() []setting { return table(reflect.TypeFor[Sender](), "") }

func clientTable() []setting { return table(reflect.TypeFor[HTTPClient](), "") }

func guardTable() []setting { return table(reflect.TypeFor[Guard](), "RENEWD_GUARD_") }

// allSettings are all rows of the README's table.
func allSettings() []setting {
	return slices.Concat(
		mainTable(), senderTable(), sinkTable(), sourceTable(), providerTable(), ruleTable(),
		policyTable(), guardTable(),
	)
}

// put parses text into the row's field of target, a settings struct.
func (r setting) put(target reflect.Value, text string) error {
	f := target.Field(r.index)
	if r.oneof != nil && !slices.Contains(r.oneof, text) {
		return fmt.Errorf("%q: want one of %s%s",
			text, strings.Join(nonEmpty(r.oneof), ", "), DidYouMean(text, r.oneof))
	}
	switch v := f.Addr().Interface().(type) {
	case *string:
		*v = text
		return nil
	case *secret.Value:
		*v = secret.New(text)
		return nil
	case *Command:
		return v.parse(text)
	case *bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q: want true or false", text)
		}
		*v = b
		return nil
	case *int:
		return putNumber(r, v, text, strconv.Atoi, "a whole number")
	case *float64:
		return putNumber(r, v, text,
			func(s string) (float64, error) { return strconv.ParseFloat(s, 64) },
			"a number such as 0.2")
	case *ByteSize:
		n, err := parseBytes(text)
		if err != nil {
			return err
		}
		*v = n
		return nil
	case *time.Duration:
		return putNumber(r, v, text, ParseDuration, "a duration such as 500ms, 30s, 5m, 12h or 7d")
	default:
		panic("settings: " + r.key + ": a field of a type that has no parser")
	}
}

func putNumber[T int | float64 | time.Duration](
	r setting, v *T, text string, parse func(string) (T, error), want string,
) error {
	n, err := parse(text)
	if err != nil || n != n {
		return fmt.Errorf("%q: want %s", text, want)
	}
	bound := func(s string) (T, bool) {
		b, err := parse(s)
		return b, err == nil
	}
	if lo, ok := bound(r.lo); ok && n < lo {
		return fmt.Errorf("%s: want %s or more", text, r.lo)
	}
	if hi, ok := bound(r.hi); ok && n > hi {
		return fmt.Errorf("%s: want %s or less", text, r.hi)
	}
	*v = n
	return nil
}

// parse reads a JSON list, or words between blanks.
func (c *Command) parse(text string) error {
	if text = strings.TrimSpace(text); !strings.HasPrefix(text, "[") {
		*c = strings.Fields(text)
		return nil
	}
	if err := json.Unmarshal([]byte(text), (*[]string)(c)); err != nil {
		return fmt.Errorf("want a JSON list of texts, or words between blanks")
	}
	return nil
}

// ParseDuration is time.ParseDuration that also knows days.
func ParseDuration(s string) (time.Duration, error) {
	days, ok := strings.CutSuffix(s, "d")
	if !ok {
		return time.ParseDuration(s)
	}
	n, err := strconv.ParseFloat(days, 64)
	if err != nil || n < -36500 || n > 36500 {
		return 0, fmt.Errorf("parse %q: want a number of days", s)
	}
	return time.Duration(n * float64(24*time.Hour)), nil
}

// FormatDuration writes d as ParseDuration reads it, without zero units at its end.
func FormatDuration(d time.Duration) string {
	if day := 24 * time.Hour; d >= day && d%day == 0 {
		return strconv.Itoa(int(d/day)) + "d"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func nonEmpty(in []string) []string {
	return slices.DeleteFunc(slices.Clone(in), func(s string) bool { return s == "" })
}

// DidYouMean names the known word that is closest to a mistyped one, if any is close.
func DidYouMean(word string, known []string) string {
	best, distance := "", len(word)/3+2
	for _, k := range known {
		if d := editDistance(strings.ToLower(word), strings.ToLower(k)); k != "" && d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", best)
}

// editDistance counts the letters to insert, remove or replace to get from a to b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
