package topology

import "slices"

// WithoutBounds is c without the byte limits that existing streams lack, and the names of these
// streams: an operator decides about the limits. With cutOnly, WithoutBounds leaves out only the
// limits for which the server would delete messages.
func (c Changes) WithoutBounds(cutOnly bool) (rest Changes, left []string) {
	rest = Changes{Items: slices.Clone(c.Items), Force: c.Force}
	for i := range rest.Items {
		if item := &rest.Items[i]; item.leaveBounds(cutOnly) {
			left = append(left, item.Name)
		}
	}
	return rest, left
}

func (c *Change) leaveBounds(cutOnly bool) bool {
	bound := func(d Difference) bool { return d.Field == "max_bytes" || d.Field == "discard" }
	cuts := func(d Difference) bool { return bound(d) && d.Refused != "" }
	if c.Action != Update || c.Kind != "stream" || c.stream.MaxBytes <= 0 ||
		!slices.ContainsFunc(c.Differences, bound) {
		return false
	}
	if cutOnly && !slices.ContainsFunc(c.Differences, cuts) {
		return false
	}
	c.stream.MaxBytes, c.stream.Discard = c.have.MaxBytes, c.have.Discard
	c.Differences = slices.DeleteFunc(slices.Clone(c.Differences), bound)
	c.setAction()
	return true
}
