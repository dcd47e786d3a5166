// Package fs shows a library of disk images as a FUSE file system.
//
//	MNT/                  dir      a folder of the host, mirrored
//	  .vhdfs/             table    the service: documents, log, metrics, help/
//	  DIR/                dir
//	  NAME.vhdx/          table    one image
//	    raw               content  the guest's bytes
//	    partitions/pN     content  a window of them
//	    state.json        textFile a document
//	    validate          textFile an operation: write a request, read the answer
//	    parent            link     to the parent's directory
//
// These five node types are all there is: every directory that is not a folder
// of the host is a table of rows, every small file a textFile. What the files
// say comes from [Options]: documents are rendered elsewhere, operations are
// rows of the table in package ops.
//
// # Caches
//
// Names and small files are never cached: every entry is answered with a
// time-out of 0, so new, renamed and deleted images show at once, by a stat of
// the host alone. The bytes of raw are cached by the kernel, and its attributes
// for a second while it is open (a stat by name looks them up). A node of
// raw is a promise that the pages the kernel has under it are right: its
// identity is the host file and a generation, and a new generation, which is a
// new node without pages, is begun whenever that cannot be shown (see pages).
//
// # Requests
//
// A few readers of /dev/fuse each serve one request after the other, with
// go-fuse's codec and tree (see loop). A request may wait for as long as it has
// to, even for another request: readers that wait are replaced.
//
// # Locks
//
// mount.mu is the only lock here. It guards tables and counts of handles, is
// never held over a call into the library, over rendering, or over anything
// that waits for the kernel's side of this mount.
package fs
