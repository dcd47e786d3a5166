// Package backup keeps what a disk holds, or what of it changed since an earlier
// backup, in two files: NAME has the bytes at their place in the disk and is as
// long as that, with holes wherever nothing is kept; NAME.map says which parts
// are kept and of what.
//
// A map is lines of JSON: a [Head], a line for each range, in order, and the end,
// with a digest over all lines before it and the bytes of the ranges. A map that
// ends early, or whose bytes are not these, is refused whole.
//
// A restore is a full backup with increments laid over it, each of which begins
// with the id that the one before it ends with. docs/backup.md is for users.
package backup
