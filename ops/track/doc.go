// Package track keeps, in a file NAME.vct beside the image NAME, which parts of a
// disk changed since when: it implements [ops.Tracking].
//
// For each granule of the disk there is the number of the last interval in which
// it may have been written. An id that was given out names the end of an interval,
// so that one table answers for all ids.
//
//	0         header A   4 KiB and 32 bytes for each id; the valid one with the
//	64 KiB    header B   higher number counts
//	128 KiB   regions    sectors of 512 bytes, 63 regions each
//	2 MiB     pages      two places for the page of each region
//
// A region is the granules of one page. It is open while the disk may hold changes
// of the present interval that the page does not: who opens the file after a crash
// takes every granule of an open region as changed. Of the two places of a page the
// region says which one counts, so that a page that is written anew, and is torn,
// is not read.
//
//	before a write    region open, sync
//	from time to time pages, sync, regions with the new pages and closed, sync
//	an id             writes drained, disk flushed; the same for all regions; header, sync
//
// Every integer is little-endian, every checksum is CRC-32C. Whatever is not as it
// must be makes the whole file worthless, never a part of it seem unchanged.
// docs/change-tracking.md has the fields, the reasons and the limits.
//
// # Locks
//
// Below Engine.mu, above those of the format: Tracker.file is held over everything
// that is written to the tracking file, and over the change of the disk's LinkID;
// Tracker.mu, which comes after it, over fields alone.
package track
