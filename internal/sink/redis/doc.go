// Package redis keeps the store's facts about each user in a hash of an app's Redis: whether the
// session lives, why not, the version, and the access token where the settings say so.
//
// The package answers for the keys under its prefix: a hash with a newer version stays as it is,
// each hash has a time to live, and an erasure deletes the hash. The package never writes a refresh
// token. Its errors quote nothing of Redis's answer but the first word, which is the code.
package redis
