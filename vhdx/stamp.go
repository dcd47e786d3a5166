package vhdx

import (
	"crypto/sha256"

	"vhdfs/ops"
)

var _ ops.Stamped = (*Disk)(nil)

// Stamp implements [ops.Stamped]: whoever opens the file for writing gives the
// header a new FileWriteGuid and each header a higher sequence number
// ([MS-VHDX] 2.2.2).
func (d *Disk) Stamp() ops.GUID {
	d.mu.RLock()
	h := d.headers.current
	d.mu.RUnlock()
	sum := sha256.Sum256(le.AppendUint64(h.fileWrite[:], h.seq))
	return ops.GUID(sum[:16])
}
