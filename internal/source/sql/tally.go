package sql

// Tally counts the findings in the rows that were looked at.
type Tally struct {
	Rows  int `json:"rows"`
	Empty int `json:"empty"` // without tokens
	// Cleared are the empty rows that had tokens when they were last taken, or seen.
	Cleared int `json:"cleared"`
	// Live, Expired and Unknown are the rows that can be taken, by whether the access token still
	// lives. The refresh token renews an expired one. NoRefresh are the rows without a refresh
	// token.
	Live      int `json:"live"`
	Expired   int `json:"expired"`
	Unknown   int `json:"unknown"`
	NoRefresh int `json:"no_refresh"`
	// New have never been taken, Known stand as they were taken, or seen, and Changed have had
	// other tokens since. Foreign are the rows that changed without a sign-in, so another program
	// renews them.
	New     int `json:"new"`
	Known   int `json:"known"`
	Changed int `json:"changed"`
	Foreign int `json:"foreign"`
	// Taken were published as logins.
	Taken int `json:"taken"`
	// Problems are the rows that cannot be taken, and Examples the ids of the first few.
	Problems map[Problem]int      `json:"problems,omitempty"`
	Examples map[Problem][]string `json:"examples,omitempty"`
}

// examples is how many rows a tally names for each problem.
const examples = 5

// Unreadable is how many rows cannot be taken.
func (t Tally) Unreadable() (n int) {
	for _, of := range t.Problems {
		n += of
	}
	return n
}

func (t *Tally) problem(p Problem, id string) {
	if t.Problems == nil {
		t.Problems, t.Examples = map[Problem]int{}, map[Problem][]string{}
	}
	t.Problems[p]++
	if len(t.Examples[p]) < examples {
		t.Examples[p] = append(t.Examples[p], id)
	}
}

// add counts the finding of a row.
func (t *Tally) add(f finding) {
	t.Rows++
	switch {
	case f.empty:
		t.Empty++
		if f.was != nil {
			t.Cleared++
		}
		return
	case f.problem != "":
		t.problem(f.problem, f.row.id)
		return
	case f.session.expiresAt.IsZero():
		t.Unknown++
	case f.session.expiresAt.After(f.at):
		t.Live++
	default:
		t.Expired++
	}
	if f.session.refresh.IsZero() {
		t.NoRefresh++
	}
	switch {
	case f.was == nil:
		t.New++
	case f.changed():
		t.Changed++
	default:
		t.Known++
	}
	if f.foreign() {
		t.Foreign++
	}
	if f.taken {
		t.Taken++
	}
}
