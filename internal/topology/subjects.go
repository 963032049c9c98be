package topology

import "github.com/renewd/renewd/schema"

// Beginnings and ends of the subjects inside renewd, before a prefix. Provider and user stand
// between the beginning and the end. No service publishes to these subjects.
const (
	TimerFront  = "renewal.timer" // where a renewal waits for its time
	DueFront    = "renewal.due"   // where a renewal is due
	AskedEnd    = ".asked"        // after a due subject: due because of a command
	LaterEnd    = ".later"        // after a due subject: due because of a command put off
	ParkedFront = "parked"

	DeferredFront      = "deferred"
	DeferredTimerFront = DeferredFront + ".timer"
	DeferredDueFront   = DeferredFront + ".due"

	// After the user in the two deferred subjects: commands beside the logins. No command takes the
	// place of another kind.
	LogoutEnd  = ".logout"
	SuspendEnd = ".suspend"
	ResumeEnd  = ".resume"
)

// InLogins are the commands in the stream of the logins. They share one order.
func InLogins() []schema.Type {
	return []schema.Type{
		schema.UserLogin, schema.UserLogout, schema.UserSuspend, schema.UserResume,
	}
}

// DeferredEnd is the end of the subjects of a command of this kind that is put off, after the user.
// Logins have no such end.
func DeferredEnd(of schema.Type) string {
	switch of {
	case schema.UserLogout:
		return LogoutEnd
	case schema.UserSuspend:
		return SuspendEnd
	case schema.UserResume:
		return ResumeEnd
	}
	return ""
}

// subject puts the prefix before a subject inside renewd.
func (t Topology) subject(s string) string { return Prefixed(t.Subjects, s) }

// Prefixed puts the prefix of these subjects, if any, before a subject inside renewd.
func Prefixed(subjects schema.Subjects, s string) string {
	if p := subjects.Prefix(); p != "" {
		return p + "." + s
	}
	return s
}

// BucketStream names the stream of a bucket, as NATS does.
func BucketStream(bucket string) string { return "KV_" + bucket }

// Fronts are the beginnings of the subjects inside renewd that name a user, without a prefix; "*.*"
// begins filters for a user's outcomes.
func Fronts(subjects schema.Subjects) []string {
	return []string{
		TimerFront, DueFront, ParkedFront, DeferredTimerFront, DeferredDueFront,
		"*.*", "$KV." + subjects.Name(BucketGrants),
	}
}
