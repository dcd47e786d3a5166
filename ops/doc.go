// Package ops is the domain of vhdfs: what a disk image is, how images are
// found and linked, and what can be done to one.
//
//	cmd/vhdfs ──> fs ──> ops <── vhdx  vhd  iso  vfd
//
// A format answers one question, where the bytes are: a [Layer] maps guest
// offsets of one file to runs that are absent, zero or data. Everything above
// that question lives here once: reading through parents ([Chain]), finding a
// parent by the path a child recorded ([Library]), one open instance for each
// host file ([Engine]), who may do what beside whom ([Library.Open] for guests,
// [Library.Operate] for operations), the link index, the service's classes and the
// table of operations. The host's files are reached through [Dir] and [File] only, so
// that tests can record, cut and fail every call.
//
// # Locks
//
// In the order they may be taken:
//
//	fs root.mu       the set of directories shown
//	ops Library.mu   the engines by device and inode, and who uses each
//	ops Engine.mu    RLock: guest I/O. Lock: upgrade to writing, close, part-sector writes, swap of layers
//	format Disk.mu   block table, free space and log of one open file
//
// Calls go down this list only; between engines of one chain they go from the
// child to its parent. Library.mu is never held over I/O, nor over a call that
// takes Engine.mu. No lock is held over a call into the kernel's side of our own
// mount. A function named xLocked needs its receiver's lock.
//
// Beside them stand locks around a few fields, under which nothing is called:
// Cache.mu, inspectCache.mu, flushes.mu and Jobs.mu; and firstWrite.mu, below a format's,
// while files beside an image get other names.
package ops
