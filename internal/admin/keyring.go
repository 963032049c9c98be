package admin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/seal"
)

// keys looks at each file of keys. It reports whether the login keys, if this renewd needs them,
// and the store keys can be used.
func (x *examination) keys(ctx context.Context) (logins, store bool) {
	files, ring := keyfile.Of(x.on.Conf), new(seal.Keyring)
	for _, file := range files {
		name := "keyring"
		if file.Use == seal.UseLogin {
			name = "login keys"
		}
		x.ask(ctx, name, func(ctx context.Context) Finding {
			part, err := file.Load(ctx)
			if err != nil {
				return failed(err, "without the "+name+" nothing can be opened: "+
					"restore it from its backup, or set "+settingOf(file)+" to where it is")
			}
			ring = ring.With(part)
			return x.keyFile(file, part)
		})
	}
	logins = slices.Contains(ring.Uses(), seal.UseLogin) || !x.on.Conf.TakeLogins
	store = slices.Contains(ring.Uses(), seal.UseStore)
	if store {
		x.on.Keys = daemon.NewLiveKeys(files, ring, nil)
	}
	return logins && store, store
}

// settingOf is the setting that names a file of keys.
func settingOf(f keyfile.File) string {
	if f.Use == seal.UseLogin {
		return "RENEWD_LOGIN_KEYS_FILE"
	}
	return "RENEWD_KEYS_FILE"
}

// keyFile tells how the file of a keyring is kept.
func (x *examination) keyFile(f keyfile.File, ring *seal.Keyring) Finding {
	found := plain.Counted(len(ring.Keys()), "key", "keys") + " in " + f.Path
	switch f.Use {
	case "":
		found += ", those for logins and those for the store in one file"
	case seal.UseStore:
		found += ", for the store alone"
	}
	if len(f.Unwrap) > 0 {
		return Finding{State: Fine, Found: found + ", encrypted"}
	}
	if info, err := os.Stat(f.Path); err == nil && runtime.GOOS != "windows" &&
		info.Mode().Perm()&0o004 != 0 {
		return Finding{
			State: Warning, Found: "every user of this machine may read " + f.Path,
			Advice: "chmod o-r, and its folder too if others are in it",
		}
	}
	inside, err := filepath.Rel(x.on.Conf.DataDir, f.Path)
	if x.on.Conf.Embedded() && err == nil && filepath.IsLocal(inside) {
		return Finding{
			State: Warning, Found: found + ", beside what they protect",
			Advice: fmt.Sprintf("anyone who copies data_dir has all tokens: "+
				"move the file elsewhere, and set %s",
				settingOf(f)),
		}
	}
	return Finding{State: Fine, Found: found}
}

// natsFiles tells whether the files of the embedded NATS server are encrypted.
func (x *examination) natsFiles(context.Context) Finding {
	id, err := daemon.FileKey(x.on.Conf)
	switch {
	case err != nil:
		return failed(err, "without it the server's files cannot be read")
	case id != "":
		return Finding{State: Fine, Found: "encrypted, with a key that store key " + id + " seals"}
	case !daemon.HasNATSFiles(x.on.Conf):
		return Finding{State: Fine, Found: "none yet"}
	}
	f := Finding{
		State: Fine,
		Found: "not encrypted: who reads them or their backup sees user ids, outcomes, " +
			"and profiles as they are published; no token",
	}
	if x.on.Conf.NATSEncrypt {
		f.State, f.Advice = Warning, "stop renewd and run: renewd nats encrypt"
	}
	return f
}
